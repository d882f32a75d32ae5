"""Files come whole and verified from real servers through a network that breaks, or it is said why not."""

import dataclasses
import io
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

import fsspec
import pytest
import xxhash
from fsspec.spec import AbstractFileSystem
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.errors import DataError
from scaletrain.storage.fetch import Fetcher, FetchPolicy
from tests.processes import eventually, living
from tests.storage.conftest import POLICY, Events, Store, answer_from
from tests.storage.faults import Kind
from tests.storage.servers import make_certificate, nginx

IMPATIENT = dataclasses.replace(POLICY, stall_s=0.5)
COMMANDS = dataclasses.replace(IMPATIENT, attempts=2, allow_pipe=True)


def fetch(url: str, stream: BinaryIO, size: int, checksum: str, policy: FetchPolicy, events: Events) -> None:
    Fetcher(policy, events).fetch(url, stream, size, checksum)


def read_bytes(url: str, policy: FetchPolicy, events: Events, largest: int) -> bytes:
    return Fetcher(policy, events).read(url, largest)


def fetched(store: Store, name: str, policy: FetchPolicy, events: Events) -> bytes:
    url, size, checksum = store.entry(name)
    stream = io.BytesIO()
    fetch(url, stream, size, checksum, policy, events)
    return stream.getvalue()


def test_a_file_comes_in_ranges(store: Store, events: Events) -> None:
    assert fetched(store, "long.tar", POLICY, events) == store.contents["long.tar"]
    assert [request.range for request in store.proxy.requests] == [
        "bytes=0-8388607",
        "bytes=8388608-16777215",
        # One byte more than the 20971527 that there are.
        "bytes=16777216-20971527",
    ]
    assert events == []


@pytest.mark.parametrize("kind", ["reset", "unavailable", "truncate", "shorten", "flip", "whole"])
def test_what_breaks_on_the_way_is_fetched_again(store: Store, kind: Kind, events: Events) -> None:
    store.proxy.inject(kind, times=2)
    assert fetched(store, "a.tar", POLICY, events) == store.contents["a.tar"]
    # Each failure is told, and no library has tried again behind our back.
    failures = 0 if kind == "whole" else 2
    assert [kind for kind, _ in events] == ["fetch_retry"] * failures
    assert [fields["attempt"] for _, fields in events] == [1, 2][:failures]
    assert store.proxy.count() == failures + 1


_OVER_TLS = """
import io, sys
from scaletrain.errors import DataError
from scaletrain.storage.fetch import Fetcher, FetchPolicy
url, size, checksum = sys.argv[1:]
try:
    Fetcher(FetchPolicy(), print).fetch(url, io.BytesIO(), int(size), checksum)
    print("whole")
except DataError as error:
    print(error)
"""


def test_over_https_only_a_server_with_a_certificate_is_believed(
    folder: Path, contents: dict[str, bytes], tmp_path: Path
) -> None:
    certificate = tmp_path / "certificate.pem"
    make_certificate(certificate)
    content = contents["long.tar"]
    with nginx(folder, tmp_path, certificate) as url:
        wanted = [f"{url}/long.tar", str(len(content)), xxhash.xxh3_128_hexdigest(content)]
        for trusted, told in ((str(certificate), "whole"), (os.devnull, "certificate verify failed")):
            # In a process of its own, since the library looks at what it trusts when it is loaded.
            environment = {**os.environ, "SSL_CERT_FILE": trusted, "SSL_CERT_DIR": os.devnull}
            command = [sys.executable, "-c", _OVER_TLS, *wanted]
            answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
            assert told in answer.stdout and "fetch_retry" not in answer.stdout


def test_only_the_broken_chunk_is_fetched_again(http_store: Store, events: Events) -> None:
    http_store.proxy.inject("reset", every=2)
    assert fetched(http_store, "long.tar", POLICY, events) == http_store.contents["long.tar"]
    assert [request.range.split("-")[0] for request in http_store.proxy.requests] == [
        "bytes=0",
        "bytes=8388608",
        "bytes=8388608",
        "bytes=16777216",
    ]


def test_a_server_may_answer_with_the_whole_file(http_store: Store, events: Events) -> None:
    http_store.proxy.inject("whole", times=9)
    assert fetched(http_store, "long.tar", POLICY, events) == http_store.contents["long.tar"]
    assert http_store.proxy.count() == 1


def test_a_stall_ends_in_time(store: Store, events: Events) -> None:
    store.proxy.inject("stall")
    start_s = time.monotonic()
    assert fetched(store, "a.tar", IMPATIENT, events) == store.contents["a.tar"]
    assert time.monotonic() - start_s < 5.0
    assert [fields["reason"] for _, fields in events] == ["no byte in time"]


def test_a_slow_answer_is_no_stall(store: Store, events: Events) -> None:
    store.proxy.inject("slow")
    assert fetched(store, "a.tar", IMPATIENT, events) == store.contents["a.tar"]
    assert events == []


def test_after_a_stall_less_is_asked_for(http_store: Store, events: Events) -> None:
    http_store.proxy.inject("stall")
    fetched(http_store, "long.tar", IMPATIENT, events)
    assert [request.range for request in http_store.proxy.requests][:2] == ["bytes=0-8388607", "bytes=0-4194303"]


def test_a_server_that_never_recovers_is_given_up(http_store: Store, events: Events) -> None:
    http_store.proxy.inject("unavailable", times=99)
    with pytest.raises(DataError, match=r"a\.tar cannot be read, 4 times in a row, at last: HTTP status 503") as caught:
        fetched(http_store, "a.tar", POLICY, events)
    assert caught.value.__suppress_context__  # the library's error would show the URL as it is
    assert (http_store.proxy.count(), len(events)) == (4, 3)


def test_a_server_that_is_away_is_given_up(events: Events) -> None:
    with pytest.raises(DataError, match="2 times in a row"):
        read_bytes("http://127.0.0.1:9/x", COMMANDS, events, 10)
    assert len(events) == 1


def test_a_missing_file_is_reported_at_once(store: Store, events: Events) -> None:
    with pytest.raises(DataError, match=r"absent\.tar cannot be read: not found"):
        fetch(store.url("absent.tar"), io.BytesIO(), 9, "0" * 32, POLICY, events)
    assert (store.proxy.count(), events) == (1, [])


def test_a_forbidden_file_is_reported_at_once(http_store: Store, events: Events) -> None:
    with pytest.raises(DataError, match=r"HTTP status 403.*Check the credentials"):
        fetch(http_store.url("forbidden/a.tar"), io.BytesIO(), 9, "0" * 32, POLICY, events)
    assert (http_store.proxy.count(), events) == (1, [])


def test_missing_credentials_are_reported_at_once(
    s3_store: Store, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"NoCredentialsError.*AWS_PROFILE"):
        fetched(s3_store, "a.tar", POLICY, events)
    assert events == []


def test_another_size_is_reported_at_once(store: Store, events: Events) -> None:
    url, size, checksum = store.entry("a.tar")
    # The last one is longer than a chunk: the second chunk begins behind the file's end.
    for claimed in (size - 1, size + 1, 1, 30_000_000):
        with pytest.raises(DataError, match=rf"a\.tar has .* bytes, the manifest says {claimed}"):
            fetch(url, io.BytesIO(), claimed, checksum, POLICY, events)
    assert events == []


def test_the_same_wrong_checksum_twice_is_another_file(http_store: Store, events: Events) -> None:
    url, size, _ = http_store.entry("a.tar")
    with pytest.raises(DataError, match="is not the file that the manifest was made for"):
        fetch(url, io.BytesIO(), size, "0" * 32, POLICY, events)
    assert http_store.proxy.count() == 2


def test_small_files_are_read_whole(store: Store, events: Events) -> None:
    store.proxy.inject("reset")
    assert read_bytes(store.url("manifest.json"), POLICY, events, 1_000) == store.contents["manifest.json"]
    assert len(events) == 1
    with pytest.raises(DataError, match="more than 999 bytes"):
        read_bytes(store.url("manifest.json"), POLICY, events, 999)


def test_a_local_file_is_read_too(folder: Path, contents: dict[str, bytes], events: Events) -> None:
    assert read_bytes(str(folder / "manifest.json"), POLICY, events, 1_000) == contents["manifest.json"]
    stream = io.BytesIO()
    content = contents["long.tar"]
    url = f"file://{folder / 'long.tar'}"
    fetch(url, stream, len(content), xxhash.xxh3_128_hexdigest(content), POLICY, events)
    assert stream.getvalue() == content
    with pytest.raises(DataError, match="not found"):
        read_bytes(str(folder / "absent"), POLICY, events, 1_000)
    assert events == []


def test_connections_are_used_again(http_store: Store, events: Events) -> None:
    fetcher = Fetcher(POLICY, events)
    for _ in range(3):
        fetcher.read(http_store.url("manifest.json"), 1_000)
    assert (http_store.proxy.count(), http_store.proxy.connections) == (3, 1)


def _read_in_child(fetcher: Fetcher, store: Store, answers: Any) -> None:
    import gc

    gc.collect()
    answers.put([fetcher.read(store.url("manifest.json"), 1_000) for _ in range(2)])


def test_a_fork_after_use_works_and_leaves_the_parents_connection_alone(store: Store, events: Events) -> None:
    forking = multiprocessing.get_context("fork")
    fetcher, answers = Fetcher(POLICY, events), forking.SimpleQueue()
    content = fetcher.read(store.url("manifest.json"), 1_000)
    child = forking.Process(target=_read_in_child, args=(fetcher, store, answers))
    child.start()
    assert answer_from(answers) == [content] * 2
    child.join(timeout=10)
    assert child.exitcode == 0
    assert fetcher.read(store.url("manifest.json"), 1_000) == content
    assert (store.proxy.connections, events) == (2, [])  # one of each process


class _Hanging(AbstractFileSystem):  # type: ignore[misc]
    """A storage without a time limit of its own, that blocks a thread for good."""

    protocol = "hanging"
    end = Event()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        self.end.wait()
        return b""


def test_a_library_that_blocks_is_left_behind(events: Events) -> None:
    fsspec.register_implementation("hanging", _Hanging, clobber=True)
    start_s = time.monotonic()
    try:
        with pytest.raises(DataError, match=r"no byte in time"):
            read_bytes("hanging://x", COMMANDS, events, 10)
        assert time.monotonic() - start_s < 5.0
    finally:
        _Hanging.end.set()


def test_credentials_of_the_environment_reach_no_event_and_no_message(s3_store: Store, events: Events) -> None:
    kinds: tuple[Kind, ...] = ("flip", "reset", "truncate", "shorten", "stall")
    for kind in kinds:
        s3_store.proxy.inject(kind)
    s3_store.proxy.inject("unavailable", times=99)
    with pytest.raises(DataError) as caught:
        fetched(s3_store, "a.tar", dataclasses.replace(POLICY, attempts=6, stall_s=0.5), events)
    assert len(events) >= 5
    for text in (str(caught.value), repr(events)):
        assert "test-secret-access-key" not in text
        assert "test-access-key-id" not in text


def test_a_command_is_refused_unless_allowed(tmp_path: Path, events: Events) -> None:
    with pytest.raises(DataError, match=r"--data\.allow_pipe"):
        fetch(f"pipe:touch {tmp_path / 'ran'}", io.BytesIO(), 1, "0" * 32, POLICY, events)
    assert not (tmp_path / "ran").exists()


def test_a_commands_output_is_fetched(folder: Path, contents: dict[str, bytes], tmp_path: Path, events: Events) -> None:
    content = contents["long.tar"]
    checksum = xxhash.xxh3_128_hexdigest(content)
    # The first run fails, the second is cut short, the third is whole.
    count = f"echo >> {tmp_path / 'runs'}; runs=$(wc -l < {tmp_path / 'runs'})"
    command = f"{count}; case $runs in 1) exit 3;; 2) head -c 9 {folder}/long.tar;; *) cat {folder}/long.tar;; esac"
    stream = io.BytesIO()
    fetch(f"pipe:{command}", stream, len(content), checksum, dataclasses.replace(COMMANDS, attempts=3), events)
    assert stream.getvalue() == content
    assert [fields["reason"] for _, fields in events] == [
        "the command ended with status 3; run it by hand to see what it says",
        "the command wrote 9 of 20971527 bytes",
    ]
    assert read_bytes(f"pipe:head -c 9 {folder}/long.tar", COMMANDS, events, 100) == content[:9]


def test_a_command_that_stalls_is_killed_with_its_children(tmp_path: Path, events: Events) -> None:
    mark = tmp_path / "stalling"
    child = f"sh -c 'sleep 600; : {mark}'"
    with pytest.raises(DataError, match=r"the command wrote nothing for 0\.5 s"):
        fetch(f"pipe:echo begun; {child} | cat; : {mark}", io.BytesIO(), 99, "0" * 32, COMMANDS, events)
    eventually(lambda: not living(mark), 5.0, lambda: f"left behind: {living(mark)}")


def test_a_command_that_writes_too_much_is_ended(tmp_path: Path, events: Events) -> None:
    mark = tmp_path / "endless"
    with pytest.raises(DataError, match="has more than 99 bytes"):
        fetch(f"pipe:yes; : {mark}", io.BytesIO(), 99, "0" * 32, COMMANDS, events)
    eventually(lambda: not living(mark), 5.0, lambda: f"left behind: {living(mark)}")
    assert events == []


@given(failures=st.integers(1, 60), first_s=st.floats(0, 10), longest_s=st.floats(0, 100))
def test_waits_grow_to_their_bound(failures: int, first_s: float, longest_s: float) -> None:
    policy = FetchPolicy(first_backoff_s=first_s, longest_backoff_s=longest_s)
    assert 0 <= policy.backoff_s(failures) <= min(longest_s, first_s * 2.0 ** (failures - 1))
