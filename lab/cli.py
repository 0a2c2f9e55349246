"""`lab`: the commands. Answers go to standard output, errors as one line to standard error."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lab import builder, cluster
from lab import machine as machines
from lab.errors import LabError
from lab.settings import CONTROL_PLANE, Settings

Command = Callable[[Settings, argparse.Namespace], None]


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit code is 0, 1 (it failed) or 2 (it was asked wrongly)."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(Settings.from_environment(), arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab", description="A real Kubernetes of three nodes on this machine."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Command, help_: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_, description=help_)
        command.set_defaults(run=run)
        return command

    add("up", _up, "bring the lab up; prints where its kubeconfig is")
    add("build", lambda settings, _: cluster.prepare(settings), "build what `up` needs, and start nothing")
    add("down", _down, "take away everything the lab has made")
    status = add("status", _status, "every machine as it is now")
    status.add_argument("--json", action="store_true", help="as JSON")
    for name, action, help_ in _NODE_COMMANDS:
        command = add(name, _on_node(action), help_)
        command.add_argument("node", type=int, metavar="N", help="the node's number")
    add("stop-api", lambda settings, _: cluster.stop_api(settings), "take the API server away")
    add("start-api", lambda settings, _: cluster.start_api(settings), "bring the API server back")
    load = add("load-image", _load_image, "bring an image archive into every node")
    load.add_argument("file", type=Path, metavar="FILE", help="an OCI or Docker archive")
    tag = add("tag-image", _tag_image, "give an image one more name in every node")
    tag.add_argument("name", metavar="NAME", help="the name it has")
    tag.add_argument("new", metavar="NEW", help="its new name, such as localhost/mine:2")
    _add_building(add)
    inside = add("run", _run, "run a command of this machine in the lab's network: it reaches nodes and pods")
    inside.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    return parser


_NODE_COMMANDS = (
    ("kill-node", cluster.kill_node, "power failure of node N"),
    ("cut", cluster.cut, "pull the network cable of node N; its pods live on, cut off"),
    ("mend", cluster.mend, "bring node N back: power, cable, kubelet"),
    ("stop-kubelet", cluster.stop_kubelet, "stop the kubelet of node N alone"),
    ("start-kubelet", cluster.start_kubelet, "start it again"),
)


def _add_building(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    build = add("build-image", _build_image, "build an image from a Dockerfile, without a registry")
    build.add_argument(
        "context", type=Path, metavar="CONTEXT", help="the directory the Dockerfile copies from"
    )
    build.add_argument("--file", type=Path, metavar="FILE", help="the Dockerfile; default CONTEXT/Dockerfile")
    build.add_argument(
        "--tag", required=True, metavar="NAME", help="what to call it, such as localhost/mine:1"
    )
    build.add_argument("--output", type=Path, required=True, metavar="FILE", help="the OCI archive to write")
    build.add_argument("--target", metavar="STAGE", help="the stage to build; default the last")
    build.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    build.add_argument(
        "--secret", action="append", default=[], metavar="NAME=FILE", help="a file for the build alone"
    )
    build.add_argument("--fresh", action="store_true", help="build everything anew, with today's packages")
    build.add_argument("--load", action="store_true", help="bring it into every node, too")
    add("forget-images", lambda settings, _: builder.forget(settings), "remove what building images keeps")


def _on_node(action: Callable[..., None]) -> Callable[[Settings, argparse.Namespace], None]:
    def run(settings: Settings, arguments: argparse.Namespace) -> None:
        with cluster.alone(settings):
            action(settings, settings.node(arguments.node))

    return run


def _up(settings: Settings, _: argparse.Namespace) -> None:
    begin = time.monotonic()
    with cluster.alone(settings):
        cluster.up(settings)
    print(f"ready after {time.monotonic() - begin:.1f} s\nexport KUBECONFIG={settings.kubeconfig}")


def _down(settings: Settings, _: argparse.Namespace) -> None:
    with cluster.alone(settings):
        cluster.down(settings)


def _status(settings: Settings, arguments: argparse.Namespace) -> None:
    found = cluster.status(settings)
    if arguments.json:
        rows = [{**vars(row), "machine": row.machine.name, "ip": row.machine.ip} for row in found]
        print(json.dumps(rows, indent=1))
        return
    line = "{:<14} {:<14} {:<6} {:<6} {:<10} {}"
    print(line.format("MACHINE", "ADDRESS", "POWER", "LINK", "KUBERNETES", "STOPPED").rstrip())
    for row in found:
        link = "" if row.link is None else ("up" if row.link else "cut")
        power = "on" if row.power else "off"
        words = (row.machine.name, row.machine.ip, power, link, row.ready, ", ".join(row.stopped))
        print(line.format(*words).rstrip())


def _load_image(settings: Settings, arguments: argparse.Namespace) -> None:
    print(cluster.load_image(settings, arguments.file))


def _tag_image(settings: Settings, arguments: argparse.Namespace) -> None:
    cluster.tag_image(settings, arguments.name, arguments.new)


def _build_image(settings: Settings, arguments: argparse.Namespace) -> None:
    begin = time.monotonic()
    recipe = builder.Recipe(
        dockerfile=arguments.file or arguments.context / "Dockerfile",
        context=arguments.context,
        tag=arguments.tag,
        target=arguments.target,
        arguments=builder.parse_arguments("--build-arg", arguments.build_arg),
        secrets={k: Path(v) for k, v in builder.parse_arguments("--secret", arguments.secret).items()},
    )
    builder.build(settings, recipe, arguments.output, fresh=arguments.fresh)
    size = arguments.output.stat().st_size / 1e6
    print(
        f"{recipe.tag}: {arguments.output}, {size:.0f} MB, after {time.monotonic() - begin:.1f} s", flush=True
    )
    if arguments.load:
        cluster.load_image(settings, arguments.output)
        print(f"in the nodes after {time.monotonic() - begin:.1f} s")


def _run(settings: Settings, arguments: argparse.Namespace) -> None:
    """Become the command; does not return."""
    cluster.demand_lab(settings)
    command = [*machines.entering_network(CONTROL_PLANE), *arguments.command]
    os.execvp(command[0], command)
