"""Where files lie: local paths and URLs, which of them may be opened, and how much of one may be shown.

A URL is split by hand as far as its scheme goes: ``pipe:`` has no slashes, and fsspec's chains (``a::b://``) must
not pass for paths.
"""

import posixpath
import re
from urllib.parse import parse_qsl, quote, urlsplit

import fsspec

from scaletrain.errors import DataError

PIPE = "pipe"
_LOCAL_SCHEMES = {"file", "local"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# Names of query parameters, in lower case and without - and _, that hold a secret; and endings of such names.
_SECRET_NAMES = {"auth", "authorization", "googleaccessid", "jwt", "passwd", "pwd", "sas", "secretkey", "sig"}
_SECRET_ENDINGS = ("accesskey", "accesskeyid", "apikey", "credential", "password", "secret", "signature", "token")
_HALF_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*:/)[^/@]+@")
_PLAIN_WORD = re.compile(r"[\w./-]+")


def scheme_of(location: str) -> str:
    """The scheme of a URL in lower case; empty for a path."""
    if location.startswith(f"{PIPE}:"):
        return PIPE
    scheme, colon, _ = location.partition("://")
    return scheme.lower() if colon and scheme and "/" not in scheme else ""


def is_remote(location: str) -> bool:
    """Whether something has to be fetched: it has any scheme but ``file``."""
    return scheme_of(location) not in {"", *_LOCAL_SCHEMES}


def local_path(location: str) -> str:
    """The path of a local file that may be written as ``file://PATH``."""
    return location.partition("://")[2] if scheme_of(location) in _LOCAL_SCHEMES else location


def join(base: str, path: str) -> str:
    """Resolves what a manifest names against the manifest's own place.

    Args:
        base: Folder of the manifest: a path or a URL, with or without a slash at its end.
        path: Relative to ``base``; or absolute, or a URL, which both stay as they are.

    Returns:
        A path or a URL.

    Raises:
        DataError: A manifest at a URL names a file of this machine, or one above its host or bucket.
    """
    if is_remote(path):
        return path
    path_is_absolute = path.startswith("/") or scheme_of(path) in _LOCAL_SCHEMES
    if not is_remote(base):
        return local_path(path) if path_is_absolute else posixpath.join(local_path(base), path)
    if path_is_absolute:
        raise DataError(
            f"the manifest in {printable(base)} names {path}, a file of this machine; a remote manifest may name URLs "
            "and paths relative to itself. Download the manifest, and give --data.manifest the copy."
        )
    scheme, _, rest = base.partition("://")
    host, _, folder = rest.partition("?")[0].partition("/")
    resolved = posixpath.join(folder, path)
    if not {".", ".."}.isdisjoint(path.split("/")):  # only then: in an object store a//b is another key than a/b
        resolved = posixpath.normpath(resolved)
    if resolved == ".." or resolved.startswith("../"):
        raise DataError(
            f"the manifest in {printable(base)} names {path}, which lies above {scheme}://{host}; paths in a manifest "
            "stay on its host or in its bucket. Build the manifest again beside its shards."
        )
    # Object stores take a key as it is; in HTTP these characters would end the path.
    inside = quote(resolved, safe="/:@!$&'()*+,;=~%") if scheme.lower() in {"http", "https"} else resolved
    return f"{scheme}://{host}/{inside}"


def printable(location: str) -> str:
    """What may reach a log: a URL without user, password, query and fragment, of a command its first word only."""
    scheme = scheme_of(location)
    if scheme == PIPE:
        words = location.removeprefix(f"{PIPE}:").split(maxsplit=1)
        # A command can begin with an assignment, such as TOKEN=...
        first = words[0] if words and _PLAIN_WORD.fullmatch(words[0]) else ""
        return f"{PIPE}:{first} ..."
    if not scheme:
        # A URL that lacks a slash is taken for a path; what it hides stays hidden.
        return _HALF_URL.sub(r"\1", location)
    host, slash, path = location.partition("://")[2].partition("/")
    if "?" in host or "#" in host:
        host, slash, path = re.split("[?#]", host, maxsplit=1)[0], "", ""
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{re.split('[?#]', path, maxsplit=1)[0]}"


def check_url(url: str, allow_pipe: bool) -> None:
    """Refuses what must not or cannot be opened, before anything is opened.

    Args:
        url: A URL; a local path passes.
        allow_pipe: Whether ``pipe:COMMAND`` may run its command.

    Raises:
        DataError: It carries credentials, would run a command without leave, or nothing here can read its scheme.
    """
    scheme = scheme_of(url)
    if scheme == PIPE:
        if not allow_pipe:
            raise DataError(
                f"{printable(url)} would run a command, and a corpus may come from a stranger. If you trust it, give "
                "--data.allow_pipe true (tools: --allow_pipe)."
            )
        return
    if not is_remote(url):
        return
    shown = printable(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        raise DataError(f"{shown} is not a valid URL. Correct it in the manifest or on the command line.") from None
    if any(ord(letter) < 32 for letter in url):
        raise DataError(f"{shown!r} holds control characters. Correct it in the manifest or on the command line.")
    _check_secrets(shown, parts.netloc, parts.query)
    _check_scheme(shown, scheme)


def _check_secrets(shown: str, netloc: str, query: str) -> None:
    usual_places = (
        "Give credentials by the environment or the usual files (AWS_PROFILE, ~/.aws, GOOGLE_APPLICATION_CREDENTIALS, "
        "~/.netrc), and the URL without them."
    )
    if "@" in netloc:
        raise DataError(
            f"the URL of {shown} names a user or a password, which would reach files and logs. {usual_places}"
        )
    for name, _ in parse_qsl(query.replace(";", "&"), keep_blank_values=True):
        plain = name.lower().replace("-", "").replace("_", "")
        if plain in _SECRET_NAMES or plain.endswith(_SECRET_ENDINGS):
            raise DataError(
                f"the URL of {shown} carries a credential in its query ({name}), which would reach files and logs, and "
                f"expire. {usual_places}"
            )


def _check_scheme(shown: str, scheme: str) -> None:
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise DataError(
            f"{shown}: nothing here reads the scheme {scheme!r}. Known are http, https, s3, gs and what fsspec knows; "
            "a chain of schemes (a::b://) is not."
        ) from None
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        remedy = f"Type: pip install 'scaletrain[{extra}]'" if extra else str(error)
        raise DataError(f"{shown}: the package that reads {scheme!r} is not installed. {remedy}") from None
