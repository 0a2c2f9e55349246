"""The DNS domain in which this Kubernetes has its Services, as the operator's own pod knows it.

A name that ends with it has so many dots that a resolver asks for it as it is, at once (``ndots: 5`` in every pod).
``MEMBER.SERVICE.NAMESPACE.svc`` is asked for with two other endings first, in vain: three questions, of which each
costs seconds while one of Kubernetes' name servers is on a node that has just died.
"""

from __future__ import annotations

from pathlib import Path

RESOLVER = Path("/etc/resolv.conf")
_SERVICES = "svc"
_known: list[str] = []
"""one at most; none: this process runs elsewhere, names are left to their resolvers"""


def learn(resolver: Path = RESOLVER) -> str | None:
    """Read it from what a pod's resolver is told; None: that does not say."""
    try:
        lines = [line.split() for line in resolver.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    searched = [name.strip(".") for line in lines if line[:1] == ["search"] for name in line[1:]]
    found = [name.removeprefix(f"{_SERVICES}.") for name in searched if name.startswith(f"{_SERVICES}.")]
    _known[:] = found[:1]
    return found[0] if found else None


def of(namespace: str) -> str:
    """How the names of a namespace's Services end."""
    return ".".join([namespace, _SERVICES, *_known])
