"""What PostgreSQL itself says of declared parameters, before anybody takes them up. Pure; platforms know how to ask it.

Patroni leaves out a parameter it does not know or whose value is out of range, and only logs it: a typing error would
stay unseen. A library that is not there would keep members from starting. ``postgres -C`` reads parameters exactly as
a server does, needs no data directory, and takes about 2 ms.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pgherd.model.spec import ParameterValue

QUESTION = ("-C", "port", "--config-file=/dev/null", "-D", "/", "-c")
"""arguments of ``postgres`` before a setting. -C must be the first: only then may root ask"""
LIBDIR = "$libdir"
"""where PostgreSQL keeps its own libraries"""
SEARCHED = "dynamic_library_path"
"""the parameter that says where else libraries may be"""
_MARKS = ("FATAL:", "DETAIL:", "HINT:")
_LIBRARIES = {
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": f"{LIBDIR}/plugins/",
}
"""parameters that name libraries without which nobody starts or connects, and the only folder they may be in"""


def path_of(name: str) -> str:
    """A parameter's path in the declaration."""
    return f"spec.postgres.parameters.{name}"


def changed(
    before: Mapping[str, ParameterValue], now: Mapping[str, ParameterValue]
) -> dict[str, ParameterValue]:
    """Parameters that are new or have another value, and what these can't be judged without. What is left out again is
    PostgreSQL's default. Libraries that are looked for elsewhere are others."""
    known, wanted = _by_name(before), _by_name(now)
    found = {name for name, value in wanted.items() if known.get(name) != value}
    if known.get(SEARCHED) != wanted.get(SEARCHED):
        found |= _LIBRARIES.keys() & wanted.keys()
    if found:
        found.add(SEARCHED)
    return {name: value for name, value in now.items() if name.lower() in found}


def together(
    before: Mapping[str, ParameterValue], now: Mapping[str, ParameterValue], held: Collection[str]
) -> list[str]:
    """Changed parameters that have to stay as they were where some do: libraries stay where they are looked for.

    :param held: those that do, as they are named now
    """
    known, wanted = _by_name(before), _by_name(now)
    linked = {SEARCHED, *_LIBRARIES}
    stays = {name.lower() for name in held}
    if known.get(SEARCHED) == wanted.get(SEARCHED) or stays.isdisjoint(linked):
        return list(held)
    names = {name.lower(): name for name in (*before, *now)}
    moved = (name for name in sorted(linked - stays) if known.get(name) != wanted.get(name))
    return [*held, *(names[name] for name in moved)]


def setting(name: str, value: ParameterValue) -> str:
    """A parameter as an argument of ``postgres -c``."""
    return f"{name}={_text(value)}"


def refusal(said: str, value: ParameterValue) -> str:
    """Why PostgreSQL does not take a value, in one line.

    :param said: what it wrote
    """
    told = [line.split(mark, 1)[1].strip() for line in said.splitlines() for mark in _MARKS if mark in line]
    return "; ".join(told) or f"PostgreSQL refuses {_text(value)!r}"


def libraries(name: str, value: ParameterValue) -> Mapping[str, str]:
    """The libraries that a parameter names, each with the path where PostgreSQL would look for it (:data:`LIBDIR` is to
    be replaced, an ending may follow); other paths than the usual ones are left to it."""
    folder = _LIBRARIES.get(name.lower())
    if folder is None:
        return {}
    named = filter(None, (item.strip().strip('"') for item in _text(value).split(",")))
    return {each: f"{folder or f'{LIBDIR}/'}{each.removesuffix('.so')}" for each in named if "/" not in each}


def absent(library: str) -> str:
    """What to say of a library that is not there."""
    return f"there is no library {library} here"


def _by_name(parameters: Mapping[str, ParameterValue]) -> dict[str, str]:
    return {name.lower(): _text(value) for name, value in parameters.items()}


def _text(value: ParameterValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
