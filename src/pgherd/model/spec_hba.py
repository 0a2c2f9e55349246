"""Which pg_hba lines a declaration may carry: those that PostgreSQL 15 to 18 would read, by its own rules.

One wrong line keeps PostgreSQL from reading the whole file. A running server then keeps its old rules, silently, and
one that is started does not come up: better refused before. What only a server could know (a library, a file, a
regular expression, the name of a host) is taken for right.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

HBA_PATH = "spec.postgres.hostBasedAuthentication"
"""where a declaration has them"""
_TYPES = {"local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"}
_METHODS = {
    *("trust", "reject", "scram-sha-256", "md5", "password", "gss", "ident", "peer", "ldap", "radius"),
    *("cert", "pam", "oauth"),
}
_ELSEWHERE = {"sspi": "Windows", "bsd": "OpenBSD"}
_SINCE = {"oauth": 18}

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "map": ("ident", "peer", "gss", "cert", "oauth"),
    "pamservice": ("pam",),
    "pam_use_hostname": ("pam",),
    **dict.fromkeys(
        (
            *("ldapurl", "ldaptls", "ldapscheme", "ldapserver", "ldapport", "ldapbinddn", "ldapbindpasswd"),
            *("ldapsearchattribute", "ldapsearchfilter", "ldapbasedn", "ldapprefix", "ldapsuffix"),
        ),
        ("ldap",),
    ),
    "krb_realm": ("gss",),
    "include_realm": ("gss",),
    **dict.fromkeys(("radiusservers", "radiusports", "radiussecrets", "radiusidentifiers"), ("radius",)),
    **dict.fromkeys(("issuer", "scope", "validator", "delegate_ident_mapping"), ("oauth",)),
}
"""of what every method knows, which methods know it; those of a client's certificate go with every method"""
_OF_CERTIFICATES: Mapping[str, tuple[str, ...]] = {
    "clientcert": ("verify-ca", "verify-full"),
    "clientname": ("CN", "DN"),
}
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "radius": ("radiusservers", "radiussecrets"),
    "oauth": ("issuer", "scope"),
}
_SEARCH = ("ldapbasedn", "ldapbinddn", "ldapbindpasswd", "ldapsearchattribute", "ldapsearchfilter")

_BLANK = " \t\r"
_BITS = re.compile(r"\s*([+-]?)0*([0-9]{1,3})", re.ASCII)
_NOT_ZERO = re.compile(r"\s*[+-]?0*[1-9]", re.ASCII)
_OCTETS = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+", re.ASCII)
_VALIDATORS = "oauth_validator_libraries"
_MOST_SHOWN = 60


@dataclass(frozen=True)
class _Token:
    """A word of a line, without its quotes."""

    text: str
    quoted: bool

    @property
    def is_file(self) -> bool:
        """Whether it stands for what is in a file, which only the server can read."""
        return not self.quoted and len(self.text) > 1 and self.text[0] == "@"

    def is_word(self, *words: str) -> bool:
        """Whether it is one of these keywords: in quotes it would be a name."""
        return not self.quoted and self.text in words


_Field = Sequence[_Token]


class _WrongLine(Exception):
    """What is wrong with a line."""


def hba_lines(text: str) -> list[str]:
    """The lines as a server gets them: one for each rule, nothing for comments."""
    return [line for _, line in _numbered(text)]


def hba_line_number(text: str, line: str) -> int | None:
    """Which line of these a server got as this one; None: none of them.

    :param line: as it is in the server's file
    """
    return next((number for number, rule in _numbered(text) if rule.strip() == line.strip()), None)


def hba_problems(
    text: str, major: int | None = None, parameters: Mapping[str, object] | None = None
) -> list[str]:
    """What PostgreSQL would refuse in these pg_hba lines, one sentence each.

    :param major: PostgreSQL's major version; None: not known
    :param parameters: those of the server; None: not known
    """
    problems = []
    for number, line in _numbered(text):
        fields = _fields(line)
        try:
            if fields:
                _check(fields, major, parameters)
        except _WrongLine as wrong:
            problems.append(f"line {number} {wrong}")
    return problems


def hba_methods(text: str) -> list[tuple[int, str]]:
    """The number and the authentication method of each line that is right and names it itself."""
    found = []
    for number, line in _numbered(text):
        fields = _fields(line)
        with contextlib.suppress(_WrongLine):
            if fields and (told := _check(fields, None, None)) is not None:
                found.append((number, told))
    return found


def plain_text_problems(text: str) -> list[str]:
    """Which of these lines, right by themselves, are for clients without TLS only; a sentence each."""
    return [
        f"line {number} is for connections without TLS, which members refuse: write hostssl, or leave the line out"
        for number, line in _numbered(text)
        if (fields := _fields(line))
        and fields[0][0].text in {"hostnossl", "hostgssenc"}
        and not any(field[0].text == "reject" for field in fields[4:6])
    ]


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    """Each rule with the number of its first line; a backslash that is a line's last character joins it with the next.

    Only where PostgreSQL sees the end of a line is one: the name of a user may hold any other separator.
    """
    first, whole, joined = 1, "", 0
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        whole = (whole + line).rstrip("\r")
        # One that was left before a continuation is none at the end of an empty line that follows.
        if len(whole) > joined and whole.endswith("\\"):
            whole = whole[:-1]
            joined = len(whole)
            if number < len(lines):
                continue
        rule = whole.strip()
        if rule and not rule.startswith("#"):
            # On a line of its own it must not go on with the next rule.
            yield first, f"{rule} " if rule.endswith("\\") else rule
        first, whole, joined = number + 1, "", 0


def _fields(line: str) -> list[_Field]:
    """The line's fields as PostgreSQL splits it: by blanks, each a list separated by commas."""
    fields: list[_Field] = []
    field: list[_Token] = []
    at = 0
    while True:
        token, at, more = _token(line, at)
        if token is not None:
            field.append(token)
        if token is None or not more:
            if field:
                fields.append(field)
            field = []
        if token is None:
            return fields


def _token(line: str, at: int) -> tuple[_Token | None, int, bool]:
    """The token from here on, where the next one may begin, and whether a comma says that the list goes on."""
    while at < len(line) and line[at] in _BLANK + ",":
        at += 1
    text, in_quotes, was_quote, quoted, initial = "", False, False, False, False
    while at < len(line) and (in_quotes or line[at] not in _BLANK):
        character = line[at]
        if not in_quotes and character == "#":
            at = len(line)
            break
        if not in_quotes and character == ",":
            return _Token(text, initial), at + 1, True
        if character != '"' or was_quote:
            text += character
        # Two quotes within quotes are one of the text.
        was_quote = in_quotes and character == '"' and not was_quote
        if character == '"':
            in_quotes, quoted, initial = not in_quotes, True, initial or not text
        at += 1
    return (_Token(text, initial) if text or quoted else None), at, False


def _check(
    fields: Sequence[_Field], major: int | None, parameters: Mapping[str, object] | None
) -> str | None:
    """The line's method; None where a file says it."""
    kind = fields[0][0]
    if any(token.is_file for field in (fields[0], *fields[3:]) for token in field):
        return None
    if len(fields[0]) > 1 or kind.text not in _TYPES:
        raise _WrongLine(f"must start with local, host or hostssl, got {_shown(fields[0])}")
    needed = 4 if kind.text == "local" else 5
    if len(fields) < needed:
        address = ", address" if needed == 5 else ""
        raise _WrongLine(f"needs {needed} fields (type, database, user{address}, method), got {len(fields)}")
    rest = fields[3:] if kind.text == "local" else _after_address(fields[3:])
    method = _single(rest[0], "authentication method").text
    _check_method(kind.text, method, major)
    options = _options(rest[1:])
    _check_options(kind.text, method, options)
    if method == "oauth" and parameters is not None:
        _check_validator(options.get("validator"), parameters)
    return method


def _after_address(fields: Sequence[_Field]) -> Sequence[_Field]:
    """What comes after the address, and its mask where that stands by itself."""
    token = _single(fields[0], "address")
    if token.is_word("all", "samehost", "samenet"):
        return fields[1:]
    address, slash, bits = token.text.partition("/")
    version = _ip_version(address)
    if slash:
        if version is None:
            raise _WrongLine(f"has an address {token.text} that is none: a mask follows an IP address only")
        most = 32 if version == 4 else 128
        number = _BITS.fullmatch(bits)
        if number is None or not 0 <= int("".join(number.groups())) <= most:
            raise _WrongLine(f"has a wrong mask in {_bounded(token.text)}: must be from /0 to /{most}")
        return fields[1:]
    if version is None:
        return fields[1:]
    whole = f"{address}/{32 if version == 4 else 128}"
    mask = _single(fields[1], "mask").text
    if (of_mask := _ip_version(mask)) is None:
        raise _WrongLine(f"has no mask after {address}: for this one address write {whole}")
    if of_mask != version:
        raise _WrongLine(f"has a mask {mask} that is no IPv{version} mask: for {address} alone write {whole}")
    if len(fields) < 3:
        raise _WrongLine(f"needs a method after the mask {mask}")
    return fields[2:]


def _ip_version(text: str) -> int | None:
    """4, 6, or None for what PostgreSQL takes for the name of a host."""
    if _is_ipv4(text):
        return 4
    try:
        # Which interfaces there are (after %), only the server knows.
        ipaddress.IPv6Address(text.partition("%")[0])
    except ValueError:
        return None
    return 6


def _is_ipv4(text: str) -> bool:
    """Whether it is an address as the C library reads it: also of fewer parts, octal and hexadecimal."""
    parts = text.split(".")
    if len(parts) > 4 or not all(_OCTETS.fullmatch(part) and len(part) < 20 for part in parts):
        return False
    try:
        *first, last = (int(part, 8 if re.fullmatch("0[0-9]+", part) else 0) for part in parts)
    except ValueError:
        return False
    return all(each < 256 for each in first) and last < 256 ** (4 - len(first))


def _check_method(kind: str, method: str, major: int | None) -> None:
    if method in _ELSEWHERE:
        raise _WrongLine(
            f"has authentication method {method}, which is for {_ELSEWHERE[method]} only: take another"
        )
    if method not in _METHODS:
        raise _WrongLine(f"has an unknown authentication method {method}")
    if major is not None and major < _SINCE.get(method, 0):
        raise _WrongLine(f"has authentication method {method}, which PostgreSQL {major} does not know yet")
    if method == "peer" and kind != "local":
        raise _WrongLine(
            "has method peer, which goes with local only: for connections by network take another"
        )
    if method == "gss" and kind == "local":
        raise _WrongLine("has method gss, which does not go with local: take peer or scram-sha-256")
    if method == "cert" and kind != "hostssl":
        raise _WrongLine(f"has method cert, which goes with hostssl only, not with {kind}")


def _options(fields: Sequence[_Field]) -> dict[str, str]:
    options = {}
    for token in (token for field in fields for token in field):
        name, equals, value = token.text.partition("=")
        if not equals:
            raise _WrongLine(f"has {token.text} after the method, where only options name=value may stand")
        options[name] = value
        _check_value(name, value)
    return options


def _check_value(name: str, value: str) -> None:
    if (wanted := _OF_CERTIFICATES.get(name)) is not None and value not in wanted:
        raise _WrongLine(f"has option {name}={value}: must be {' or '.join(wanted)}")
    # Names in a list may be quoted once more: then commas and digits say nothing.
    if name in {"ldapport", "radiusports"} and '"' not in value:
        ports = _listed(value) if name == "radiusports" else [value]
        if not all(_NOT_ZERO.match(port) for port in ports):
            raise _WrongLine(f"has option {name}={value}: must be a port's number")


def _check_options(kind: str, method: str, options: Mapping[str, str]) -> None:
    for name in options:
        if name in _OF_CERTIFICATES:
            if kind != "hostssl":
                raise _WrongLine(f"has option {name}, which goes with hostssl only, not with {kind}")
        elif name not in _OPTIONS:
            raise _WrongLine(f"has an unknown option {name}")
        elif method not in _OPTIONS[name]:
            known = ", ".join(_OPTIONS[name])
            raise _WrongLine(f"has option {name}, which goes with method {known} only, not with {method}")
    for name in _NEEDED.get(method, ()):
        if not options.get(name) and not (method == "oauth" and name in options):
            raise _WrongLine(f"needs option {name}=... for method {method}")
    if method == "cert" and options.get("clientcert", "verify-full") != "verify-full":
        raise _WrongLine("has option clientcert=verify-ca: method cert goes with verify-full only")
    if method == "oauth" and options.get("delegate_ident_mapping") == "1" and "map" in options:
        raise _WrongLine("has options map and delegate_ident_mapping: only one of them may be given")
    if method == "ldap":
        _check_ldap(options)
    if method == "radius":
        _check_radius(options)


def _check_validator(validator: str | None, parameters: Mapping[str, object]) -> None:
    """Refuse what no library may validate: which one may, a parameter says."""
    declared = next((str(value) for name, value in parameters.items() if name.lower() == _VALIDATORS), "")
    libraries = [library.strip() for library in declared.split(",") if library.strip()]
    way_out = f"postgres.parameters.{_VALIDATORS}"
    if not libraries:
        raise _WrongLine(
            f"has method oauth, which needs a library that validates tokens: name it in {way_out}"
        )
    if '"' in declared:
        return
    if validator is None and len(libraries) > 1:
        raise _WrongLine(f"needs option validator=... for method oauth: {way_out} names several libraries")
    if validator is not None and validator not in libraries:
        raise _WrongLine(
            f"has option validator={validator}, a library that {way_out} does not name: add it there"
        )


def _check_ldap(options: Mapping[str, str]) -> None:
    # A URL may hold any of the others.
    search = [name for name in _SEARCH if name in options]
    if {"ldapprefix", "ldapsuffix"} & set(options):
        if search:
            raise _WrongLine(f"has option {search[0]}, which does not go with ldapprefix and ldapsuffix")
    elif not {"ldapbasedn", "ldapurl"} & set(options):
        raise _WrongLine("needs option ldapbasedn, ldapprefix or ldapsuffix for method ldap")
    if {"ldapsearchattribute", "ldapsearchfilter"} <= set(options):
        raise _WrongLine(
            "has options ldapsearchattribute and ldapsearchfilter: only one of them may be given"
        )


def _check_radius(options: Mapping[str, str]) -> None:
    if any('"' in value for value in options.values()):
        return
    servers = len(_listed(options["radiusservers"]))
    for name in ("radiussecrets", "radiusports", "radiusidentifiers"):
        if options.get(name) and len(_listed(options[name])) not in {1, servers}:
            raise _WrongLine(f"has option {name} with another number of values than radiusservers has")


def _listed(value: str) -> list[str]:
    return value.split(",") if value.strip() else []


def _single(field: _Field, what: str) -> _Token:
    if len(field) > 1:
        raise _WrongLine(f"has several values where one {what} must stand: {_shown(field)}")
    return field[0]


def _bounded(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _shown(field: _Field) -> str:
    return ",".join(token.text for token in field)
