"""pg_hba lines are judged as PostgreSQL would: a wrong one would keep every server from starting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherd.model.spec_hba import hba_lines, hba_methods, hba_problems, plain_text_problems
from tests.support.hba import RIGHT, WRONG


@pytest.mark.parametrize("line", RIGHT)
def test_a_line_that_postgresql_reads_is_accepted(line: str) -> None:
    assert hba_problems(line) == []


@pytest.mark.parametrize(("line", "expected"), WRONG)
def test_a_line_that_postgresql_would_not_read_is_refused_with_its_number(line: str, expected: str) -> None:
    (problem,) = hba_problems(f"# first\n\nlocal all all peer\n{line}\n")
    assert problem.startswith("line 4 ")
    assert expected in problem


@pytest.mark.parametrize(
    "line", ["host @databases @users all md5", "host all all @addresses md5", "local all all peer @options"]
)
def test_what_is_in_a_file_of_the_server_is_taken_for_right(line: str) -> None:
    assert hba_problems(line) == []


def test_a_method_that_the_declared_version_does_not_know_is_refused() -> None:
    line = "host all all all oauth issuer=https://example.com scope=openid"
    assert hba_problems(line) == hba_problems(line, 18) == []
    assert hba_problems(line, 17) == [
        "line 1 has authentication method oauth, which PostgreSQL 17 does not know yet"
    ]


def test_every_wrong_line_is_told() -> None:
    problems = hba_problems("host all all 10.0.0.0/99 md5\nhost all all all md5\nhst\n")
    assert [problem.split(" ")[1] for problem in problems] == ["1", "3"]


def test_a_server_gets_a_line_for_each_rule() -> None:
    text = (
        "# ours\n\nhost all all \\\n  10.0.0.0/8 md5  \n # not \\\n this\n local all all peer # but this \\"
    )
    assert hba_lines(text) == ["host all all   10.0.0.0/8 md5", "local all all peer # but this"]


def test_a_rule_after_a_backslash_and_a_blank_is_there() -> None:
    assert hba_lines("# see \\\\srv\\x\\ \nhost all all all reject\n") == ["host all all all reject"]
    assert hba_lines("# see \\\\srv\\x\\\r\nhost all all all reject\n") == []


def test_a_rule_that_ends_with_a_backslash_does_not_take_the_next_one_in() -> None:
    for comment in ("# a\\ \n", "# a\\\\\n\n"):
        first, second = hba_lines(f"local all all peer {comment}host all all all reject")
        assert hba_lines(f"{first}\n{second}\n") == [first, second]
        assert second == "host all all all reject"


def test_only_a_line_feed_ends_a_line() -> None:
    name = 'host all "a\u2028b\x85c\x0bd" all md5'
    assert hba_lines(f"{name}\r\nlocal all all peer") == [name, "local all all peer"]


def test_a_wrong_mask_of_any_length_is_told_in_a_sentence() -> None:
    (problem,) = hba_problems(f"host all all 10.0.0.0/{'9' * 100_000} md5")
    assert len(problem) < 200


def test_a_token_needs_a_library_that_validates_it() -> None:
    def told(more: str, **parameters: str) -> list[str]:
        return hba_problems(f"host all all all oauth issuer=https://x scope=y {more}", 18, parameters)

    [problem] = told("")
    assert problem.endswith(
        "has method oauth, which needs a library that validates tokens: name it in "
        "postgres.parameters.oauth_validator_libraries"
    )
    assert told("", oauth_validator_libraries=" , ")
    assert told("", OAuth_Validator_Libraries="own") == []
    assert told("validator=own", oauth_validator_libraries="other, own") == []
    [problem] = told("validator=own", oauth_validator_libraries="other")
    assert "validator=own, a library that" in problem
    [problem] = told("", oauth_validator_libraries="other,own")
    assert "needs option validator=..." in problem
    assert hba_problems("host all all all md5", 18, {}) == []


def test_the_method_of_each_line_is_known() -> None:
    text = "# c\nhost all all 10.0.0.0 255.0.0.0 ldap ldapprefix=a\nlocal all all @f\nnonsense\nlocal all all peer"
    assert hba_methods(text) == [(2, "ldap"), (5, "peer")]


@pytest.mark.parametrize("kind", ["hostnossl", "hostgssenc"])
def test_lines_for_clients_without_tls_are_told_unless_they_reject(kind: str) -> None:
    text = f"host all all all md5\n{kind} all all 10.0.0.0 255.0.0.0 md5\n{kind} all all all reject"
    assert plain_text_problems(text) == [
        "line 2 is for connections without TLS, which members refuse: write hostssl, or leave the line out"
    ]


@given(st.text(alphabet='host al10./8:%m5",#@\\=\t\n', max_size=80))
def test_any_text_is_judged(text: str) -> None:
    hba_problems(text)
    plain_text_problems(text)
