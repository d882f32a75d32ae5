"""Which places shards may come from, and what of them may be shown."""

import subprocess
import sys

import pytest

from scaletrain.errors import DataError
from scaletrain.storage.urls import check_url, is_remote, join, printable


@pytest.mark.parametrize(
    ("location", "remote"),
    [
        ("/data/train-0.tar", False),
        ("train-0.tar", False),
        ("file:///data/train-0.tar", False),
        ("a:b/c://d", False),
        ("https://host/x.tar", True),
        ("S3://bucket/x.tar", True),
        ("pipe:cat x.tar", True),
        ("simplecache::s3://bucket/x", True),
    ],
)
def test_what_has_a_scheme_is_remote(location: str, remote: bool) -> None:
    assert is_remote(location) == remote


@pytest.mark.parametrize(
    ("base", "path", "expected"),
    [
        ("/data/corpus", "train-0.tar", "/data/corpus/train-0.tar"),
        ("/data/corpus", "/other/train-0.tar", "/other/train-0.tar"),
        ("file:///data/corpus", "train-0.tar", "/data/corpus/train-0.tar"),
        ("/data/corpus", "file:///other/x.tar", "/other/x.tar"),
        ("/data/corpus", "s3://bucket/x.tar", "s3://bucket/x.tar"),
        ("", "train-0.tar", "train-0.tar"),
        ("https://host/c", "train-0.tar", "https://host/c/train-0.tar"),
        ("https://host/c/", "sub/train-0.tar", "https://host/c/sub/train-0.tar"),
        ("https://host", "train-0.tar", "https://host/train-0.tar"),
        ("https://host/c?version=3", "train-0.tar", "https://host/c/train-0.tar"),
        ("https://host/c", "50% #1?.tar", "https://host/c/50%%20%231%3F.tar"),
        ("https://host/c", "../d/x.tar", "https://host/d/x.tar"),
        ("https://host/c", "gs://bucket/x.tar", "gs://bucket/x.tar"),
        ("s3://bucket/c", "a#1.tar", "s3://bucket/c/a#1.tar"),
        ("s3://bucket/c", "a//b.tar", "s3://bucket/c/a//b.tar"),
    ],
)
def test_a_path_belongs_to_the_folder_of_its_manifest(base: str, path: str, expected: str) -> None:
    assert join(base, path) == expected


@pytest.mark.parametrize("path", ["/etc/passwd", "file:///etc/passwd", "../../x.tar", "../.."])
def test_a_remote_manifest_leads_neither_to_local_files_nor_above_its_host(path: str) -> None:
    with pytest.raises(DataError, match="names"):
        join("https://host/c", path)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host:80/x.tar?sig=secret#secret", "https://host:80/x.tar"),
        ("https://host?sig=secret/x", "https://host"),
        ("s3://key:secret@bucket/x.tar", "s3://bucket/x.tar"),
        ("pipe:curl -H 'Authorization: secret' https://host", "pipe:curl ..."),
        ("pipe:TOKEN=secret fetch x", "pipe: ..."),
        ("/data/x.tar", "/data/x.tar"),
        ("https:/user:hunter22@host/x.tar", "https:/host/x.tar"),
    ],
)
def test_user_query_and_commands_are_not_shown(url: str, shown: str) -> None:
    assert printable(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter22@host/x.tar",
        "https://hunter22@host/x.tar",
        "https://host/x.tar?X-Amz-Signature=hunter22",
        "https://host/x.tar?a=1&X-Amz-Credential=hunter22",
        "https://host/x.tar?AWSAccessKeyId=hunter22",
        "https://host/x.tar?sv=1;sig=hunter22",
        "https://host/x.tar?access%5Ftoken=hunter22",
        "https://host/x.tar?api_key=hunter22",
        "s3://hunter22@bucket/x.tar",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(DataError, match="AWS_PROFILE") as caught:
        check_url(url, allow_pipe=True)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://host/x.tar?version=3", "s3://bucket/a@b/x.tar", "/data/x.tar", "memory://x"])
def test_other_urls_pass(url: str) -> None:
    check_url(url, allow_pipe=False)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:cat x.tar", "--data.allow_pipe"),
        ("nosuch://host/x.tar", "'nosuch'"),
        ("simplecache::s3://bucket/x.tar", "chain of schemes"),
        ("https://[half/x.tar", "not a valid URL"),
        ("https://host/x\n.tar", "control characters"),
    ],
)
def test_what_cannot_be_opened_is_refused_by_name(url: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_url(url, allow_pipe=False)


def test_a_command_passes_where_the_config_allows_it() -> None:
    check_url("pipe:cat x.tar", allow_pipe=True)


@pytest.mark.parametrize(("url", "package", "extra"), [("s3://b/x", "s3fs", "s3"), ("gs://b/x", "gcsfs", "gcs")])
def test_a_missing_package_is_named_by_its_extra(url: str, package: str, extra: str) -> None:
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from scaletrain.storage.urls import check_url\n"
        f"check_url({url!r}, False)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert f"pip install 'scaletrain[{extra}]'" in result.stderr, result.stderr
