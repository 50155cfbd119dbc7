"""Opening a store by its URL: a folder, or a prefix of an S3 bucket."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra.errors import BadStoreUrl
from infra.objects import checked
from infra.patience import Patience
from infra.store import Store
from infra.store_file import FileStore
from infra.store_s3 import S3Store

VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_]\w*)[^}]*\}|(?:^|(?<=/))\$([A-Za-z_]\w*)")
"""A shell's, at the beginning of a folder's name where it has no braces."""

BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
"""Names that some S3 server takes; Amazon's rules are narrower."""


def open_store(url: str, *, probe: bool = False, patience: Patience | None = None) -> Store:
    """Open `url`. An S3 server is asked once, so that a wrong address, secret or bucket shows here and not later.

    probe: also write, to prove that the store is writable and honours create-only writes; orchestrators do.
    patience: how long it is waited for where it does not answer, from now on.
    Raises StoreError (bad URL, credentials, bucket, permissions, guarantees) or StoreUnreachable.
    """
    store = _store_for(url)
    if patience is not None:
        store.patience = patience
    store.check()
    if probe:
        store.probe()
    return store


def unfilled(url: str) -> str:
    """What is wrong with the name of a store in which a shell's variable stands as it was written; else empty."""
    found = VARIABLE.search(url)
    if not found:
        return ""
    name = found[1] or found[2]
    return f"nothing is put in for {found[0]}; write ${{env:{name}}} in a pipeline file, or the path"


def _store_for(url: str) -> Store:
    if wrong := unfilled(url):
        raise BadStoreUrl(wrong, where=url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "file", url
    if scheme == "file":
        parts = urlsplit(url)
        folder = unquote(parts.path) if separator else rest
        if not folder or (separator and (parts.netloc or not folder.startswith("/"))):
            raise BadStoreUrl("not a folder", where=url, hint="Write file:///absolute/folder, or a plain folder.")
        try:
            return FileStore(Path(folder).expanduser())
        except RuntimeError as error:
            raise BadStoreUrl("nobody of that name has a home folder here", where=url) from error
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not BUCKET.fullmatch(bucket):
            raise BadStoreUrl(
                "not a bucket",
                where="s3://...",
                hint="Write s3://bucket/prefix; credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
            )
        return S3Store(bucket, checked(prefix.strip("/")) if prefix.strip("/") else "")
    raise BadStoreUrl(
        f"unknown store scheme {scheme!r}", where=url, hint="Use a folder, file:///folder or s3://bucket/prefix."
    )
