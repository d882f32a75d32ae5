import gzip
import io
import json
import pickle
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from scaletrain.data.foreign import Decoded, DocumentDecoder, UnusableDocument, content_of, fits, most_tokens
from scaletrain.data.manifest import Content
from scaletrain.data.tokenizer import find_borders, load_tokenizer, train_byte_level_bpe, vocabulary_rows
from scaletrain.errors import ConfigError, DataError

TOKENIZER = train_byte_level_bpe(["hello world, hello tokens"] * 3, 290)
EOS = TOKENIZER.token_to_id("<|endoftext|>")


def decoder(content: Content, tokenizer: Tokenizer = TOKENIZER) -> DocumentDecoder:
    rows = vocabulary_rows(tokenizer)
    return DocumentDecoder(content, tokenizer, find_borders(tokenizer), np.dtype(np.uint16), rows)


def decode(raw: bytes, field: str, key: str | None = None, **options: Any) -> Decoded:
    with tempfile.TemporaryFile() as stream:
        stream.write(b"###" + raw + b"###")
        stream.flush()
        return decoder(content_of(field, key), **options).decode(stream.fileno(), 3, len(raw), "s.tar, 'a'")


def stored(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


TEXT = "hello wörld <|endoftext|> 🙂"
TOKENS = [*TOKENIZER.encode(TEXT, add_special_tokens=False).ids, EOS]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_form_of_a_document_gives_the_same_tokens(suffix: str) -> None:
    forms = {
        "txt": TEXT.encode(),
        "json": json.dumps({"other": 1, "text": TEXT}).encode(),
        "npy": stored(np.array(TOKENS[:-1], dtype=">i8")),
        "ids.npy": stored(np.array(TOKENS, dtype=np.int32)),
    }
    for field, raw in forms.items():
        packed = gzip.compress(raw[:7]) + gzip.compress(raw[7:]) if suffix else raw
        decoded = decode(packed, field + suffix, "text" if field == "json" else None)
        assert decoded.tokens.tolist() == TOKENS and decoded.tokens.dtype == np.uint16, field
        # Of ready tokens all is counted that they stand for; the special token stands for nothing.
        assert decoded.n_bytes == len(TEXT.encode()), field


def test_a_tokenizer_that_begins_documents_does_so_with_text_and_not_with_ready_tokens() -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_special_tokens(["<s>"])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    assert decode(b"hello", "txt", tokenizer=tokenizer).tokens[0] == bos
    assert decode(stored(np.array([5])), "npy", tokenizer=tokenizer).tokens.tolist() == [5, EOS]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert decode(b"a\xffb", "txt").tokens.tolist() == decode("a\ufffdb".encode(), "txt").tokens.tolist()
    assert decode(b'{"t": "a\\ud800b"}', "json", "t").n_bytes == 5
    # A byte order mark is one of a file, and text where a file is text, as in webdataset.
    assert decode('\ufeff{"t": "ab"}'.encode(), "json", "t").n_bytes == 2
    assert decode("\ufeffab".encode(), "txt").n_bytes == 5


@pytest.mark.parametrize("field", ["txt", "txt.gz", "json.gz", "npy", "npy.gz"])
def test_no_document_gives_more_tokens_than_its_bytes_can(field: str) -> None:
    for raw in (b"", b"\xff" * 1000, b"ab" * 1000):
        if "npy" in field:
            raw = stored(np.frombuffer(raw, np.uint8).view(np.int8) & 1)
        elif "json" in field:
            raw = json.dumps({"text": raw.decode("latin-1")}).encode()
        packed = gzip.compress(raw) if "gz" in field else raw
        content = content_of(field, "text" if "json" in field else None)
        try:
            tokens = decode(packed, field, content.key).tokens
        except UnusableDocument:
            continue
        assert len(tokens) <= most_tokens(content, np.array([len(packed)])).item()
    sizes = np.array([0, 2**63 - 1])
    assert most_tokens(content_of("txt.gz"), sizes).tolist() == [3, 16 * (2**24 + 512) + 3]


def bomb(size: int) -> bytes:
    return gzip.compress(bytes(size), 1)


@pytest.mark.parametrize(
    ("raw", "field", "reason"),
    [
        (b"", "txt", "empty"),
        (b"x" * ((16 << 20) + 1), "txt", "larger than 16 MiB"),
        (bomb(20 << 20), "txt.gz", "larger than 16 MiB"),
        (bomb(40 << 20), "json.gz", "larger than 32 MiB"),
        (b"plain", "txt.gz", "not gzip"),
        (gzip.compress(b"cut" * 1000)[:-9], "txt.gz", "not gzip"),
        (b"[" * 1_000_000, "json", "not JSON"),
        (b'{"text": ' + b"1" * 100_000 + b"}", "json", "not JSON"),
        (b'{"text": "\xff"}', "json", "not JSON"),
        (b'{"text": "\xed\xa0\x80"}', "json", "not JSON"),
        ('{"text": "x"}'.encode("utf-16"), "json", "not JSON"),
        ('{"text": "x"}'.encode("utf-32-le"), "json", "not JSON"),
        (b"\xff" * (6 << 20), "txt", "larger than 16 MiB"),
        (b'{"body": "x"}', "json", "without 'text' in its JSON"),
        (b'["x"]', "json", "without 'text' in its JSON"),
        (b'{"text": 5}', "json", "not text"),
        (b'{"text": ""}', "json", "empty"),
        (stored(np.array([{}], dtype=object)), "npy", "not tokens"),
        (pickle.dumps([1]), "npy", "not an array"),
        (stored(np.zeros((2, 2), np.int64, order="F")), "npy", "not tokens"),
        (stored(np.zeros(3)), "npy", "not tokens"),
        (stored(np.zeros(3, bool)), "npy", "not tokens"),
        (stored(np.zeros(3, np.int64))[:-1], "npy", "not tokens"),
        (stored(np.zeros(3, np.int64))[:128].replace(b"(3,)    ", b"(9" + b"9" * 5 + b",)"), "npy", "not tokens"),
        (stored(np.array([1, -1])), "npy", "not of this tokenizer"),
        (stored(np.array([2**63 + 5], np.uint64)), "npy", "not of this tokenizer"),
        (stored(np.zeros(0, np.int64)), "npy", "empty"),
    ],
)
def test_what_gives_no_tokens_is_told_with_a_reason(raw: bytes, field: str, reason: str) -> None:
    with pytest.raises(UnusableDocument, match=r"s\.tar, 'a' ") as caught:
        decode(raw, field, "text" if field.startswith("json") else None)
    assert caught.value.reason == reason and len(str(caught.value)) < 700
    assert caught.value.is_absent == (reason == "empty" or raw.startswith(b'{"body"'))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, str(again)) == (reason, str(caught.value))


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["txt", "txt.gz", "json", "json.gz", "npy", "npy.gz"]), st.booleans())
def test_any_bytes_are_tokens_or_a_reason(raw: bytes, field: str, wrap: bool) -> None:
    if wrap and "npy" in field:
        raw = stored(np.arange(5))[:10] + raw
    if wrap and "gz" in field:
        raw = gzip.compress(raw)
    try:
        tokens = decode(raw, field, "t" if "json" in field else None).tokens
        assert tokens[-1] == EOS and tokens.max() < vocabulary_rows(TOKENIZER)
    except UnusableDocument:
        pass


def test_another_number_of_tokens_than_the_index_says_is_told() -> None:
    with tempfile.TemporaryFile() as stream:
        stream.write(TEXT.encode())
        stream.flush()
        size = len(TEXT.encode())
        text = pickle.loads(pickle.dumps(decoder(content_of("txt"))))
        assert text.read(stream.fileno(), 0, size, len(TOKENS), "s.tar").tolist() == TOKENS
        with pytest.raises(
            DataError, match=rf"s\.tar: the document at byte 0 gives {len(TOKENS)} tokens.*says 5.*index"
        ):
            text.read(stream.fileno(), 0, size, 5, "s.tar")
        with pytest.raises(DataError, match=r"ends after \d+ of \d+ bytes: the shard is truncated"):
            text.read(stream.fileno(), 10, size, len(TOKENS), "s.tar")


def test_fields_are_named_as_they_are_or_by_a_pattern() -> None:
    assert content_of(".TXT").field == "txt" and fits("txt", content_of("txt"))
    assert fits("ids.npy", content_of("*.npy")) and fits("npy", content_of("*.npy"))
    assert not fits("caption.txt", content_of("txt"))
    for field, key, message in (
        ("jpg", None, "must end in txt, json or npy"),
        ("pickle", None, "Pickles"),
        ("json", None, "and no --key"),
        ("txt", "text", "--key 'text' is given"),
    ):
        with pytest.raises(ConfigError, match=message):
            content_of(field, key)


def test_a_manifest_that_asks_for_what_is_not_read_is_refused(tmp_path: Any) -> None:
    with pytest.raises(DataError, match=r"field 'pkl'.*index"):
        decoder(Content(field="pkl"))
    spec = json.loads(TOKENIZER.to_str())
    spec["model"]["dropout"] = 0.1
    with pytest.raises(DataError, match=rf"needs {vocabulary_rows(TOKENIZER)} rows, the manifest's vocab_size is 9"):
        DocumentDecoder(content_of("txt"), TOKENIZER, find_borders(TOKENIZER), np.dtype(np.uint16), 9)
    (tmp_path / "t.json").write_text(json.dumps(spec))
    with pytest.raises(DataError, match="drops merges at random"):
        decoder(content_of("txt"), load_tokenizer(tmp_path / "t.json"))
