"""What file systems raise, as sentences a user can act on."""

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import Any

from gwm_model.errors import first_line
from pipeline.errors import GwmError

_BY_ERRNO = {
    errno.ENOSPC: "Cannot write {url}: the disk is full.",
    errno.EDQUOT: "Cannot write {url}: the disk quota is used up.",
    errno.EFBIG: "Cannot write {url}: the file is larger than this disk or a limit allows.",
    errno.EROFS: "Cannot write {url}: the file system is read-only.",
    errno.ENOTDIR: "Cannot use {url}: a part of the path is a file, not a folder.",
    errno.EISDIR: "Cannot use {url}: it is a folder, not a file.",
    errno.ENAMETOOLONG: "Cannot use {url}: the name is too long.",
}

_BUSY = "The storage server of {url} is overloaded or out of order: try again later."

_BY_CODE = {
    **dict.fromkeys(("SlowDown", "ServiceUnavailable", "InternalError", "500", "502", "503", "504"), _BUSY),
    "NoSuchBucket": "There is no bucket for {url}.",
    "NoSuchKey": "There is no {url}.",
    "404": "There is no {url}.",
    "InvalidAccessKeyId": "The server does not know the access key used for {url}: check AWS_ACCESS_KEY_ID.",
    "SignatureDoesNotMatch": "The secret key used for {url} is wrong: check AWS_SECRET_ACCESS_KEY.",
    "ExpiredToken": "The session token used for {url} has expired: sign in again.",
    "InvalidBucketName": "{url} is not a valid bucket name.",
    "AuthorizationHeaderMalformed": "The region for {url} is wrong: set AWS_REGION or AWS_DEFAULT_REGION.",
    "PermanentRedirect": "The region for {url} is wrong: set AWS_REGION or AWS_DEFAULT_REGION.",
}

_BY_TYPE = {
    "OfflineModeIsEnabled": "{url} is on the Hugging Face hub, and HF_HUB_OFFLINE is set: unset it, or copy the files.",
    "ConnectError": "Cannot reach the storage server of {url}: check its address and the network.",
    "NoCredentialsError": "No credentials for {url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "or AWS_PROFILE (FSSPEC_S3_ANON=true reads public buckets without any).",
    "PartialCredentialsError": "The credentials for {url} are incomplete: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY belong together.",
    "ProfileNotFound": "The credentials profile named in AWS_PROFILE does not exist (needed for {url}).",
    "TokenRetrievalError": "The single sign-on session for {url} has expired: sign in again.",
    "EndpointConnectionError": "Cannot reach the storage server of {url}: "
    "check AWS_ENDPOINT_URL and the network.",
    "ConnectTimeoutError": "Cannot reach the storage server of {url}: the connection timed out.",
    "ReadTimeoutError": "The storage server of {url} stopped answering.",
    "SSLError": "Cannot reach the storage server of {url}: its certificate is not accepted.",
    "ConnectionClosedError": "The storage server of {url} closed the connection.",
    "ClientPayloadError": "The storage server of {url} closed the connection.",
    "ConnectionError": "The connection to the storage server of {url} broke.",
    "TimeoutError": "The storage server of {url} stopped answering.",
    "ParamValidationError": "{url} is not a valid bucket or object name.",
    "InvalidEndpointURLError": "AWS_ENDPOINT_URL is not a valid address (needed for {url}).",
}


_USER = re.compile(r"(?<=://)[^/\s\"'<>]*@")
_QUERY = re.compile(r"(https?://[^\s?\"'<>]*|\w+://[^\s?\"'<>]*(?=\?[\w.-]+=))\?[^\s\"'<>]*")

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""What only the disk of this machine says."""


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns a storage error that a user can act on into a GwmError; others pass unchanged."""
    try:
        yield
    except GwmError:
        raise
    except Exception as error:
        sentence = explain(error, url)
        if sentence is None:
            raise
        raise GwmError(sentence) from error


def explain(error: BaseException, url: str) -> str | None:
    """The sentence for a storage error, or None where there is none."""
    shown = without_secrets(url)
    template = _BY_CODE.get(server_code(error)) or _template_by_type(error)
    return None if template is None else template.format(url=shown)


def without_secrets(text: str) -> str:
    """A URL, or a text with URLs in it, without user:password@ and queries, which may hold keys and tokens.

    A question mark that is no query, as in a glob, stays.
    """
    return _QUERY.sub(r"\1", _USER.sub("", text))


def server_code(error: BaseException) -> str:
    """The error code in an S3 answer, also where s3fs wrapped it; empty for anything else."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def server_status(error: BaseException) -> int | None:
    """The HTTP status in a server's answer, whichever client raised the error; None where there was no answer."""
    status = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    response = getattr(error, "response", None)
    for found in (status, getattr(error, "status", None), getattr(response, "status_code", None)):
        if isinstance(found, int):
            return found
    return None


def _answer(error: BaseException) -> dict[str, Any]:
    for candidate in (error, error.__cause__, error.__context__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _template_by_type(error: BaseException) -> str | None:
    if isinstance(error, ImportError):
        return f"{{url}} needs a package that is not installed: {first_line(error)}."
    if isinstance(error, PermissionError):
        return "Access denied to {url}."
    if isinstance(error, FileNotFoundError):
        return "There is no {url}."
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        return _BY_ERRNO[error.errno]
    if isinstance(error, ValueError) and "Invalid endpoint" in str(error):
        return _BY_TYPE["InvalidEndpointURLError"]
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((_BY_TYPE[name] for name in names if name in _BY_TYPE), None)
