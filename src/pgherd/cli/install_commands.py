"""Commands that bring the operator to a Kubernetes cluster, and take it away."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgherd.cli.cluster_commands import Timeout, seconds
from pgherd.cli.context import current, say, tell
from pgherd.errors import BadInput

if TYPE_CHECKING:
    from pgherd.deploy.manifests import Settings
    from pgherd.remote.api import Api

NAMES = ("install", "uninstall")
AVAILABLE_SECONDS = 180


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (install, uninstall):
        app.command(rich_help_panel="Kubernetes")(command)


def install(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be applied, for kubectl apply -f -.")
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE", help="The operator's image. Left out: this version's.", show_default=False
        ),
    ] = None,
    postgres_image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="What clusters run unless they name an image themselves.",
            show_default=False,
        ),
    ] = None,
    watch_namespace: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Look after this namespace only. Left out: after all.", show_default=False
        ),
    ] = None,
    fencing: Annotated[
        bool,
        typer.Option(
            "--fencing", help="It may taint nodes that are off: for clusters with fencing: out-of-service."
        ),
    ] = False,
    replicas: Annotated[
        int, typer.Option(metavar="N", help="Pods of the operator: one works, others wait to take over.")
    ] = 2,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return at once; the operator starts in the background.")
    ] = False,
    timeout: Timeout = AVAILABLE_SECONDS,
) -> None:
    """Install the operator in a Kubernetes cluster, or bring it up to date. In --namespace, or pgherd-system."""
    from pgherd.deploy import manifests

    limit = seconds(timeout)
    settings = _settings(image=image, postgres_image=postgres_image, watch_namespace=watch_namespace)
    settings = replace(settings, fencing=fencing, replicas=replicas)
    manifests.check(settings)
    if dry_run:
        typer.echo(manifests.to_yaml(manifests.manifests(settings)), nl=False)
        return
    from pgherd.deploy import apply

    api = _api()
    apply.install(api, settings, tell)
    if not no_wait:
        current().going_on = (
            f"the operator starts; 'kubectl -n {settings.namespace} get pods' shows how far it is"
        )
        apply.wait_available(api, settings, limit, tell)
    state = "starting" if no_wait else "running"
    say(f"the operator is {state} in namespace {settings.namespace}; 'pgherd up -f FILE' creates a cluster")


def uninstall(
    yes: Annotated[bool, typer.Option("--yes", help="Yes, remove it.")] = False,
    keep_clusters: Annotated[
        bool,
        typer.Option(
            "--keep-clusters", help="Even if there are clusters: they run on, with nobody to look after them."
        ),
    ] = False,
) -> None:
    """Remove the operator from a Kubernetes cluster. Refused while there are clusters."""
    from pgherd.deploy import apply

    api, settings = _api(), _settings()
    if not yes:
        raise BadInput(
            f"the operator in namespace {settings.namespace} was not removed: add --yes to remove it"
        )
    removed = apply.uninstall(api, settings, even_with_clusters=keep_clusters, progress=tell)
    for one in removed:
        tell(f"removed {one}")
    say(f"the operator is gone from {api.url}" if removed else f"there is no operator at {api.url}")


def _settings(**given: str | None) -> Settings:
    from pgherd.deploy.manifests import Settings

    named: dict[str, Any] = {"namespace": current().namespace, **given}
    return Settings(**{key: value for key, value in named.items() if value is not None})


def _api() -> Api:
    from pgherd.remote.api import Api

    return Api(current().kube_context)
