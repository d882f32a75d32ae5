"""What a failed transfer means: whether another try can help, and what may be said of it.

Libraries put URLs, request lines and headers into the text of their errors; none of that leaves this file unscrubbed.
"""

import asyncio
import errno
import os
import re
import ssl
from collections.abc import Iterator

import aiohttp

from scaletrain.storage.urls import printable

NOT_SATISFIABLE = 416  # the range begins behind the file's end
_PASSING_STATUSES = {408, 425, 429}  # timeout, too early, too many requests; and all from 500 on
_PASSING_CODES = {"RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException"}
_LASTING_ERRORS = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    TypeError,
    aiohttp.InvalidURL,
    aiohttp.ClientConnectorCertificateError,
    ssl.SSLCertVerificationError,
)
# Of packages that need not be installed, by name: botocore's and google-auth's words for a wrong set-up.
_LASTING_NAMES = {
    "DefaultCredentialsError",
    "NoCredentialsError",
    "ParamValidationError",
    "PartialCredentialsError",
    "ProfileNotFound",
}
_TIMEOUT_NAMES = {"ConnectTimeoutError", "ReadTimeoutError", "AioReadTimeoutError"}
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>),]+")
_SECRET = re.compile(
    r"(?i)((?:[\w-]*(?:token|secret|signature|password|credential|accesskey(?:id)?|access_key(?:_id)?|api_key)|sig"
    r"|authorization)['\"]?\s*[=:]\s*)(?:(?:bearer|basic)\s+)?['\"]?[^\s'\"&,;)}]+"
)
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY|CREDENTIAL")
_SHORTEST_SECRET = 8  # shorter values of such variables (true, 1, prod) would blank out half a message
_LONGEST_TEXT = 240


class TransferError(Exception):
    """What arrived is not what should; another try may help. Its text may be shown as it is."""


class StalledError(TransferError):
    """Nothing arrived for longer than the policy allows."""


def is_lasting(error: BaseException) -> bool:
    """Whether another try would fail as well: the file is missing, forbidden, or the set-up is wrong."""
    if isinstance(error, TransferError):
        return False
    for cause in _causes(error):
        if isinstance(cause, aiohttp.ClientPayloadError | aiohttp.http_exceptions.HttpProcessingError):
            return False  # the answer was cut or garbled on its way, whatever status its parser gives that
        if (
            isinstance(cause, _LASTING_ERRORS)
            or type(cause).__name__ in _LASTING_NAMES
            or _is_forbidden_by_gcsfs(cause)
        ):
            return True
    status = status_of(error)
    return status is not None and 400 <= status < 500 and status not in _PASSING_STATUSES and not _is_throttled(error)


def is_stall(error: BaseException) -> bool:
    """Whether nothing arrived for too long, by our own clock or by that of a library."""
    names = {type(cause).__name__ for cause in _causes(error)}
    stalled = any(isinstance(cause, StalledError | TimeoutError | asyncio.TimeoutError) for cause in _causes(error))
    return stalled or not names.isdisjoint(_TIMEOUT_NAMES)


def status_of(error: BaseException) -> int | None:
    """The status of the HTTP answer behind an error of aiohttp, botocore, gcsfs or adlfs; None without one."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(cause, aiohttp.http_exceptions.HttpProcessingError):
            continue  # its code is the parser's word for an answer that was cut or garbled
        if isinstance(response, dict):
            candidates = iter([response.get("ResponseMetadata", {}).get("HTTPStatusCode")])
        else:
            candidates = (getattr(cause, name, None) for name in ("status", "status_code", "code"))
        for status in candidates:  # one after the other: aiohttp warns of its old name
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None


def reason_of(error: BaseException, url: str) -> str:
    """Says in one line what went wrong, without a word that must not reach a log.

    Args:
        error: What a library raised.
        url: The URL it was asked for.

    Returns:
        The kind of the error, and its scrubbed text.
    """
    if isinstance(error, TransferError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "not found"
    status = status_of(error)
    if status is not None:
        kind = f"HTTP status {status}"
    elif is_stall(error):
        return "no byte in time"
    else:
        kind = type(error).__name__
    text = scrub(str(error), url)
    return f"{kind}: {text}" if text else kind


def remedy_of(error: BaseException) -> str:
    """What somebody can do about an error that lasts."""
    if isinstance(error, FileNotFoundError) or status_of(error) in {404, 410}:
        return "Check its name and what lies there."
    is_forbidden = isinstance(error, PermissionError) or _is_forbidden_by_gcsfs(error) or status_of(error) in {401, 403}
    if is_forbidden or type(error).__name__ in _LASTING_NAMES:
        return (
            "Check the credentials in the environment or in the usual files (AWS_PROFILE, ~/.aws, "
            "GOOGLE_APPLICATION_CREDENTIALS, ~/.netrc), and what they may read."
        )
    return "Correct the URL, or the settings of its storage."


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed for want of room, or of quota."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def scrub(text: str, url: str) -> str:
    """Takes URLs, credentials and the values of secret environment variables out of a text, and shortens it."""
    text = text.replace(url, printable(url))
    text = _URL.sub(lambda found: printable(found.group()), text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(name.upper()):
            text = text.replace(value, "...")
    text = " ".join(_SECRET.sub(r"\1...", text).split())
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " ..."


def _is_forbidden_by_gcsfs(error: BaseException) -> bool:
    """Whether it is gcsfs's word for status 403, which has nothing but its text."""
    return type(error) is OSError and error.errno is None and str(error).startswith("Forbidden: ")


def _is_throttled(error: BaseException) -> bool:
    answers = (getattr(cause, "response", None) for cause in _causes(error))
    return any(isinstance(answer, dict) and answer.get("Error", {}).get("Code") in _PASSING_CODES for answer in answers)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):  # a chain may be a ring
        if error is None:
            return
        yield error
        error = error.__cause__
