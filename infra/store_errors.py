"""What the operating system, botocore and aiohttp raise, said in the store's own words.

`store_errors(where)` wraps every call that leaves the process. A missing object stays `FileNotFoundError`, because that
is an answer, not a failure. botocore's classes are recognised by name, so that a file store never imports botocore.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from infra.errors import ForgelineError, StoreError, StoreUnreachable

NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK})
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
AWAY = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}
    | {errno.EREMOTEIO, errno.ENODEV, errno.ENXIO}
)
"""What a disk or a share answers that is not there just now."""
NOT_ALLOWED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
UNREACHABLE = frozenset(
    {"HTTPClientError", "EndpointConnectionError", "ConnectionClosedError", "ConnectionError", "TimeoutError"}
    | {"FSTimeoutError", "ClientConnectionError", "ClientPayloadError", "IncompleteReadError", "ResponseParserError"}
)
CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403"})
BUSY = frozenset({"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504"})


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turn any foreign exception about `where` (a URL or path) into a `StoreError` that says what to do."""
    try:
        yield
    except ForgelineError:
        raise
    except FileNotFoundError as error:
        if _code(error) == "NoSuchBucket":
            raise translate(error, where) from error
        raise
    except (OSError, ValueError) as error:
        raise translate(error, where) from error
    except Exception as error:
        # botocore and aiohttp errors share no public base with OSError; a bug of ours must not be dressed up as theirs.
        if not type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs")):
            raise
        raise translate(error, where) from error


def bucket_hint() -> str:
    """What to do about a bucket that is not there. The bucket's name as the path of the endpoint is asked for twice."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    path = urlsplit(endpoint).path.rstrip("/")
    about = (
        f" AWS_ENDPOINT_URL has a path, {path}: does the server's API lie there? It is no place for a bucket's name."
    )
    return "Create it, or correct the URL." + (about if path else "")


def response_of(error: BaseException) -> dict[str, Any]:
    """The S3 response behind an exception (s3fs keeps botocore's ClientError as the cause), or an empty dict."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def status_of(error: BaseException) -> int:
    """HTTP status of the S3 response behind an exception; 0 where there is none."""
    return int(response_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: BaseException) -> str:
    return str(response_of(error).get("Error", {}).get("Code", ""))


def translate(error: Exception, where: str) -> StoreError:
    """The `StoreError` a user should see for `error`."""
    names = {cls.__name__ for cls in type(error).__mro__}
    code, number = _code(error), getattr(error, "errno", None)
    if code == "NoSuchBucket":
        return StoreError("the bucket does not exist", where=where, hint=bucket_hint())
    if code in CREDENTIALS or status_of(error) == 401:
        return StoreError(
            f"the server refused the credentials ({code})",
            where=where,
            hint="Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_ENDPOINT_URL.",
        )
    if code == "RequestTimeTooSkewed":
        hint = "Set this machine's clock (timedatectl set-ntp true); `forgeline doctor` says how far it is off."
        return StoreError("the server's clock and this machine's differ too much", where=where, hint=hint)
    if code == "AccessDenied":
        return StoreError(
            "access denied", where=where, hint="Allow these credentials to list, read, write and delete under the URL."
        )
    if names & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
        return StoreError(
            "no usable S3 credentials were found",
            where=where,
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for a server of your own).",
        )
    if code in BUSY:
        return StoreUnreachable(f"the server is failing or busy ({code})", where=where, hint="Try again later.")
    if "SSLError" in names:
        return StoreError(f"TLS failed: {error}", where=where, hint="Check the certificate, or set AWS_CA_BUNDLE.")
    if names & UNREACHABLE:
        return StoreUnreachable(
            f"the store did not answer ({type(error).__name__}: {_short(error)})",
            where=where,
            hint="Check AWS_ENDPOINT_URL, the network, and that the server runs.",
        )
    if number in NO_SPACE:
        return StoreError(
            f"no space left ({_short(error)})", where=where, hint="Free space on that disk or raise the quota."
        )
    if number in AWAY:
        return StoreUnreachable(
            f"the file system did not answer ({_short(error)})",
            where=where,
            hint="Check the disk or share.",
        )
    if number in NOT_ALLOWED:
        return StoreError(
            f"not writable ({_short(error)})", where=where, hint="Make the folder writable, or choose another store."
        )
    if number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return StoreError(
            f"a file is where a folder should be, or the other way round ({_short(error)})",
            where=where,
            hint="Name another folder for the store, or move that file away.",
        )
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return StoreError(_short(error), where=where, hint="AWS_ENDPOINT_URL must look like http://host:port.")
    return StoreError(f"{type(error).__name__}: {_short(error)}", where=where)


def _short(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0][:200] if text else "no details"
