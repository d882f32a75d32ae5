"""Builds of examples: what is stored of each format, whatever the processes and interruptions."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from scaletrain.corpus.build import build_from_files
from scaletrain.corpus.documents import find_corpus
from scaletrain.corpus.examples import ExampleOptions
from scaletrain.corpus.options import BuildOptions
from scaletrain.corpus.rules import CleaningRules
from scaletrain.corpus.upkeep import check_shards, count_packed
from scaletrain.data.chat import ChatEncoder, ChatTemplate
from scaletrain.data.manifest import Manifest
from scaletrain.data.parts import split_parts
from scaletrain.data.shards import ShardReader
from scaletrain.data.tokenizer import Borders, load_tokenizer, train_byte_level_bpe
from scaletrain.errors import ConfigError, DataError
from scaletrain.storage.storage import Storage
from tests.processes import eventually, living

TOOL = Path(__file__).parents[2] / "tools" / "make_shards.py"
WORDS = ["alpha", "beta", "gamma", "été", "🙂", "delta"]


def some_text(source: random.Random, most: int) -> str:
    return " ".join(source.choices(WORDS, k=source.randint(1, most)))


def make_records(kind: str, count: int = 60) -> list[dict[str, Any]]:
    """The same records at each call; a third of them name their split."""
    source, records = random.Random(5), []
    for number in range(count):
        turns = [
            {"role": role, "content": some_text(source, 5)} for role in ("user", "assistant") * source.randint(1, 3)
        ]
        record: dict[str, Any] = {
            "pairs": {"source": some_text(source, 20), "target": some_text(source, 9)},
            "chat": {"messages": turns},
            "classes": {"text": some_text(source, 20), "label": source.choice(["good", "bad", "neither"])},
            "numbers": {"text": some_text(source, 9), "text_pair": some_text(source, 3), "value": [number / 7, number]},
        }[kind]  # fmt: skip
        if number % 3 == 0:
            record["split"] = ("train", "validation", "test")[number // 3 % 3]
        records.append({"id": number, **record})
    return records


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def build(path: Path, out: Path, examples: ExampleOptions, **options: Any) -> Manifest:
    given = {"tokenizer": 300, "source": "invented", "validation_share": 0.2, "shard_tokens": 500} | options
    return Manifest.open(
        build_from_files(find_corpus(path, examples=examples), out, BuildOptions(examples=examples, **given))
    )


def documents(manifest: Manifest) -> Iterator[tuple[str, str, np.ndarray, list[float]]]:
    """Split, source, words and values of each document."""
    for split in manifest.splits:
        reader = ShardReader(manifest, split)
        reader.check()
        for shard, entry in enumerate(reader.shards):
            counts = reader.token_counts(shard).tolist()
            for document in range(entry.documents):
                words = np.empty(counts[document], dtype=reader.dtype)
                reader.read_row(words, [(shard, document, 0, len(words))])
                assert reader.tokens(shard, document, 0, len(words)).max() < manifest.tokenizer.vocab_size
                yield split, reader.keys(shard)[document], words, reader.values(shard, document).tolist()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


OPTIONS = {
    "pairs": ExampleOptions("pairs", max_source_tokens=12, max_target_tokens=6),
    "chat": ExampleOptions("chat", "plain"),
    "classes": ExampleOptions("classes"),
    "numbers": ExampleOptions("numbers"),
}


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_each_example_is_stored_as_it_was_given(kind: str, tmp_path: Path) -> None:
    records = make_records(kind)
    manifest = build(write_jsonl(tmp_path / "a.jsonl", records), tmp_path / "out", OPTIONS[kind])
    found = list(documents(manifest))
    tokenizer = load_tokenizer(Path(manifest.locate(manifest.tokenizer.file)))
    eos = manifest.tokenizer.eos_id
    expected = []
    for record in records:
        if kind == "chat":
            template = ChatTemplate.load("plain")
            chat = ChatEncoder(template, tokenizer, Borders(eos, None)).encode(record["messages"])
            tokens, parts, values = chat.tokens, chat.parts, []
        else:
            first, second = ("source", "target") if kind == "pairs" else ("text", "text_pair")
            ids = [tokenizer.encode(record[name]).ids for name in (first, second) if name in record]
            if kind == "pairs":
                ids = [ids[0][:12], ids[1][:6]]
            tokens = [token for text in ids for token in [*text, eos]]
            parts = [part for part, text in enumerate(ids) for _ in range(len(text) + 1)]
            classes = ("bad", "good", "neither")
            values = [classes.index(record["label"])] if kind == "classes" else record.get("value", [])
        expected.append((record.get("split"), tokens, parts, values))
    assert len(found) == len(expected) and manifest.parts == (kind != "classes")
    # Documents keep the order of the input within each split.
    for split in ("train", "validation", "test"):
        ours = [(words, values) for where, _, words, values in found if where == split]
        theirs = [row for row in expected if row[0] == split or (row[0] is None and split != "test")]
        rest = iter(theirs)
        for words, values in ours:
            tokens, parts = split_parts(words) if manifest.parts else (words, np.zeros(len(words)))
            assert any((tokens.tolist(), parts.tolist(), values) == (row[1], row[2], row[3]) for row in rest), (
                f"{split}: not in order, or changed"
            )
        assert sum(row[0] == split for row in expected) <= len(ours)
    assert manifest.longest == max(len(words) for _, _, words, _ in found)
    assert all(shard.problem == "" for shard in check_shards(manifest, Storage()))
    packed = count_packed(Path(manifest.location), [64])
    assert packed.fingerprint == manifest.fingerprint and packed.split("train")[0].packed[64] > 0


def test_what_is_cut_and_left_out_is_told(tmp_path: Path) -> None:
    records = make_records("pairs")
    nothing = [{"source": "", "target": "a"}, {"source": "a", "target": ""}, dict(records[0])]
    manifest = build(write_jsonl(tmp_path / "a.jsonl", records + nothing), tmp_path / "out", OPTIONS["pairs"])
    tokenizer = load_tokenizer(Path(manifest.locate(manifest.tokenizer.file)))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    lengths = [[len(tokenizer.encode(record[name]).ids) for record in records] for name in ("source", "target")]
    assert report["cut"] == {"source": sum(n > 12 for n in lengths[0]), "target": sum(n > 6 for n in lengths[1])}
    assert report["cut"]["source"] > 0 and report["cut"]["target"] > 0
    assert report["skipped"] == {"empty source": 1, "empty target": 1}
    assert report["removed"]["duplicates.exact"]["documents"] == 1
    texts = [record["source"] + record["target"] for record in records]
    assert sum(part["bytes"] for part in report["kept"].values()) == sum(len(text.encode()) for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(OPTIONS))
def test_parquet_lines_and_any_number_of_processes_give_the_same_bytes(kind: str, tmp_path: Path) -> None:
    records = make_records(kind)
    (tmp_path / "lines").mkdir()
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "lines" / "a.jsonl", records)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "rows" / "a.parquet")
    for name in ("lines", "rows"):
        (tmp_path / name / "note.txt").write_text("not read")
    built = {
        "alone": build(tmp_path / "lines", tmp_path / "alone", OPTIONS[kind]),
        "two": build(tmp_path / "lines", tmp_path / "two", OPTIONS[kind], num_workers=2),
        "rows": build(tmp_path / "rows", tmp_path / "rows_out", OPTIONS[kind]),
    }
    alone = content(tmp_path / "alone")
    assert content(tmp_path / "two") == alone
    assert built["rows"].tokenizer == built["alone"].tokenizer
    for (_, _, words, values), (_, _, same, numbers) in zip(
        documents(built["alone"]), documents(built["rows"]), strict=True
    ):
        assert words.tolist() == same.tolist() and values == numbers
    assert json.loads(alone["report.json"])["skipped"] == {"of another suffix": 1}


@pytest.mark.slow
def test_a_killed_build_goes_on_and_counts_the_same(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_records("pairs", 6000))
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(train_byte_level_bpe(WORDS, 300).to_str())
    flags = ["--input", path, "--tokenizer", tokenizer, "--format", "pairs", "--max_source_tokens", 12]
    command = [sys.executable, TOOL, "build", *flags, "--shard_tokens", 5000, "--num_workers", 1, "--out"]

    def run(out: Path) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([*map(str, command), str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def has_shards(out: Path) -> bool:
        journal = out / ".building" / "journal.jsonl"
        return journal.exists() and journal.read_text().count('"shard"') >= 2

    cut = tmp_path / "cut"
    try:
        process = run(cut)
        eventually(lambda: has_shards(cut), 60, "two finished shards")
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL and not (cut / "manifest.json").exists()
        assert run(cut).wait(60) == 0 and run(tmp_path / "whole").wait(60) == 0
    finally:
        for pid in living(tmp_path):
            os.kill(pid, signal.SIGKILL)
    assert content(cut) == content(tmp_path / "whole")
    assert json.loads((cut / "report.json").read_text())["cut"]["source"] > 1000


def test_a_template_is_kept_and_what_it_needs_is_asked_before_anything_is_written(tmp_path: Path) -> None:
    path, out = write_jsonl(tmp_path / "a.jsonl", make_records("chat")), tmp_path / "out"
    with pytest.raises(ConfigError, match=r"names <\|im_end\|>, <\|im_start\|>, which the tokenizer has not"):
        build(path, out, ExampleOptions("chat", "chatml"))
    names = ("<|im_start|>", "<|im_end|>", "<mask>")
    manifest = build(path, out, ExampleOptions("chat", "chatml"), special_tokens=names)
    assert manifest.chat_template == ChatTemplate.load("chatml").source
    tokenizer = load_tokenizer(Path(manifest.locate(manifest.tokenizer.file)))
    assert [tokenizer.token_to_id(name) for name in names] == [1, 2, 3]
    found = next(documents(manifest))[2]
    tokens, parts = split_parts(found)
    assert tokens[0] == 1 and parts[0] == 0 and tokens[-2:].tolist() == [2, 0] and parts[-2:].tolist() == [1, 1]


def test_a_conversation_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text("{{ raise_exception('roles must alternate') }}")
    path = write_jsonl(tmp_path / "a.jsonl", make_records("chat"))
    with pytest.raises(DataError, match=r"a\.jsonl#1: The chat template .*strict\.jinja refuses.*roles must alternate"):
        build(path, tmp_path / "out", ExampleOptions("chat", str(template)))


def test_a_tokenizer_that_is_not_byte_level_serves_examples_without_bits_per_byte(tmp_path: Path) -> None:
    words = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "alpha", "beta", "gamma", "delta", "ete"]
    made = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    made.add_special_tokens(words[:4])
    (tmp_path / "bert.json").write_text(made.to_str())
    path = write_jsonl(tmp_path / "a.jsonl", make_records("numbers"))
    manifest = build(path, tmp_path / "out", OPTIONS["numbers"], tokenizer=tmp_path / "bert.json")
    bert = Tokenizer.from_file(str(tmp_path / "bert.json"))
    examples = {
        tuple(record["value"]): bert.encode(record["text"], record["text_pair"]) for record in make_records("numbers")
    }
    for _, _, words_of, values in documents(manifest):
        tokens, parts = split_parts(words_of)
        # [CLS] text [SEP] text_pair [SEP], with BERT's segments.
        assert tokens.tolist() == examples[tuple(values)].ids
        assert parts.tolist() == examples[tuple(values)].type_ids
    with pytest.raises(DataError, match="not byte-level"):
        chat = write_jsonl(tmp_path / "chat.jsonl", make_records("chat"))
        build(chat, tmp_path / "chat", OPTIONS["chat"], tokenizer=tmp_path / "bert.json", eos_token="[SEP]")


def test_records_are_read_of_lines_and_parquet_only_and_only_copies_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for place in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(DataError, match=r"\.jsonl"):
            find_corpus(place, examples=OPTIONS["pairs"])
    rules = CleaningRules.model_validate({"length": {"min_words": 3}})
    with pytest.raises(ConfigError, match="of --format pairs only copies can be dropped"):
        BuildOptions(300, "x", rules=rules, examples=OPTIONS["pairs"])
    with pytest.raises(ConfigError, match="--special_tokens are those of a tokenizer to train"):
        BuildOptions(Path("tokenizer.json"), "x", special_tokens=("<mask>",))
    near = CleaningRules.model_validate({"duplicates": {"near": True}})
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"source": f"{n} {' '.join(map(str, range(200)))}", "target": "y"} for n in range(20)]
    )
    manifest = build(path, tmp_path / "out", ExampleOptions("pairs"), rules=near, validation_share=0)
    assert sum(totals.documents for totals in manifest.totals.values()) < 20


def test_values_that_the_classes_do_not_have_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_records("classes"))
    manifest = build(path, tmp_path / "out", OPTIONS["classes"])
    fewer = manifest.model_copy(update={"classes": ("bad", "good")})
    with pytest.raises(DataError, match="classes that there are not"):
        ShardReader(fewer, "train").check()
    with pytest.raises(DataError, match="its values of a document is 1, the manifest says 0"):
        ShardReader(manifest.model_copy(update={"values": (), "classes": ()}), "train").check()
