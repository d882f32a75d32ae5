"""Files of a corpus behind real servers, and a proxy before them that can break things."""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import xxhash

from scaletrain.storage.fetch import FetchPolicy
from tests.processes import eventually
from tests.storage.faults import FaultProxy, fault_proxy
from tests.storage.servers import nginx, s3_environment, s3_server, upload

_SIZES = {"a.tar": 300_000, "b.tar": 300_000, "c.tar": 300_000, "long.tar": 20 * 2**20 + 7, "manifest.json": 1_000}

# Long enough for a busy machine, short enough for a test.
POLICY = FetchPolicy(attempts=4, stall_s=10.0, first_backoff_s=0.02, longest_backoff_s=0.05)


@dataclass
class Store:
    """Files on a server, reached through the proxy."""

    base: str
    proxy: FaultProxy
    contents: dict[str, bytes]

    def url(self, name: str) -> str:
        return f"{self.base}/{name}"

    def entry(self, name: str) -> tuple[str, int, str]:
        """URL, size and checksum, as a manifest has them."""
        return self.url(name), len(self.contents[name]), xxhash.xxh3_128_hexdigest(self.contents[name])


class Events(list[tuple[str, dict[str, object]]]):
    """What was reported; may be called from any thread."""

    def __call__(self, kind: str, **fields: object) -> None:
        self.append((kind, fields))


def answer_from(answers: Any) -> Any:
    """The next answer of a child, which may have died instead."""
    eventually(lambda: not answers.empty(), 30.0, "the child does not answer")
    return answers.get()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture(scope="session")
def contents() -> dict[str, bytes]:
    source = random.Random(1)
    return {name: source.randbytes(size) for name, size in _SIZES.items()}


@pytest.fixture(scope="session")
def folder(contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def http_proxy(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with nginx(folder, tmp_path_factory.mktemp("nginx")) as url, fault_proxy(url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def s3_proxy(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url, fault_proxy(url) as proxy:
        upload(url, "corpus", folder)
        yield proxy


@pytest.fixture
def http_store(http_proxy: FaultProxy, contents: dict[str, bytes]) -> Store:
    http_proxy.clear()
    return Store(http_proxy.url, http_proxy, contents)


@pytest.fixture
def s3_store(s3_proxy: FaultProxy, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Store:
    s3_proxy.clear()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_environment(s3_proxy.url).items():
        monkeypatch.setenv(name, value)
    return Store("s3://corpus", s3_proxy, contents)


@pytest.fixture(params=["http", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each of the servers in turn."""
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found
