"""The chart: current, and for its default values the very objects of ``pgherd install``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgherd.deploy import chart, manifests
from pgherd.deploy.manifests import Settings

CHART = Path(__file__).parents[2] / "deploy" / "helm"
NAMESPACE = "tools"
BUILT = Path(os.environ.get("LAB_CACHE", Path.home() / ".cache" / "pgherd-lab")) / "bin"


@pytest.mark.parametrize("path", sorted(chart.files()))
def test_a_generated_file_is_current(path: str) -> None:
    assert (CHART / path).read_text() == chart.files()[path], "run: python -m pgherd.deploy.chart deploy/helm"


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def test_the_default_values_are_the_default_settings() -> None:
    there, settings = values(), Settings()
    assert there == {
        "image": settings.image,
        "postgresImage": settings.postgres_image,
        "imagePullPolicy": settings.pull_policy,
        "imagePullSecrets": list(settings.pull_secrets),
        "watchNamespace": settings.watch_namespace,
        "fencing": settings.fencing,
        "replicas": settings.replicas,
        "resources": settings.resources,
        "nodeSelector": settings.node_selector,
        "tolerations": list(settings.tolerations),
        "definition": {"install": True},
        "roles": {"aggregate": True},
    }


def test_every_value_is_documented_and_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["additionalProperties"] is False
    assert set(values()) == set(schema["properties"]) - {"global"}
    lines = (CHART / "values.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[a-zA-Z]+:", line):
            after = lines[number + 1] if number + 1 < len(lines) else ""
            assert lines[number - 1].startswith("#") or after.startswith("  #"), f"{line} is not explained"


def test_rendered_it_is_what_pgherd_installs() -> None:
    assert normal(render(values())) == normal(expected(Settings(namespace=NAMESPACE)))


def test_rendered_with_other_values_too() -> None:
    given = {
        **values(),
        "watchNamespace": "shop",
        "fencing": True,
        "replicas": 1,
        "image": "registry.example/operator:2",
        "imagePullSecrets": [{"name": "mine"}],
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
    }
    settings = Settings(
        namespace=NAMESPACE,
        watch_namespace="shop",
        fencing=True,
        replicas=1,
        image="registry.example/operator:2",
        pull_secrets=[{"name": "mine"}],
        node_selector={"a": "b"},
        tolerations=[{"key": "a", "operator": "Exists"}],
    )
    assert normal(render(given)) == normal(expected(settings))


def test_helm_itself_renders_the_same() -> None:
    helm = shutil.which("helm", path=f"{os.environ['PATH']}{os.pathsep}{BUILT}")
    if helm is None:
        pytest.skip("helm is not here ('make helm' builds it); the tests above render without it")
    subprocess.run([helm, "lint", "--strict", str(CHART)], check=True, capture_output=True)
    command = [helm, "template", "pgherd", str(CHART), "--namespace", NAMESPACE]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert normal(yaml.safe_load_all(printed)) == normal(expected(Settings(namespace=NAMESPACE)))
    wrong = subprocess.run([*command, "--set", "imag=x"], check=False, capture_output=True, text=True)
    assert wrong.returncode != 0
    assert "'imag' not allowed" in wrong.stderr


def expected(settings: Settings) -> Iterator[dict[str, Any]]:
    """What pgherd installs, as Helm would: without the namespace, and the definition kept at an uninstall."""
    for each in manifests.manifests(settings):
        if each["kind"] == "CustomResourceDefinition":
            each["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
        if each["kind"] != "Namespace":
            yield each


def normal(objects: Any) -> dict[tuple[str, str], Any]:
    """By kind and name, whoever manages them."""
    plain = [json.loads(json.dumps(each).replace('"Helm"', '"pgherd"')) for each in objects if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in plain}


# As much of Helm's templates as the chart uses.

_TOKEN = re.compile(r"\{\{(-?) *(.*?) *\}\}", re.DOTALL)


def render(given: dict[str, Any]) -> list[Any]:
    objects: list[Any] = []
    for path in sorted((CHART / "templates").glob("*.yaml")):
        text = _template(path.read_text(), {"Values": given, **RELEASE})
        objects += [each for each in yaml.safe_load_all(text) if each]
    return objects


RELEASE = {"Release": {"Namespace": NAMESPACE, "Service": "Helm", "Name": "pgherd"}}


def _template(text: str, scope: dict[str, Any]) -> str:
    out, stack, position = "", [(True, scope.get("."))], 0
    for token in _TOKEN.finditer(text):
        literal = text[position : token.start()]
        out += (literal.rstrip() if token[1] else literal) if stack[-1][0] else ""
        position = token.end()
        word, _, rest = token[2].partition(" ")
        if word in ("if", "with"):
            value = _value(rest, scope, None)
            stack.append((stack[-1][0] and bool(value), value))
        elif word == "else":
            stack[-1] = (stack[-2][0] and not stack[-1][1], None)
        elif word == "end":
            stack.pop()
        elif not word.startswith("/*") and stack[-1][0]:
            out += _expression(token[2], scope, stack[-1][1])
    return out + text[position:]


def _expression(text: str, scope: dict[str, Any], dot: Any) -> str:
    if found := re.fullmatch(r"toYaml \. \| nindent (\d+)", text):
        block = yaml.safe_dump(dot, sort_keys=True).rstrip().splitlines()
        return "".join(f"\n{' ' * int(found[1])}{line}" for line in block)
    path, _, function = text.partition(" | ")
    value = str(_value(path, scope, dot))
    assert function in ("", "quote"), text
    return json.dumps(value) if function else value


def _value(path: str, scope: dict[str, Any], dot: Any) -> Any:
    if path == ".":
        return dot
    found: Any = scope
    for step in path.removeprefix(".").split("."):
        found = found[step]
    return found
