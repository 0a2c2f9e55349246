"""A script taken apart: a semicolon ends a statement only where it does."""

from __future__ import annotations

import pytest

from pgherd.operations.copy_definitions import plain
from pgherd.operations.statements import statements


@pytest.mark.parametrize(
    "one",
    [
        "SELECT ';'",
        "SELECT 'it''s; \\'",
        'SELECT 1 AS "a;""b"',
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $x$ SELECT 1; $$;$$ $x$",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT $1; $$",
        "CREATE OR REPLACE FUNCTION f(a int) RETURNS int\n BEGIN ATOMIC\n SELECT CASE WHEN a > 1 THEN 2 END;\n"
        " SELECT 3;\nEND",
        "CREATE RULE r AS ON INSERT TO t DO ALSO (UPDATE a SET b = 1; DELETE FROM c)",
        "SELECT 1 /* ; */ + 2 -- ;\n + 3",
    ],
)
def test_what_contains_semicolons_stays_one_statement(one: str) -> None:
    assert list(statements(f"{one};\n\n-- a word; or two\nSELECT 2;")) == [one, "-- a word; or two\nSELECT 2"]


def test_nothing_gives_no_statements() -> None:
    assert list(statements("\n-- only a comment;\n;;\n")) == []


DUMP = """\
--
-- PostgreSQL database dump
--

\\restrict abc
SET statement_timeout = 0;

--
-- Name: public; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA public;

--
-- Name: f(); Type: FUNCTION
--

CREATE FUNCTION public.f() RETURNS text
    LANGUAGE sql
    AS $$
SET is not a setting here
$$;

CREATE TABLE public.orders (
    id bigint NOT NULL,
    note text DEFAULT 'x
)'::text
)
PARTITION BY HASH (id);

CREATE TABLE public.log (
    id bigint NOT NULL
)
PARTITION BY HASH (id);

CREATE INDEX by_note ON ONLY public.orders USING btree (note);
CREATE TRIGGER pgherd_key BEFORE UPDATE OF id ON public.orders FOR EACH STATEMENT EXECUTE FUNCTION pgherd.refuse_key();
CREATE TRIGGER own BEFORE UPDATE ON public.log FOR EACH ROW EXECUTE FUNCTION public.f();

\\unrestrict abc
"""


def test_a_dump_loses_only_what_distributes_at_the_source() -> None:
    text = plain(DUMP, ["public.orders"])
    assert "statement_timeout" not in text
    assert "restrict" not in text
    assert "SCHEMA public" not in text.replace("Name: public; Type: SCHEMA", "")
    assert "SET is not a setting here" in text
    assert text.count("PARTITION BY HASH") == 1
    assert "ON public.orders USING" in text
    assert "pgherd_key" not in text
    assert "CREATE TRIGGER own" in text
