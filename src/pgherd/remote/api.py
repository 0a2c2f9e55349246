"""One Kubernetes API: found as kubectl finds it, its refusals told as one clear line each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import yaml
from lightkube import ApiError, Client
from lightkube.config.kubeconfig import SERVICE_ACCOUNT, KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource

from pgherd.errors import BadInput, PgherdError, Unavailable, one_line
from pgherd.model.spec import KIND
from pgherd.platform.kubernetes.crd import GROUP, PLURAL, VERSION

FIELD_MANAGER = "pgherd-cli"
"""not the operator's: what people declared must stay apart from what the operator adds"""
TIMEOUT = 15.0

PostgresClusterResource: type[GenericNamespacedResource] = create_namespaced_resource(
    GROUP, VERSION, KIND, PLURAL
)


class NotInstalled(PgherdError):
    """The API does not know our resource."""


class NotFound(PgherdError):
    """There is no such object."""


class Api:
    """A connection to one Kubernetes API.

    :param context: the kubeconfig's context; left out, its current one
    :param namespace: left out, the context's
    :raises BadInput: there is no kubeconfig, or not this context in it
    """

    def __init__(self, context: str | None = None, namespace: str | None = None) -> None:
        config = find_config(context)
        self.url = config.cluster.server
        self.context = config.context_name
        self.namespace = namespace or config.namespace
        try:
            self.client = Client(
                config=config,
                namespace=self.namespace,
                timeout=httpx2.Timeout(TIMEOUT),
                field_manager=FIELD_MANAGER,
            )
        except (OSError, ConfigError, ValueError) as error:  # certificates are read here
            name = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
            raise BadInput(
                f"the kubeconfig's context {self.context} can't be used: {name}{one_line(error)}"
            ) from error

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Turn whatever goes wrong inside into one of our errors."""
        with explained(self.url):
            yield


def find_config(context: str | None) -> SingleConfig:
    """What kubectl would use: ``KUBECONFIG``, else ``~/.kube/config``, else a pod's own account.

    :raises BadInput: in one line
    """
    files = _files()
    try:
        merged = _merged(files)
        if merged is None and context is None and Path(SERVICE_ACCOUNT).joinpath("token").is_file():
            return KubeConfig.from_service_account().get()  # type: ignore[return-value]
        if merged is None:
            raise BadInput(
                f"no kubeconfig: {' and '.join(map(str, files))} not found; set KUBECONFIG to yours"
            )
        known = [entry["name"] for entry in merged["contexts"]]
        name = context or merged.get("current-context")
        if name not in known:
            raise BadInput(_no_context(context, known))
        found = KubeConfig.from_dict(merged, fname=files[0]).get(name)
    except BadInput:
        raise
    except (
        OSError,
        yaml.YAMLError,
        ConfigError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise BadInput(
            f"the kubeconfig {':'.join(map(str, files))} can't be used: {one_line(error)}"
        ) from error
    assert found is not None
    return found if found.user is not None else found._replace(user=User())


def _no_context(context: str | None, known: Sequence[str]) -> str:
    there = f"there are: {', '.join(known)}" if known else "the kubeconfig has none"
    return (
        f"--context {context}: not found; {there}"
        if context
        else f"no current context: use --context; {there}"
    )


def _files() -> list[Path]:
    named = [Path(part).expanduser() for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    return named or [Path("~/.kube/config").expanduser()]


def _merged(files: Sequence[Path]) -> dict[str, Any] | None:
    """Several files as one, as kubectl reads them: of each name and setting the first counts."""
    merged: dict[str, Any] = {}
    lists: dict[str, dict[str, Any]] = {key: {} for key in ("contexts", "clusters", "users")}
    there = [file for file in files if file.exists()]
    for file in there:
        content = yaml.safe_load(file.read_text()) or {}
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds no mapping")
        merged = {**content, **merged}
        for key, entries in lists.items():
            for entry in content.get(key) or ():
                entries.setdefault(entry["name"], _absolute(entry, file.parent))
    return {**merged, **{key: list(entries.values()) for key, entries in lists.items()}} if there else None


_PATHS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


def _absolute(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Paths in a kubeconfig are relative to its own folder."""
    return {
        kind: {
            key: str(folder.absolute() / value) if key in _PATHS else value for key, value in content.items()
        }
        if isinstance(content, dict)
        else content
        for kind, content in entry.items()
    }


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what the client library raises into our errors.

    :raises Unavailable: the API does not answer
    :raises NotFound: there is no such object
    :raises NotInstalled: the API does not know our resource
    :raises BadInput: it refused what was asked
    :raises PgherdError: everything else
    """
    try:
        yield
    except ApiError as error:
        raise _refusal(error) from error
    except httpx2.HTTPStatusError as error:
        raise _plain_refusal(error, url) from error
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        reason = one_line(error) or type(error).__name__
        raise Unavailable(f"the Kubernetes API at {url} can't be reached: {reason}") from error
    except ConfigError as error:
        raise BadInput(f"the kubeconfig can't be used: {one_line(error)}") from error


def _plain_refusal(error: httpx2.HTTPStatusError, url: str) -> PgherdError:
    # A path that the API does not have is answered by its web server, in plain text.
    if error.response.status_code == 404:
        return NotInstalled(f"pgherd is not installed at {url}: 'pgherd install' does it")
    if error.response.status_code == 401:
        return PgherdError(f"the Kubernetes API at {url} does not know you: check the kubeconfig's user")
    return PgherdError(f"the Kubernetes API at {url} answered {error.response.status_code}")


def _refusal(error: ApiError) -> PgherdError:
    code, message = error.status.code, one_line(error.status.message or error)
    if code == 401:
        return PgherdError(f"the Kubernetes API does not know you: check the kubeconfig's user ({message})")
    if code == 403:
        return PgherdError(f"the Kubernetes API does not allow it: {message}")
    if code == 404:
        return NotFound(message)
    if code == 422:
        return BadInput(*_causes(error, message))
    if code == 400:
        return BadInput(message)
    return PgherdError(f"the Kubernetes API refused: {message}")


def _causes(error: ApiError, message: str) -> list[str]:
    """Every field that the API server found wrong."""
    details = error.status.details
    causes = (details.causes if details else None) or []
    return [f"{cause.field}: {one_line(cause.message or '')}" for cause in causes if cause.field] or [message]
