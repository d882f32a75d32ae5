import io
from pathlib import Path

import pytest
import xxhash

from scaletrain.errors import DataError
from scaletrain.storage.fetch import FetchPolicy
from scaletrain.storage.survey import Surveyor
from tests.storage.conftest import POLICY, Events, Store


def test_a_file_of_which_nothing_is_known_is_fetched(store: Store, events: Events) -> None:
    store.proxy.inject("reset")
    stream = io.BytesIO()
    size, checksum = Surveyor(POLICY, events).download(store.url("long.tar"), stream)
    content = store.contents["long.tar"]
    assert stream.getvalue() == content
    assert (size, checksum) == (len(content), xxhash.xxh3_128_hexdigest(content))
    assert [kind for kind, _ in events] == ["fetch_retry"]
    with pytest.raises(DataError, match=r"none\.tar cannot be read"):
        Surveyor(POLICY, events).download(store.url("none.tar"), stream)


def test_a_bucket_is_listed(s3_store: Store, events: Events) -> None:
    surveyor = Surveyor(POLICY, events)
    assert surveyor.find("s3://corpus/[a-c].tar") == [f"s3://corpus/{name}.tar" for name in "abc"]
    assert surveyor.find("s3://corpus/x*.tar") == []


def test_the_output_of_a_command_is_taken_where_that_is_allowed(tmp_path: Path, events: Events) -> None:
    url = f"pipe:printf abc; test -e {tmp_path}/tried || {{ touch {tmp_path}/tried; exit 3; }}"
    allowed = FetchPolicy(attempts=3, first_backoff_s=0.01, allow_pipe=True)
    stream = io.BytesIO()
    # The first try fails at its end; what it wrote is overwritten.
    assert Surveyor(allowed, events).download(url, stream) == (3, xxhash.xxh3_128_hexdigest(b"abc"))
    assert stream.getvalue() == b"abc" and len(events) == 1
    with pytest.raises(DataError, match="would run a command"):
        Surveyor(POLICY, events).download(url, stream)
