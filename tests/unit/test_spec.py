"""Reading, checking and writing declarations."""

from __future__ import annotations

import contextlib
from datetime import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherd.errors import BadInput
from pgherd.model import spec
from pgherd.model.spec import PostgresCluster
from pgherd.model.spec_models import MAX_NAME, MAX_SEGMENTS, MAX_STANDBYS

HEADER = "apiVersion: pgherd.io/v1alpha1\nkind: PostgresCluster\nmetadata: {name: shop}\n"


def declared(body: str = "", *, platform: str = "local") -> PostgresCluster:
    return spec.load(HEADER + body, source="shop.yaml", platform=platform)


def problems(text: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        spec.load(text, source="shop.yaml")
    return list(caught.value.problems)


def test_a_name_is_enough() -> None:
    cluster = declared()
    assert (cluster.metadata.name, cluster.spec.engine, cluster.spec.database) == ("shop", "fdw", "app")
    assert (cluster.spec.segments.count, cluster.spec.coordinator.standbys) == (2, 1)
    assert cluster.spec.shard_count == 32


def test_json_is_read_too() -> None:
    text = '{"apiVersion": "pgherd.io/v1alpha1", "kind": "PostgresCluster", "metadata": {"name": "shop"}}'
    assert spec.load(text, source="-") == declared()


def test_the_example_of_the_reference_is_read() -> None:
    cluster = declared(
        """
spec:
  engine: fdw
  database: app
  shardCount: 32
  durability: synchronous
  postgres:
    version: 17
    parameters: {work_mem: 64MB, max_connections: 200, random_page_cost: 1.1, jit: off}
    hostBasedAuthentication: |
      # who and from where
      host all app 10.0.0.0/8 scram-sha-256
      host "a b",c d 10.0.0.0 255.0.0.0 md5
      local all all peer map=x
  coordinator:
    resources: {cpu: 1, memory: 2Gi}
    storage: {size: 10Gi, storageClassName: standard}
    nodeSelector: {disk: ssd}
    tolerations: [{key: dedicated, operator: Exists}]
  segments: {count: 4, standbys: 0, resources: {cpu: 500m}}
  expansion: {mode: online, parallelMoves: 2, window: {start: 22:00, end: "06:00"}, paused: false}
"""
    )
    assert cluster.spec.postgres.parameters == {
        "work_mem": "64MB",
        "max_connections": 200,
        "random_page_cost": 1.1,
        "jit": False,
    }
    assert cluster.spec.expansion.window is not None
    assert cluster.spec.expansion.window.start == "22:00"
    assert cluster.spec.coordinator.resources.cpu == "1"
    assert cluster.spec.coordinator.tolerations[0].key == "dedicated"
    assert spec.load(spec.dump(cluster), source="dump") == cluster


def test_a_field_without_a_value_is_left_out() -> None:
    assert declared("spec:\n  segments:\n    count:\n  postgres:\n    parameters:\n") == declared()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("spec: {segments: {count: 0}}", "spec.segments.count: must be >= 1, got 0"),
        ("spec: {segments: {count: 257}, shardCount: 300}", "spec.segments.count: must be <= 256, got 257"),
        ("spec: {segments: {count: two}}", "spec.segments.count: must be a whole number, got 'two'"),
        ("spec: {segments: {count: 2.5}}", "spec.segments.count: must be a whole number, got 2.5"),
        ("spec: {segments: {count: '2'}}", "spec.segments.count: must be a whole number, got '2'"),
        ("spec: {segments: {count: true}}", "spec.segments.count: must be a whole number, got true"),
        (
            "spec: {segments: {count: 9}, shardCount: 8}",
            "spec.segments.count: must be <= spec.shardCount (8), got 9",
        ),
        ("spec: {segments: {cuont: 1}}", "spec.segments.cuont: unknown field; did you mean count?"),
        ("spec: {shard_count: 1}", "spec.shard_count: unknown field; did you mean shardCount?"),
        ("spec: {segmentz: {}}", "spec.segmentz: unknown field; did you mean segments?"),
        ("spec: {expansion: {zzz: 1}}", "unknown field; known here: mode, parallelMoves, window, paused"),
        ("spec: 5", "spec: must be a mapping, got 5"),
        ("spec: {coordinator: []}", "spec.coordinator: must be a mapping, got a list"),
        ("spec: {engine: oracle}", "spec.engine: must be one of citus, fdw, got 'oracle'"),
        (
            "spec: {durability: off}",
            "spec.durability: must be one of asynchronous, quorum, synchronous, got false",
        ),
        ("spec: {database: postgres}", "spec.database: is reserved: choose another name, got 'postgres'"),
        ("spec: {database: pgherd}", "spec.database: is reserved"),
        ("spec: {database: replicator}", "spec.database: is reserved"),
        ("spec: {database: pg_app}", "spec.database: is reserved"),
        ("spec: {database: App}", "spec.database: must be 1 to 63 lower-case letters"),
        ("spec: {postgres: {version: 9}}", "spec.postgres.version: must be >= 15, got 9"),
        ("spec: {postgres: {version: 19}}", "spec.postgres.version: must be <= 18, got 19"),
        ("spec: {postgres: {parameters: {port: 1}}}", "spec.postgres.parameters.port: is pgherd's to set"),
        ("spec: {postgres: {parameters: {PORT: 1}}}", "spec.postgres.parameters.PORT: is pgherd's to set"),
        ("spec: {postgres: {parameters: {data_directory: /}}}", "is pgherd's to set"),
        ("spec: {postgres: {parameters: {listen_addresses: '*'}}}", "is pgherd's to set"),
        ("spec: {postgres: {parameters: {hot_standby: off}}}", "is pgherd's to set"),
        ("spec: {postgres: {parameters: {synchronous_standby_names: x}}}", "is pgherd's to set"),
        ("spec: {postgres: {parameters: {wal_level: replica}}}", "wal_level: must stay logical"),
        ("spec: {postgres: {parameters: {fsync: off}}}", "fsync: must stay on"),
        ("spec: {postgres: {parameters: {fsync: 'OFF'}}}", "fsync: must stay on"),
        ("spec: {postgres: {parameters: {max_wal_senders: 2}}}", "must be a whole number >= 10"),
        ("spec: {postgres: {parameters: {synchronous_commit: off}}}", "or set spec.durability: asynchronous"),
        ("spec: {postgres: {parameters: {work_mem: }}}", "work_mem: must be text, a number or on/off"),
        ("spec: {postgres: {parameters: {work_mem: [1]}}}", "work_mem: must be text, a number or on/off"),
        ("spec: {postgres: {parameters: {work_mem: 1, Work_Mem: 2}}}", "is the same parameter as work_mem"),
        ("spec: {postgres: {parameters: {'a b': 1}}}", "is not the name of a PostgreSQL parameter"),
        ('spec: {postgres: {parameters: {a: "1\\nport = 2"}}}', "must be one line"),
        (
            "spec: {postgres: {hostBasedAuthentication: hst all all all md5}}",
            "line 1 must start with local, host",
        ),
        ("spec: {postgres: {hostBasedAuthentication: host all all md5}}", "line 1 needs 5 fields"),
        (
            "spec: {postgres: {hostBasedAuthentication: host all all all mdx}}",
            "unknown authentication method mdx",
        ),
        (
            "spec: {segments: {storage: {size: 5}}}",
            "spec.segments.storage.size: must be between 256Mi and 1Pi",
        ),
        (
            "spec: {segments: {storage: {size: big}}}",
            "must be a quantity of bytes such as 512Mi or 10Gi, got 'big'",
        ),
        ("spec: {segments: {storage: {size: -1Gi}}}", "must be a quantity of bytes"),
        ("spec: {segments: {resources: {memory: 1Mi}}}", "memory: must be between 128Mi and 24Ti, got '1Mi'"),
        ("spec: {segments: {resources: {cpu: 1m}}}", "cpu: must be between 50m and 512, got '1m'"),
        ("spec: {segments: {resources: {cpu: 0.5}}}", "cpu: must be quoted: write '0.5'"),
        ("spec: {segments: {resources: {cpu: true}}}", "cpu: must be text, got true"),
        ("spec: {segments: {antiAffinity: no}}", "must be one of none, preferred, required, got false"),
        ("spec: {segments: {tolerations: [{kee: 1}]}}", "spec.segments.tolerations[0].kee: unknown field"),
        ("spec: {segments: {tolerations: 1}}", "spec.segments.tolerations: must be a list, got 1"),
        (
            "spec: {expansion: {mode: offline}}",
            "spec.expansion.mode: must be one of blocking, clone, online, got 'offline'",
        ),
        (
            "spec: {engine: fdw, expansion: {mode: clone}}",
            "spec.expansion.mode: clone needs spec.engine citus: use online or blocking",
        ),
        ("spec: {expansion: {parallelMoves: 0}}", "spec.expansion.parallelMoves: must be >= 1, got 0"),
        ("spec: {expansion: {paused: 1}}", "spec.expansion.paused: must be true or false, got 1"),
        ("spec: {expansion: {window: {start: 22:00}}}", "spec.expansion.window.end: is required"),
        (
            "spec: {expansion: {window: {start: 24:00, end: 01:00}}}",
            "window.start: must be a time of day HH:MM",
        ),
        ("spec: {expansion: {window: {start: 1, end: 01:00}}}", "window.start: must be text, got 1"),
        ("spec: {expansion: {window: {start: 01:00, end: 01:00}}}", "window: start and end must differ"),
        ("spec: {deletionPolicy: Keep}", "spec.deletionPolicy: must be one of Delete, Retain, got 'Keep'"),
        ("status: {}", "status: unknown field; known here: apiVersion, kind, metadata, spec"),
    ],
)
def test_a_wrong_field_is_refused_with_its_path(body: str, expected: str) -> None:
    (problem,) = problems(HEADER + body)
    assert expected in problem
    assert problem.endswith("(shop.yaml:4)")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Shop", "must be lower-case letters"),
        ("9shop", "must be lower-case letters"),
        ("shop-", "must be lower-case letters"),
        ("a.b", "must be lower-case letters"),
        ("../x", "must be lower-case letters"),
        ("''", "must be lower-case letters"),
        ("a" * 41, "must be at most 40 characters, has 41"),
        ("shop-coordinator", "must not end in"),
        ("shop-segment-1", "must not end in"),
        ("shop-ro", "must not end in"),
        ("shop-ca", "must not end in"),
        ("shop-segment-2-leader", "must not end in"),
        ("shop-0-sync", "must not end in"),
        ("12", "must be text, got 12"),
        ("on", "must be text, got true"),
    ],
)
def test_a_bad_name_is_refused(name: str, expected: str) -> None:
    (problem,) = problems(HEADER.replace("shop", name))
    assert problem.startswith(f"metadata.name: {expected}")


def test_the_longest_name_leaves_room_for_everything_made_of_it() -> None:
    name = "a" * MAX_NAME
    stateful_set_with_revision = f"{name}-segment-{MAX_SEGMENTS}-" + "x" * 10
    member = f"{name}-segment-{MAX_SEGMENTS}-{MAX_STANDBYS}"
    assert max(len(stateful_set_with_revision), len(member)) <= 63


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    found = problems(
        """apiVersion: pgherd.io/v1alpha1
kind: PostgresCluster
metadata: {name: Shop}
spec:
  postgres: {parameters: {port: 5432, data_directory: /x}}
  segments: {count: 0, standby: 1}
  expansion: {window: {start: 9, end: never}}
"""
    )
    paths = [problem.split(":")[0] for problem in found]
    assert paths[0] == "metadata.name"
    assert set(paths[1:3]) == {"spec.postgres.parameters.port", "spec.postgres.parameters.data_directory"}
    assert set(paths[3:5]) == {"spec.segments.count", "spec.segments.standby"}
    assert set(paths[5:]) == {"spec.expansion.window.start", "spec.expansion.window.end"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "shop.yaml: nothing in it"),
        ("# only a comment\n", "shop.yaml: nothing in it"),
        ("---\n", "shop.yaml: nothing in it"),
        ("5", "shop.yaml: must be a mapping"),
        ("- a", "shop.yaml: must be a mapping"),
        ("a: [1, 2", "shop.yaml:1:9: broken YAML: "),
        ("a: b\n  c: d\n", "shop.yaml:2:4: broken YAML: mapping values are not allowed here"),
        ("a:\n\t- b\n", "shop.yaml:2:1: broken YAML: "),
        ("a: \x00", "shop.yaml:1: broken YAML: a control character is not allowed"),
        (
            "a: !!python/object:os.system 5",
            "shop.yaml:1: broken YAML: python/object:os.system is not allowed",
        ),
        ("a: !secret 5", "shop.yaml:1: broken YAML: !secret is not allowed here"),
        ("a: *nowhere", "shop.yaml:1:4: broken YAML: found undefined alias"),
        ("a: " + "[" * 5000, "shop.yaml: broken YAML: nested too deeply"),
        ("a: &a [*a]", "shop.yaml: broken YAML: nested too deeply"),
        ("[1]: 2", "shop.yaml:1: a key must be text"),
        (HEADER + "---\n" + HEADER, "shop.yaml:5: a second document"),
        ("kind: PostgresCluster", "apiVersion: is required and must be pgherd.io/v1alpha1"),
        (HEADER.replace("v1alpha1", "v9"), "apiVersion: must be pgherd.io/v1alpha1, got 'pgherd.io/v9'"),
        (HEADER.replace("PostgresCluster", "Deployment"), "kind: must be PostgresCluster, got 'Deployment'"),
        (HEADER.replace("metadata: {name: shop}", "spec: {}"), "metadata: is required"),
        (HEADER + "spec: {}\nspec: {}", "spec: given twice (shop.yaml:5)"),
        (HEADER + "spec: {database: a, database: b}", "spec.database: given twice (shop.yaml:4)"),
        ("x" * 1_000_001, "shop.yaml: too long"),
    ],
)
def test_a_text_that_is_no_declaration_is_refused_in_one_line(text: str, expected: str) -> None:
    found = problems(text)
    assert found[0].startswith(expected), found
    assert all("\n" not in problem for problem in found)


def test_a_small_file_can_not_become_a_large_one() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert problems(bomb) == ["shop.yaml: too much in it: a declaration has at most 20000 values"]


def test_anchors_and_merge_keys_are_understood() -> None:
    cluster = declared(
        "spec:\n  coordinator: &group {standbys: 2, storage: {size: 1Gi}}\n"
        "  segments: {<<: *group, standbys: 0, count: 3}\n"
    )
    assert (cluster.spec.segments.standbys, cluster.spec.segments.storage.size) == (0, "1Gi")


@pytest.mark.parametrize(
    "value", ["22:00", "1e3", "on", "0777", "2026-01-01", "null", "~", "1_000", "=", "a: b", "#"]
)
def test_text_stays_text_through_a_dump(value: str) -> None:
    cluster = declared().model_copy(deep=True)
    cluster.metadata.annotations["note"] = value
    assert spec.load(spec.dump(cluster), source="dump") == cluster


@given(
    st.dictionaries(
        st.from_regex(r"\A[a-z]{1,6}\.[a-z]{1,6}\Z"),
        st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cn", "Cc"]), max_size=20)
        | st.integers(-(10**15), 10**15)
        | st.booleans()
        | st.floats(allow_nan=False, allow_infinity=False),
        max_size=4,
    )
)
def test_what_is_dumped_is_read_back(parameters: dict[str, str | int | float | bool]) -> None:
    cluster = declared()
    postgres = cluster.spec.postgres.model_copy(update={"parameters": parameters})
    cluster = cluster.model_copy(update={"spec": cluster.spec.model_copy(update={"postgres": postgres})})
    again = spec.load(spec.dump(cluster), source="dump")
    assert again == cluster
    assert [type(v) for v in again.spec.postgres.parameters.values()] == [
        type(v) for v in parameters.values()
    ]


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_never_a_traceback(text: str) -> None:
    with contextlib.suppress(BadInput):
        spec.load(text, source="x")


def test_platforms_differ_in_engine_and_resources() -> None:
    local, kubernetes = declared(), declared(platform="kubernetes")
    assert (local.spec.engine, kubernetes.spec.engine) == ("fdw", "citus")
    assert (local.spec.segments.resources.memory, kubernetes.spec.segments.resources.memory) == (None, "2Gi")
    assert declared("spec: {engine: citus}").spec.engine == "citus"
    assert spec.with_platform_defaults(kubernetes, "kubernetes") == kubernetes


def test_lines_for_clients_without_tls_are_refused_where_members_refuse_such_clients() -> None:
    body = "spec: {postgres: {hostBasedAuthentication: hostnossl all all all md5}}"
    assert declared(body).spec.postgres.host_based_authentication
    with pytest.raises(BadInput) as refused:
        declared(body, platform="kubernetes")
    (problem,) = refused.value.problems
    assert problem.startswith("spec.postgres.hostBasedAuthentication: line 1 is for connections without TLS")
    assert problem.endswith("write hostssl, or leave the line out")
    assert declared(body.replace("md5", "reject"), platform="kubernetes")


@pytest.mark.parametrize("line", ["hostnossl all all all md5", "host all all 10.0.0.0/99 md5"])
def test_lines_that_an_older_version_accepted_do_not_make_a_cluster_unreadable(line: str) -> None:
    raw = spec.to_mapping(declared(platform="kubernetes"))
    raw["spec"]["postgres"]["hostBasedAuthentication"] = line
    kept = spec.from_mapping(raw, platform="kubernetes", kept=True)
    assert kept.spec.postgres.host_based_authentication == line
    assert spec.load(spec.dump(kept), source="x", platform="kubernetes", kept=True) == kept
    with pytest.raises(BadInput, match="hostBasedAuthentication: line 1"):
        spec.from_mapping(raw, platform="kubernetes")


@pytest.mark.parametrize("line", ["hostnossl all all all md5", "host all all 10.0.0.0/99 md5"])
def test_lines_that_an_older_version_accepted_keep_nobody_from_scaling(line: str) -> None:
    raw = spec.to_mapping(declared())
    raw["spec"]["postgres"]["hostBasedAuthentication"] = line
    kept = spec.from_mapping(raw, kept=True)
    scaled = spec.with_segment_count(kept, 4)
    assert scaled.spec.segments.count == 4
    assert scaled.spec.postgres == kept.spec.postgres
    with pytest.raises(BadInput, match=r"spec\.segments\.count"):
        spec.with_segment_count(kept, -1)


def test_a_method_is_judged_by_the_version_that_is_declared() -> None:
    line = "host all all all oauth issuer=https://example.com scope=openid"
    rest = f"parameters: {{oauth_validator_libraries: own}}, hostBasedAuthentication: '{line}'"
    assert declared(f"spec: {{postgres: {{version: 18, {rest}}}}}")
    assert declared(f"spec: {{postgres: {{{rest}}}}}"), "what is installed says it"
    for version, platform in (("version: 17, ", "local"), ("", "kubernetes")):
        with pytest.raises(BadInput, match="which PostgreSQL 17 does not know yet"):
            declared(f"spec: {{postgres: {{{version}{rest}}}}}", platform=platform)
    assert declared(f"spec: {{postgres: {{version: 18, {rest}}}}}", platform="kubernetes")
    for platform in ("local", "kubernetes"):
        with pytest.raises(
            BadInput, match="hostBasedAuthentication: line 1 has method oauth, which needs a library"
        ):
            declared(
                f"spec: {{postgres: {{version: 18, hostBasedAuthentication: '{line}'}}}}", platform=platform
            )


def test_declared_resources_stay_beside_the_platforms() -> None:
    resources = declared(
        "spec: {segments: {resources: {memory: 8Gi}}}", platform="kubernetes"
    ).spec.segments.resources
    assert (resources.cpu, resources.memory) == ("1", "8Gi")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "engine: citus", "spec.engine: can't be changed: is 'fdw', got 'citus'"),
        ("", "database: other", "spec.database: can't be changed: is 'app', got 'other'"),
        ("", "shardCount: 64", "spec.shardCount: can't be changed: is 32, got 64"),
        (
            "postgres: {version: 17}",
            "postgres: {version: 18}",
            "spec.postgres.version: can't be changed: is 17, got 18",
        ),
        ("postgres: {version: 17}", "", "spec.postgres.version: can't be changed: is 17, got nothing"),
        ("", "postgres: {version: 16}", "spec.postgres.version: can't be changed: is nothing, got 16"),
        (
            "",
            "segments: {storage: {storageClassName: b}}",
            "spec.segments.storage.storageClassName: can't be changed: is nothing, got 'b'",
        ),
        (
            "",
            "segments: {storage: {size: 1Gi}}",
            "spec.segments.storage.size: may not shrink: is 10Gi, got 1Gi",
        ),
        (
            "segments: {storage: {storageClassName: a}}",
            "segments: {storage: {storageClassName: b}}",
            "spec.segments.storage.storageClassName: can't be changed: is 'a', got 'b'",
        ),
    ],
)
def test_what_can_not_change_is_refused(old: str, new: str, expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        spec.validate_change(declared(f"spec: {{{old}}}"), declared(f"spec: {{{new}}}"))
    assert list(caught.value.problems) == [expected]


@pytest.mark.parametrize(
    "new",
    [
        "segments: {count: 9}",
        "segments: {standbys: 0}",
        "durability: asynchronous",
        "segments: {storage: {size: 0.02Ti}}",
        "expansion: {paused: true}",
    ],
)
def test_what_can_change_passes(new: str) -> None:
    spec.validate_change(declared(), declared(f"spec: {{{new}}}"))


def test_the_version_may_be_written_down_where_it_is_the_one_that_runs() -> None:
    old, new = declared(), declared("spec: {postgres: {version: 18}}")
    spec.validate_change(old, new, version_is_there=True)
    with pytest.raises(BadInput):
        spec.validate_change(new, old, version_is_there=True)


def test_scaling_declares_another_count_within_bounds() -> None:
    assert spec.with_segment_count(declared(), 4).spec.segments.count == 4
    for count in (0, 33, 1000):
        with pytest.raises(BadInput, match=r"spec\.segments\.count: must be"):
            spec.with_segment_count(declared(), count)


@pytest.mark.parametrize(
    ("start", "end", "inside", "outside"),
    [
        ("09:00", "17:00", ["09:00", "16:59"], ["08:59", "17:00"]),
        ("22:00", "06:00", ["22:00", "03:00"], ["06:00", "12:00"]),
    ],
)
def test_a_window_may_span_midnight(start: str, end: str, inside: list[str], outside: list[str]) -> None:
    window = spec.Window(start=start, end=end)
    assert all(window.is_open(time.fromisoformat(now)) for now in inside)
    assert not any(window.is_open(time.fromisoformat(now)) for now in outside)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10Gi", 10 * 2**30), ("1.5Ki", 1536), ("512M", 512_000_000), ("1000", 1000), ("1k", 1000), ("0.5", 0)],
)
def test_quantities_of_bytes(text: str, expected: int) -> None:
    assert spec.parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "Gi", "10 Gi", "10gi", "-1", "1e3", "10GiB", "١"])
def test_what_is_no_quantity_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a quantity"):
        spec.parse_bytes(text)


def test_quantities_of_cores() -> None:
    assert [spec.parse_cpu(text) for text in ("2", "0.5", "500m")] == [2000, 500, 500]
    for text in ("0.0001", "1Gi", "x", "0.5m"):
        with pytest.raises(ValueError, match="must"):
            spec.parse_cpu(text)
