"""What running members' own PostgreSQL says of parameters that were changed, before Patroni hears of them.

Any member may be asked of those that are of the same image. While they get another one, all must be able to start
again, so one of each image is asked: what the new one refuses is refused, and what only another one refuses stays as it
was until nobody runs that any more. So does a parameter of which nobody could say anything yet. Where members failed
and none runs any more, nothing that runs could be harmed: then it is taken as it is, for it may be what brings them
back. So it is where no member has ever had a volume, and where members find no place without it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from pgherd.errors import BadInput, PgherdError, Unavailable, one_line
from pgherd.model.spec import ParameterValue, PostgresCluster, from_mapping, to_mapping
from pgherd.model.tuning import check_fit
from pgherd.platform.kubernetes import names, patroni_files, views
from pgherd.platform.kubernetes.machines import PodMachine
from pgherd.platform.kubernetes.tunnel import Reach
from pgherd.platform.parameters import QUESTION, absent, changed, path_of, refusal, setting, together

logger = logging.getLogger(__name__)

Object = Mapping[str, Any]
Parameters = Mapping[str, ParameterValue]
Refusals = Mapping[str, Sequence[str]]
"""why not, by the parameter's name"""

PATIENCE_SECONDS = 3.0
"""how long whoever wants to know waits for an answer; it is awaited further beside them"""
ANSWER_SECONDS = 10.0
"""how long a member may take to answer"""
AGAIN_SECONDS = 10.0
"""after this, members are asked anew that could not be asked"""
ASKED = 3
"""members that are asked one after the other, when one can't be"""

SCRIPT = """\
[ -x "$1" ] || { echo "there is no $1" >&2; exit 3; }
program=$1
shift
while [ "$1" != -- ]; do
    said=$("$program" @QUESTION@ "$1" 2>&1 > /dev/null)
    case $? in
        0) said= ;;
        1) said=${said:-refused} ;;
        *) echo "$said" >&2; exit 3 ;;
    esac
    printf '%s\\0' "$said"
    shift
done
shift
for library; do
    if [ -e "$library.so" ]; then printf '\\0'; else printf 'missing\\0'; fi
done
"""
"""Answers, each ended by a zero byte: what PostgreSQL says against settings, then whether libraries are missing."""


@dataclass(frozen=True)
class Opinion:
    """What may be taken up of a declaration.

    :ivar problems: what was refused; ``cluster`` is then what was accepted before
    :ivar waits: what of it stays as it was until somebody can judge it, and why; empty: nothing
    """

    cluster: PostgresCluster
    problems: Sequence[str] = ()
    waits: str = ""


@dataclass(frozen=True)
class Witnesses:
    """Who could be asked.

    :ivar pods: of the cluster
    :ivar claims: of its members' volumes
    :ivar templates: what they are to be made of, by StatefulSet
    :ivar image: what they are to run
    """

    pods: Sequence[Object]
    claims: Sequence[Object]
    templates: Mapping[str, Object]
    image: str

    def running(self) -> list[Object]:
        """Pods of members that can be asked, the best first."""
        found = [
            pod
            for pod in self.pods
            if views.is_running(pod) and self._is_member(pod) and "deletionTimestamp" not in pod["metadata"]
        ]
        return sorted(found, key=lambda pod: (not self.is_of_image(pod), not views.is_ready(pod)))

    def by_image(self) -> dict[str, list[Object]]:
        """The same by what they run: first those of the image that is declared, if any are."""
        found: dict[str, list[Object]] = {}
        for pod in self.running():
            image = self.image if self.is_of_image(pod) else str(_image(pod))
            found.setdefault(image, []).append(pod)
        return found

    def is_any_at_stake(self) -> bool:
        """Whether there is a member that runs, or would if it were started."""
        own = self._own()
        if any(map(views.is_running, own)):
            return True
        have_data = any((claim.get("status") or {}).get("phase") != "Pending" for claim in self.claims)
        return have_data and not any(map(views.ended_at, own))

    def find_no_place(self) -> bool:
        """Whether no member runs, and one could not anywhere."""
        own = self._own()
        return not any(map(views.is_running, own)) and any(map(views.finds_no_place, own))

    def _own(self) -> list[Object]:
        return [pod for pod in self.pods if self._is_member(pod)]

    def is_of_image(self, pod: Object) -> bool:
        """Whether it has the image that is declared, under whatever name somebody's webhook gave it."""
        template = self.templates.get(pod["metadata"]["name"].rpartition("-")[0])
        is_made_of_it = template is not None and views.template_of(pod) == views.template_of(template)
        return self.image in (_image(pod), _image(template) if template and is_made_of_it else None)

    @staticmethod
    def _is_member(pod: Object) -> bool:
        labels = pod["metadata"].get("labels") or {}
        return names.member_of(labels.get(names.CLUSTER_LABEL, ""), pod["metadata"]["name"]) is not None


def _image(obj: Object) -> str | None:
    """Of a pod or a template."""
    containers = obj["spec"].get("containers") or ()
    return next((str(each["image"]) for each in containers if each["name"] == names.CONTAINER), None)


class Opinions:
    """Asks members, and remembers what they said last of each cluster. Safe to share between threads.

    :param ask: what a member's PostgreSQL says of parameters; of every cluster
    """

    def __init__(self, ask: Callable[[str, int, Parameters], Refusals]) -> None:
        self._ask = ask
        self._guard = threading.Lock()
        self._said: dict[tuple[str, str], _Asked] = {}
        self._last: dict[str, Opinion] = {}

    def forget(self, cluster: str) -> None:
        """It is gone."""
        with self._guard:
            for key in [key for key in self._said if key[0] == cluster]:
                del self._said[key]
            self._last.pop(cluster, None)

    def require_none_waits(self, cluster: str) -> None:
        """:raises Unavailable: something of what is declared stays as it was; which, and why"""
        last = self._last.get(cluster)
        if last is not None and last.waits:
            raise Unavailable(last.waits)

    def note(self, cluster: str, last: Opinion) -> None:
        """Remember for :meth:`require_none_waits`."""
        with self._guard:
            self._last[cluster] = last

    def of(self, before: PostgresCluster, now: PostgresCluster, witnesses: Witnesses, major: int) -> Opinion:
        """What may be taken up of what is declared now.

        :param before: what was accepted last
        :param major: PostgreSQL's version in the members' image
        """
        wanted = changed(before.spec.postgres.parameters, now.spec.postgres.parameters)
        if not wanted or not witnesses.is_any_at_stake():
            return Opinion(now)
        try:
            refused, is_final = self._refused(now.metadata.name, witnesses, major, wanted)
        except PgherdError as error:
            why = f"members can't say yet whether they take it ({one_line(error)})"
            return _held(before, now, wanted, why, witnesses)
        if not refused:
            return Opinion(now)
        told = [f"{path_of(name)}: {problem}" for name, found in refused.items() for problem in found]
        if is_final:
            return Opinion(before, told)
        why = f"members of another image still run, which say: {'; '.join(told)}"
        return _held(before, now, refused, why, witnesses)

    def _refused(
        self, cluster: str, witnesses: Witnesses, major: int, wanted: Parameters
    ) -> tuple[Refusals, bool]:
        """What somebody refuses, and whether the image does that is declared: others need not be asked then.

        :raises PgherdError: not all images can say, or not yet
        """
        running = witnesses.by_image()
        if not running:
            raise Unavailable("none runs")
        refused: dict[str, Sequence[str]] = {}
        for image, pods in running.items():
            found = self._answer((cluster, image), pods[:ASKED], major, wanted)
            if found and image == witnesses.image:
                return found, True
            refused = {**found, **refused}
        return refused, False

    def _answer(
        self, key: tuple[str, str], pods: Sequence[Object], major: int, wanted: Parameters
    ) -> Refusals:
        """What members of one image say.

        :param key: the cluster, and the image
        :raises PgherdError: nobody can say, or not yet
        """
        question = (
            sorted(setting(*each) for each in wanted.items()),
            {pod["metadata"]["uid"] for pod in pods},
        )
        with self._guard:
            known = self._said.get(key)
            if known is None or known.question != question or known.is_to_be_asked_again():
                known = self._said[key] = _Asked(question)
                ask = partial(self._ask_one_of, [pod["metadata"]["name"] for pod in pods], major, wanted)
                threading.Thread(target=known.fill, args=(ask,), name=f"ask-{key[0]}", daemon=True).start()
        return known.answer()

    def _ask_one_of(self, pods: Sequence[str], major: int, wanted: Parameters) -> Refusals:
        *others, last = pods
        for pod in others:
            try:
                return self._ask(pod, major, wanted)
            except PgherdError as error:
                logger.info("%s can't be asked about parameters: %s", pod, one_line(error))
        return self._ask(last, major, wanted)


class _Asked:
    """A question, and its answer when there is one."""

    def __init__(self, question: object) -> None:
        self.question = question
        self._since = time.monotonic()
        self._future: Future[Refusals] = Future()

    def fill(self, ask: Callable[[], Refusals]) -> None:
        """Wait for the answer."""
        try:
            self._future.set_result(ask())
        except PgherdError as error:
            self._future.set_exception(error)
        except Exception as error:  # whoever waits must be told
            logger.exception("a question about parameters")
            self._future.set_exception(PgherdError(f"asking failed: {error!r}"))

    def answer(self) -> Refusals:
        """The answer, if it comes soon.

        :raises PgherdError: nobody could be asked, or there is no answer yet
        """
        try:
            return self._future.result(max(0.0, self._since + PATIENCE_SECONDS - time.monotonic()))
        except TimeoutError as error:
            raise Unavailable("it is being asked") from error

    def is_to_be_asked_again(self) -> bool:
        """Whether nobody could be asked, some time ago."""
        failed = self._future.done() and self._future.exception() is not None
        return failed and time.monotonic() - self._since > AGAIN_SECONDS


def _held(
    before: PostgresCluster, now: PostgresCluster, refused: Collection[str], why: str, witnesses: Witnesses
) -> Opinion:
    """What is declared now, but for some parameters, which stay as they were."""
    old, new = before.spec.postgres.parameters, now.spec.postgres.parameters
    held = together(old, new, refused)
    stays = {name.lower() for name in held}
    parameters = {name: value for name, value in new.items() if name.lower() not in stays} | {
        name: value for name, value in old.items() if name.lower() in stays
    }
    waits = f"{', '.join(map(path_of, held))}: stays as before: {why}"
    plain = to_mapping(now)
    plain["spec"].setdefault("postgres", {})["parameters"] = parameters
    try:
        cluster = from_mapping(plain, source=now.metadata.name, platform="kubernetes")
        check_fit(cluster)
    except BadInput:  # the rest needs them
        if witnesses.find_no_place():
            return Opinion(now)  # nobody could ever be asked in what was declared before
        return Opinion(before, waits=f"{waits}; all else that is declared needs it, and stays as before too")
    return Opinion(cluster, waits=waits)


def ask(api: Reach, pod: str, major: int, parameters: Parameters) -> Refusals:
    """What the PostgreSQL in a member's pod says of parameters.

    :raises PgherdError: it can't be asked
    """
    machine = PodMachine(api, pod, major)
    wanted = patroni_files.preloaded(parameters, major)
    script = SCRIPT.replace("@QUESTION@", " ".join(QUESTION))
    settings = [setting(name, value) for name, value in parameters.items()]
    command = ["/bin/bash", "-c", script, "ask", machine.program("postgres"), *settings, "--"]
    said = machine.output([*command, *(path for _, _, path in wanted)], seconds=ANSWER_SECONDS)
    answers = said.decode(errors="replace").split("\0")[:-1]
    if len(answers) != len(settings) + len(wanted):
        raise Unavailable(f"{pod} answered otherwise than it was asked")
    found: dict[str, list[str]] = {}
    for (name, value), complaint in zip(parameters.items(), answers, strict=False):
        if complaint:
            found.setdefault(name, []).append(refusal(complaint, value))
    for (name, library, _), missing in zip(wanted, answers[len(settings) :], strict=True):
        if missing:
            found.setdefault(name, []).append(absent(library))
    return found
