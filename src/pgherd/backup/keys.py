"""The keys and passphrases of a repository: which there have to be. Where they are is the platform's affair."""

from __future__ import annotations

from collections.abc import Mapping

from pgherd.errors import Refused
from pgherd.model.spec import RepositorySpec

WHERE = "spec.backup.secretRef"
KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "path": (),
    "volume": (),
    "s3": (("access-key-id", "secret-access-key"),),
    "gcs": (("service-account",),),
    "azure": (("account-key",), ("sas-token",)),
}
"""for each kind of repository the sets of keys of which one has to be there, if there is a secret at all"""
OPTIONAL = {"s3": ("session-token",)}
ALWAYS = ("passphrase", "ca.crt")
_ONE_LINE = ("passphrase", "access-key-id", "secret-access-key", "session-token", "account-key", "sas-token")


def check(secrets: Mapping[str, str], repository: RepositorySpec, *, encrypt: bool) -> None:
    """Refuse keys that are missing, unknown or can't be written down.

    :raises Refused: with every problem
    """
    choices = KEYS[repository.kind]
    known = {name for choice in choices for name in choice}
    known.update(OPTIONAL.get(repository.kind, ()), ALWAYS)
    listed = ", ".join(sorted(known))
    problems = [f"unknown key {name}: known here are {listed}" for name in secrets if name not in known]
    if choices and not any(all(secrets.get(name) for name in choice) for choice in choices):
        wanted = " or ".join(" and ".join(choice) for choice in choices)
        problems.append(f"{wanted} must be in it for repository.{repository.kind}")
    if encrypt and not secrets.get("passphrase"):
        problems.append("passphrase must be in it for encrypt")
    problems += [
        f"{name} must be one line without blanks around it"
        for name in _ONE_LINE
        if (value := secrets.get(name)) is not None
        and (value != value.strip() or len(value.splitlines()) > 1)
    ]
    if problems:
        raise Refused(*(f"{WHERE}: {problem}" for problem in problems))
