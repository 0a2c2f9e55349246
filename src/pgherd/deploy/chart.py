"""The Helm chart's generated files, from the same manifests: ``python -m pgherd.deploy.chart deploy/helm``.

Where a value of the chart goes, the manifests get a mark instead of a setting; in the YAML text the marks become
template expressions. What is written by hand (values, their schema, notes) stands beside them in the folder.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pgherd import __version__
from pgherd.deploy import manifests
from pgherd.deploy.manifests import Manifest, Settings

_HEADER = "{{/* Generated from pgherd's own manifests (python -m pgherd.deploy.chart): don't edit. */}}\n"
_TEXT, _NUMBER, _BLOCK = "@text:{}@", "@number:{}@", "@block:{}@"
_WATCHING = ".Values.watchNamespace"


def settings(watch_namespace: str = "") -> Settings:
    """Settings whose values are marks."""
    return Settings(
        namespace=_TEXT.format(".Release.Namespace"),
        image=_TEXT.format(".Values.image"),
        postgres_image=_TEXT.format(".Values.postgresImage"),
        pull_policy=_TEXT.format(".Values.imagePullPolicy"),
        pull_secrets=_BLOCK.format(".Values.imagePullSecrets"),
        resources=_BLOCK.format(".Values.resources"),
        node_selector=_BLOCK.format(".Values.nodeSelector"),
        tolerations=_BLOCK.format(".Values.tolerations"),
        replicas=_NUMBER.format(".Values.replicas"),
        managed_by=_TEXT.format(".Release.Service"),
        watch_namespace=watch_namespace,
    )


def files() -> dict[str, str]:
    """The generated files by their paths in the chart."""
    everywhere, here = settings(), settings(_TEXT.format(_WATCHING))
    return {
        "Chart.yaml": _chart(),
        "templates/definition.yaml": _HEADER + _definition(everywhere),
        "templates/rights.yaml": _HEADER
        + _template([manifests.account(everywhere)])
        + f"{{{{- if {_WATCHING} }}}}\n"
        + _template(manifests.operator_roles(here))
        + "{{- else }}\n"
        + _template(manifests.operator_roles(everywhere))
        + "{{- end }}\n{{- if .Values.fencing }}\n"
        + _template(manifests.fencing_roles(everywhere))
        + "{{- end }}\n{{- if .Values.roles.aggregate }}\n"
        + _template(manifests.people_roles(everywhere))
        + "{{- end }}\n",
        "templates/operator.yaml": _HEADER + _template([manifests.operator(here)]),
    }


def _chart() -> str:
    chart = {
        "apiVersion": "v2",
        "name": "pgherd",
        "description": "The operator of pgherd: distributed PostgreSQL as a service",
        "type": "application",
        "version": __version__,
        "appVersion": __version__,
        "kubeVersion": ">=1.30.0-0",
        "keywords": ["postgresql", "database", "operator", "sharding"],
    }
    return manifests.to_yaml([chart]).removeprefix("---\n")


def _definition(settings: Settings) -> str:
    # A template, not in crds/: Helm never upgrades what is there. Kept at an uninstall: with it all clusters would go.
    definitions = manifests.definitions(settings)
    for definition in definitions:
        definition["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    text = _template(definitions)
    return f"{{{{- if .Values.definition.install }}}}\n{text}{{{{- end }}}}\n"


def _template(objects: list[Manifest]) -> str:
    text = manifests.to_yaml(objects).replace("{{", '{{ "{{" }}')
    text = re.sub(r"^( *)(- )?([\w]+): '?@block:([.\w]+)@'?$", _block, text, flags=re.MULTILINE)
    # Quoted by Helm, where the value is all there is: it may look like a number.
    text = re.sub(r": '?@text:([.\w]+)@'?$", r": {{ \1 | quote }}", text, flags=re.MULTILINE)
    text = re.sub(r": '?@number:([.\w]+)@'?$", r": {{ \1 }}", text, flags=re.MULTILINE)
    return re.sub(r"@text:([.\w]+)@", r"{{ \1 }}", text)


def _block(found: re.Match[str]) -> str:
    """A part that is left out when its value is empty."""
    indent, dash, key, value = found[1], found[2] or "", found[3], found[4]
    below = len(indent) + len(dash) + 2
    lines = f"{indent}{dash}{key}:\n{' ' * below}{{{{- toYaml . | nindent {below} }}}}"
    return f"{indent}{{{{- with {value} }}}}\n{lines}\n{indent}{{{{- end }}}}"


def write(folder: Path) -> None:
    """Write the generated files into the chart."""
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    for path, text in files().items():
        (folder / path).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "deploy/helm"))
