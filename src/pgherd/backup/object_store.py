"""A store in a bucket: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage.

A file is an object, replaced in one request. There are no appends: the object is written anew. Writers of one machine
exclude each other by a lock file there; a cluster's repository is written from one machine (its home's, or the
operator's).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from pgherd.backup.store import Entry, Store
from pgherd.errors import PgherdError, Refused, Withheld, one_line
from pgherd.model.spec import RepositorySpec
from pgherd.platform.local import files

PATIENCE_SECONDS = 20
"""for one request with all its retries: an outage is to be told, not waited for"""


class ObjectStore(Store):
    """One cluster's part of a bucket.

    :param declared: which bucket
    :param folder: where in it, without leading or trailing slash
    :param secrets: keys by their names in the secret
    """

    grows = False
    near = False

    def __init__(self, declared: RepositorySpec, folder: str, secrets: Mapping[str, str]) -> None:
        self._declared = declared
        self._folder = folder
        self._secrets = secrets
        self.location = f"{bucket_url(declared)}/{folder}"
        self._lock = files.Lock(lock_file(self.location))

    @cached_property
    def _client(self) -> Any:
        with self._explained():
            return _connect(self._declared, self._secrets)

    def read(self, name: str) -> bytes | None:
        import obstore

        with self._explained():
            try:
                return bytes(obstore.get(self._client, self._path(name)).bytes())
            except FileNotFoundError as error:
                self._require_bucket(error)
                return None

    def write(self, name: str, content: bytes) -> None:
        import obstore

        with self._explained():
            obstore.put(self._client, self._path(name), content, use_multipart=False)

    def append(self, name: str, content: bytes) -> None:
        self.write(name, (self.read(name) or b"") + content)

    def names(self, folder: str) -> list[Entry]:
        found = self._list(folder)["objects"]
        strip = len(self._folder) + 1
        return sorted(
            (Entry(each["path"][strip:], each.get("e_tag")) for each in found), key=lambda each: each.name
        )

    def folders(self, folder: str) -> list[str]:
        return sorted(path.rpartition("/")[2] for path in self._list(folder)["common_prefixes"])

    def remove(self, name: str) -> None:
        import obstore

        with self._explained():
            # Records go last: what is still named can still be removed by the next one who tries.
            inside = [each["path"] for page in obstore.list(self._client, self._path(name)) for each in page]
            for each in (*inside, self._path(name)):
                with contextlib.suppress(FileNotFoundError):
                    obstore.delete(self._client, each)

    def locked(self) -> AbstractContextManager[None]:
        return self._lock.held()

    def create(self) -> None:
        self.names("")

    def _list(self, folder: str) -> Any:
        import obstore

        with self._explained():
            return obstore.list_with_delimiter(self._client, self._path(folder) if folder else self._folder)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _require_bucket(self, error: Exception) -> None:
        if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
            raise error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from obstore import exceptions

        try:
            yield
        except (exceptions.BaseError, FileNotFoundError, OSError, ValueError) as error:
            raise _translated(error, self._declared) from error


def bucket_url(declared: RepositorySpec) -> str:
    """``s3://bucket``, for messages."""
    if declared.s3 is not None:
        return f"s3://{declared.s3.bucket}"
    if declared.gcs is not None:
        return f"gs://{declared.gcs.bucket}"
    assert declared.azure is not None, "asked only of object stores"
    return f"azure://{declared.azure.account}/{declared.azure.container}"


_REFUSED = re.compile(
    r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|403 Forbidden|401 Unauthorized|AuthenticationFailed"
)
_MISSING = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)
_SILENT = re.compile(
    r"error sending request|timed out|tcp connect|connection (?:refused|reset|closed)|dns error",
    re.IGNORECASE,
)
_UNTRUSTED = re.compile(r"certificate|UnknownIssuer", re.IGNORECASE)


def _translated(error: Exception, declared: RepositorySpec) -> PgherdError:
    """One clear line for what a store answered."""
    from obstore import exceptions

    where, text = bucket_url(declared), one_line(error)
    if _MISSING.search(text):
        return Refused(
            f"{where}: there is no such bucket: make it, or name another one (spec.backup.repository)"
        )
    refusals = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    if isinstance(error, refusals) or _REFUSED.search(text):
        return Refused(f"{where} refuses these keys: see spec.backup.secretRef")
    if _UNTRUSTED.search(text):
        return PgherdError(
            f"{where}: its certificate is from nobody known here: name its authority with caFile"
        )
    if _SILENT.search(text):
        return Withheld(f"{where} does not answer")
    said = re.search(r"<Message>(.*?)</Message>", text)
    return PgherdError(f"{where} can't be used: {said[1] if said else text[:200]}")


def _connect(declared: RepositorySpec, secrets: Mapping[str, str]) -> Any:
    from obstore.store import AzureStore, GCSStore, S3Store

    remote = declared.s3 or declared.gcs or declared.azure
    assert remote is not None, "asked only of object stores"
    common: Any = {
        "client_options": _http_options(remote.verify_tls, remote.ca_file, secrets.get("ca.crt")),
        "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=PATIENCE_SECONDS)},
    }
    if declared.s3 is not None:
        s3 = declared.s3
        config: Any = {
            "region": s3.region,
            "virtual_hosted_style_request": s3.uri_style == "host",
            "endpoint": _s3_endpoint(declared) if s3.endpoint else None,
            "access_key_id": secrets.get("access-key-id"),
            "secret_access_key": secrets.get("secret-access-key"),
            "session_token": secrets.get("session-token"),
        }
        return S3Store(s3.bucket, config=_given(config), **common)
    if declared.gcs is not None:
        return GCSStore(
            declared.gcs.bucket,
            config=_given({"service_account_key": secrets.get("service-account")}),
            **common,
        )
    assert declared.azure is not None
    config = {
        "account_name": declared.azure.account,
        "account_key": secrets.get("account-key"),
        "sas_key": secrets.get("sas-token"),
    }
    return AzureStore(declared.azure.container, config=_given(config), **common)


def _s3_endpoint(declared: RepositorySpec) -> str:
    s3 = declared.s3
    assert s3 is not None
    assert s3.endpoint is not None
    return f"https://{s3.bucket}.{s3.endpoint}" if s3.uri_style == "host" else f"https://{s3.endpoint}"


def _http_options(verify: bool, authority: str | None, certificate: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"timeout": timedelta(seconds=PATIENCE_SECONDS)}
    if not verify:
        options["allow_invalid_certificates"] = True
    if authority is not None:
        with files.explained(f"read {authority}"):
            certificate = Path(authority).read_text()
    if certificate is not None:
        options["root_certificate"] = certificate
    return options


def _given(config: Mapping[str, Any]) -> Any:
    return {key: value for key, value in config.items() if value is not None}


def lock_file(location: str) -> Path:
    name = hashlib.sha256(location.encode()).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"pgherd-locks-{os.getuid()}" / name
