"""One cache for all processes of a machine: whole files only, each fetched once, within its bytes."""

import contextlib
import dataclasses
import errno
import fcntl
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scaletrain.errors import CacheError, DataError
from scaletrain.storage import cache_folder
from scaletrain.storage.cache import ShardCache
from tests.processes import eventually
from tests.storage.conftest import POLICY, Events, Store, answer_from

FORKING = multiprocessing.get_context("fork")
SIZE = 300_000
ROOM = 2**30


@pytest.fixture
def folder_of_cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def opened(cache: ShardCache, store: Store, name: str) -> bytes:
    with cache.open(*store.entry(name)) as stream:
        return stream.read()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def bytes_in(folder: Path) -> int:
    """What the cache takes at one moment: sizes change, and names too, only under its lock."""
    with open(folder / ".lock", "ab") as lock, contextlib.suppress(FileNotFoundError):
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0  # a part was given up just now


def whole_name(store: Store, name: str) -> str:
    return store.entry(name)[2] + ".shard"


@contextlib.contextmanager
def child(body: Callable[..., Any], *args: Any) -> Iterator[multiprocessing.process.BaseProcess]:
    process = FORKING.Process(target=body, args=args)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(timeout=10)


def test_a_shard_is_fetched_once_and_whole(store: Store, folder_of_cache: Path, events: Events) -> None:
    cache = ShardCache(folder_of_cache, ROOM, POLICY, events)
    for _ in range(2):
        assert opened(cache, store, "a.tar") == store.contents["a.tar"]
    assert store.proxy.count() == 1
    assert names_in(folder_of_cache) == {".lock", whole_name(store, "a.tar")}


def test_what_comes_from_a_broken_network_is_verified(http_store: Store, folder_of_cache: Path, events: Events) -> None:
    for kind in ("flip", "truncate", "unavailable"):
        http_store.proxy.inject(kind)  # type: ignore[arg-type]
    cache = ShardCache(folder_of_cache, ROOM, POLICY, events)
    assert opened(cache, http_store, "a.tar") == http_store.contents["a.tar"]
    assert len(events) == 3


def test_equal_content_is_stored_once(http_store: Store, folder_of_cache: Path, events: Events) -> None:
    cache = ShardCache(folder_of_cache, ROOM, POLICY, events)
    opened(cache, http_store, "a.tar")
    _, size, checksum = http_store.entry("a.tar")
    with cache.open(http_store.url("elsewhere.tar"), size, checksum) as stream:
        assert stream.read() == http_store.contents["a.tar"]
    assert http_store.proxy.count() == 1


def test_a_failed_fetch_leaves_nothing(http_store: Store, folder_of_cache: Path, events: Events) -> None:
    cache = ShardCache(folder_of_cache, ROOM, POLICY, events)
    with pytest.raises(DataError, match="not found"):
        cache.open(http_store.url("absent.tar"), 9, "0" * 32)
    assert names_in(folder_of_cache) == {".lock"}


def test_what_was_used_longest_ago_goes_first_and_stays_readable(
    http_store: Store, folder_of_cache: Path, events: Events
) -> None:
    cache = ShardCache(folder_of_cache, 2 * SIZE + 5, POLICY, events)
    (folder_of_cache / "notes.txt").write_text("somebody's own file, larger than it all" * 50_000)
    opened(cache, http_store, "a.tar")
    held = cache.open(*http_store.entry("b.tar"))
    opened(cache, http_store, "a.tar")
    opened(cache, http_store, "c.tar")
    assert names_in(folder_of_cache) == {
        ".lock",
        "notes.txt",
        whole_name(http_store, "a.tar"),
        whole_name(http_store, "c.tar"),
    }
    with held:
        assert held.read() == http_store.contents["b.tar"]


def test_a_cache_smaller_than_a_shard_is_a_clear_error(
    http_store: Store, folder_of_cache: Path, events: Events
) -> None:
    cache = ShardCache(folder_of_cache, SIZE - 1, POLICY, events)
    with pytest.raises(DataError, match=r"300000 bytes .* cache of 299999 bytes .*--data\.cache_gib"):
        cache.open(*http_store.entry("a.tar"))
    assert http_store.proxy.count() == 0


def _open_in_turns(cache: ShardCache, store: Store, names: list[str], answers: Any) -> None:
    try:
        answers.put(all(opened(cache, store, name) == store.contents[name] for name in names))
    except Exception as error:
        answers.put(repr(error))


def test_a_cache_smaller_than_what_is_used_at_once_works(
    http_store: Store, folder_of_cache: Path, events: Events
) -> None:
    capacity = SIZE + SIZE // 2
    cache = ShardCache(folder_of_cache, capacity, POLICY, events)
    orders = [["a.tar", "b.tar", "c.tar"] * 3, ["c.tar", "a.tar", "b.tar"] * 3, ["b.tar", "b.tar", "c.tar"] * 3]
    answers = FORKING.SimpleQueue()
    most = 0
    with contextlib.ExitStack() as children:
        for order in orders:
            children.enter_context(child(_open_in_turns, cache, http_store, order, answers))
        threads = [threading.Thread(target=_open_in_turns, args=(cache, http_store, orders[0], answers))]
        threads[0].start()
        results = []
        deadline = time.monotonic() + 30.0
        while len(results) < len(orders) + 1 and time.monotonic() < deadline:
            most = max(most, bytes_in(folder_of_cache))
            if not answers.empty():
                results.append(answers.get())
        threads[0].join(timeout=10)
    assert results == [True] * (len(orders) + 1)
    assert 0 < most <= capacity


def _open(cache: ShardCache, store: Store, name: str, answers: Any) -> None:
    answers.put(opened(cache, store, name) == store.contents[name])


def test_processes_and_threads_that_want_one_shard_fetch_it_once(
    store: Store, folder_of_cache: Path, events: Events
) -> None:
    cache = ShardCache(folder_of_cache, ROOM, POLICY, events)
    answers = FORKING.SimpleQueue()
    store.proxy.delay_s = 0.3
    try:
        with contextlib.ExitStack() as children:
            for _ in range(2):
                children.enter_context(child(_open, cache, store, "a.tar", answers))
            threads = [threading.Thread(target=_open, args=(cache, store, "a.tar", answers)) for _ in range(2)]
            for thread in threads:
                thread.start()
            assert [answer_from(answers) for _ in range(4)] == [True] * 4
            for thread in threads:
                thread.join(timeout=10)
    finally:
        store.proxy.delay_s = 0.0
    assert store.proxy.count() == 1


def test_what_a_killed_process_left_is_never_read(http_store: Store, folder_of_cache: Path, events: Events) -> None:
    cache = ShardCache(folder_of_cache, 2 * SIZE, POLICY, events)
    part = folder_of_cache / (whole_name(http_store, "a.tar") + ".part")
    answers = FORKING.SimpleQueue()
    http_store.proxy.inject("stall")
    with child(_open, cache, http_store, "a.tar", answers) as process:
        eventually(lambda: part.exists() and part.stat().st_size == SIZE, 10.0, "no part appeared")
        eventually(http_store.proxy.count, 10.0, "nothing was asked for")
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(timeout=10)
    assert names_in(folder_of_cache) == {".lock", part.name}
    # Its room is free for others at once, though its size is still that of the shard.
    for name in ("b.tar", "c.tar"):
        assert opened(cache, http_store, name) == http_store.contents[name]
    assert not part.exists()
    assert opened(cache, http_store, "a.tar") == http_store.contents["a.tar"]


def test_a_part_of_a_dead_process_is_written_over(http_store: Store, folder_of_cache: Path, events: Events) -> None:
    cache = ShardCache(folder_of_cache, ROOM, POLICY, events)
    (folder_of_cache / (whole_name(http_store, "a.tar") + ".part")).write_bytes(b"x" * 2 * SIZE)
    assert opened(cache, http_store, "a.tar") == http_store.contents["a.tar"]
    assert names_in(folder_of_cache) == {".lock", whole_name(http_store, "a.tar")}


def test_a_cached_file_of_another_size_is_thrown_away(http_store: Store, folder_of_cache: Path, events: Events) -> None:
    cache = ShardCache(folder_of_cache, ROOM, POLICY, events)
    (folder_of_cache / whole_name(http_store, "a.tar")).write_bytes(b"short")
    assert opened(cache, http_store, "a.tar") == http_store.contents["a.tar"]


def test_after_a_start_of_the_machine_content_is_looked_at_again(
    http_store: Store, folder_of_cache: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(folder_of_cache, ROOM, POLICY, events)
    opened(cache, http_store, "a.tar")
    opened(cache, http_store, "b.tar")
    # A power cut may leave a file of the right size with holes, as it was never flushed to the disk.
    (folder_of_cache / whole_name(http_store, "a.tar")).write_bytes(bytes(SIZE))
    time.sleep(0.01)
    started_s = time.time()
    monkeypatch.setattr(cache_folder, "_started_s", lambda: started_s)
    for _ in range(2):
        assert opened(cache, http_store, "a.tar") == http_store.contents["a.tar"]
        assert opened(cache, http_store, "b.tar") == http_store.contents["b.tar"]
    assert (http_store.proxy.count("a.tar"), http_store.proxy.count("b.tar")) == (2, 1)


def test_who_waits_for_a_process_that_does_nothing_gives_up(
    http_store: Store, folder_of_cache: Path, events: Events
) -> None:
    hasty = dataclasses.replace(POLICY, attempts=1, stall_s=0.2, longest_backoff_s=0.0)
    cache = ShardCache(folder_of_cache, ROOM, hasty, events)
    slow = ShardCache(folder_of_cache, ROOM, POLICY, events)
    http_store.proxy.inject("stall")
    answers = FORKING.SimpleQueue()
    with child(_open, slow, http_store, "a.tar", answers):
        eventually(http_store.proxy.count, 10.0, "nothing was asked for")
        with pytest.raises(DataError, match="nothing has moved in that time"):
            cache.open(*http_store.entry("a.tar"))


def test_what_is_prefetched_needs_no_request_later(http_store: Store, folder_of_cache: Path, events: Events) -> None:
    cache = ShardCache(folder_of_cache, 4 * SIZE, POLICY, events, sharers=2)
    opened(cache, http_store, "a.tar")
    wanted = [http_store.entry(name) for name in ("a.tar", "b.tar", "c.tar")]
    cache.prefetch(wanted)
    # Of this sharer's half the first takes a part, though it is here already: the third finds no room.
    here = {".lock", whole_name(http_store, "a.tar"), whole_name(http_store, "b.tar")}
    eventually(lambda: names_in(folder_of_cache) == here, 10.0, lambda: str(names_in(folder_of_cache)))
    assert opened(cache, http_store, "b.tar") == http_store.contents["b.tar"]
    assert [http_store.proxy.count(name) for name in ("a.tar", "b.tar", "c.tar")] == [1, 1, 0]


def test_a_failed_prefetch_is_told_once_and_met_by_who_needs_the_shard(
    http_store: Store, folder_of_cache: Path, events: Events
) -> None:
    cache = ShardCache(folder_of_cache, ROOM, POLICY, events)
    absent = (http_store.url("absent.tar"), 9, "0" * 32)
    cache.prefetch([absent])
    eventually(lambda: len(events), 10.0, "nothing was reported")
    cache.prefetch([absent, http_store.entry("a.tar")])
    eventually((folder_of_cache / whole_name(http_store, "a.tar")).exists, 10.0, "the other one did not come")
    assert [kind for kind, _ in events] == ["prefetch_failed"]
    assert str(events[0][1]["reason"]).endswith("not found. Check its name and what lies there.")
    with pytest.raises(DataError, match="not found"):
        cache.open(*absent)


def _prefetch_and_open(cache: ShardCache, store: Store, answers: Any) -> None:
    cache.prefetch([store.entry("b.tar")])
    eventually((cache.folder / whole_name(store, "b.tar")).exists, 10.0, "it did not come")
    answers.put([opened(cache, store, name) == store.contents[name] for name in ("a.tar", "b.tar", "c.tar")])


def test_a_cache_works_in_the_child_of_a_fork_while_the_parent_fetches(
    http_store: Store, folder_of_cache: Path, events: Events
) -> None:
    cache = ShardCache(folder_of_cache, ROOM, dataclasses.replace(POLICY, stall_s=1.0), events)
    opened(cache, http_store, "a.tar")
    http_store.proxy.inject("stall", path="c.tar")
    cache.prefetch([http_store.entry("c.tar")])
    eventually(lambda: http_store.proxy.count("c.tar"), 10.0, "nothing was asked for")
    answers = FORKING.SimpleQueue()
    with child(_prefetch_and_open, cache, http_store, answers):
        assert answer_from(answers) == [True] * 3
    # The parent's second try brought it; the child waited, though it has a copy of the parent's lock.
    assert [http_store.proxy.count(name) for name in ("a.tar", "b.tar", "c.tar")] == [1, 1, 2]


def test_a_cache_can_be_pickled_after_use(http_store: Store, folder_of_cache: Path) -> None:
    cache = ShardCache(folder_of_cache, ROOM, POLICY, print)
    cache.prefetch([http_store.entry("b.tar")])
    opened(cache, http_store, "a.tar")
    again = pickle.loads(pickle.dumps(cache))
    assert opened(again, http_store, "c.tar") == http_store.contents["c.tar"]


_ON_A_FULL_DISK = """
import sys
from pathlib import Path
from scaletrain.errors import CacheError, DataError
from scaletrain.storage.cache import ShardCache
from scaletrain.storage.fetch import FetchPolicy
folder, *wanted = sys.argv[1:]
cache = ShardCache(Path(folder), 2**30, FetchPolicy(), print)
for url, size, checksum in zip(*[iter(wanted)] * 3):
    try:
        cache.open(url, int(size), checksum).close()
    except DataError as error:
        print(error)
print(sorted(path.name for path in Path(folder).iterdir()))
"""


def on_a_disk_of(size: str, folder: Path, store: Store, *names: str) -> list[str]:
    """What a process says that opens files, with the cache on a disk of that size, and what lies there in the end."""
    # A mount that only this process and its children see, and that ends with them.
    alone = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody make a mount namespace (unshare --map-root-user --mount)")
    mount = f'mount -t tmpfs -o size={size} tmpfs {folder} && exec "$@"'
    wanted = [str(part) for name in names for part in store.entry(name)]
    command = [sys.executable, "-c", _ON_A_FULL_DISK, str(folder), *wanted]
    result = subprocess.run([*alone, "sh", "-c", mount, "sh", *command], capture_output=True, text=True, timeout=60)
    assert not result.returncode, result.stderr
    return result.stdout.splitlines()


def test_a_full_disk_is_a_clear_error(http_store: Store, tmp_path: Path) -> None:
    said, left = on_a_disk_of("64k", tmp_path, http_store, "a.tar")
    assert f"the disk of the cache {tmp_path} is full: no room for the 300000 bytes" in said
    assert left == "['.lock']"


def test_on_a_disk_that_others_have_filled_the_cache_shrinks(http_store: Store, tmp_path: Path) -> None:
    (left,) = on_a_disk_of("700k", tmp_path, http_store, "a.tar", "b.tar", "c.tar")
    assert left == str(sorted([".lock", whole_name(http_store, "b.tar"), whole_name(http_store, "c.tar")]))


@pytest.mark.parametrize("suffix", ["", ".part"])
def test_a_link_in_a_files_place_is_not_followed(
    http_store: Store, folder_of_cache: Path, tmp_path: Path, events: Events, suffix: str
) -> None:
    cache = ShardCache(folder_of_cache, ROOM, POLICY, events)
    victim = tmp_path / "victim"
    victim.write_bytes(bytes(SIZE))
    (folder_of_cache / (whole_name(http_store, "a.tar") + suffix)).symlink_to(victim)
    with pytest.raises(CacheError, match=os.strerror(errno.ELOOP)):
        opened(cache, http_store, "a.tar")
    assert victim.read_bytes() == bytes(SIZE)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path, events: Events) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=rf"{os.strerror(errno.ENOTDIR)}.*--data\.cache_dir"):
        ShardCache(tmp_path / "file/cache", ROOM, POLICY, events)


def test_a_checksum_is_no_path(http_store: Store, folder_of_cache: Path, events: Events) -> None:
    cache = ShardCache(folder_of_cache, ROOM, POLICY, events)
    with pytest.raises(DataError, match="is not an xxh3-128"):
        cache.open(http_store.url("a.tar"), SIZE, "../../../etc/passwd")
