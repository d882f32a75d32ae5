"""llama.cpp cuts texts into the tokens that the model was trained on, or the tokenizer is refused."""

import inspect
import random
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.gguf_export import to_gguf
from scaletrain.convert.gguf_tokenizer import read_vocabulary
from scaletrain.data.tokenizer import END_OF_TEXT, Borders
from scaletrain.errors import ConfigError, DataError
from scaletrain.model.transformer import Transformer
from tests.convert.gguf_models import LLAMA, TEXTS, save, small_tokenizer
from tests.convert.llama_cpp import running

# The ways of published models, as transformers has them.
LLAMA3 = inspect.signature(TikTokenConverter).parameters["pattern"].default
QWEN2 = PRETOKENIZE_REGEX
PIECES = [
    *"abcXYZ019  \t\n\r'.,!?-_sStTlL\x0b\x1c\x85\u00a0\u3000\u200b\u2028",
    *(
        "'s",
        "'LL",
        "  ",
        "\r\n",
        "12345",
        "é",
        "e\u0301",
        "ß",
        "中",
        "文",
        "😀",
        "٣",
        "½",
        "Ⅷ",
        "²",
        "ſ",
        "İ",
        "ก",
        "ำ",
    ),
    *(END_OF_TEXT, "[PAD325]", "The river", " lake"),
]


def split_by(pattern: str, ignore_merges: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS * 3, *["I'LL don't  \r\n\r\n 1234567 a\tb"] * 3], trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": small_tokenizer,
    "llama-bpe": lambda: split_by(LLAMA3, ignore_merges=True),
    "smaug-bpe": lambda: split_by(LLAMA3, ignore_merges=False),
    "qwen2": lambda: split_by(QWEN2, ignore_merges=False),
}


def export(folder: Path, tokenizer: Tokenizer, bos_id: int | None = None) -> Path:
    """A file with that tokenizer and a model of no account."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**LLAMA))
    to_gguf(save(folder / "run", model, tokenizer, bos_id), folder / "model.gguf")
    return folder / "model.gguf"


def metadata(path: Path) -> dict[str, object]:
    prefix = "tokenizer.ggml."
    fields = gguf.GGUFReader(path).fields
    return {key.removeprefix(prefix): field.contents() for key, field in fields.items() if key.startswith(prefix)}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_cuts_texts_as_the_tokenizer_does(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    path = export(tmp_path, tokenizer)
    assert metadata(path)["pre"] == name
    draw = random.Random(0)
    texts = ["".join(draw.choices(PIECES, k=draw.randrange(1, 14))) for _ in range(200)]
    with running(path) as llama:
        for text in [*TEXTS, *texts]:
            tokens = tokenizer.encode(text, add_special_tokens=False).ids
            assert llama.tokenize(text, mark_start=True) == tokens, repr(text)
            assert llama.detokenize(tokens) == text


@pytest.mark.parametrize(("ignore_merges", "tokens"), [(True, ["abc"]), (False, ["ab", "c"])])
def test_a_word_that_is_a_token_stays_whole_where_it_should(
    ignore_merges: bool, tokens: list[str], tmp_path: Path
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {name: token for token, name in enumerate([END_OF_TEXT, *alphabet, "ab", "bc", "abc"])}
    # "ab" is joined first, so that no merge leads to "abc".
    tokenizer = split_by(LLAMA3, ignore_merges)
    merges = [("a", "b"), ("b", "c"), ("a", "bc")]
    tokenizer.model = models.BPE(words, merges, ignore_merges=ignore_merges)
    assert tokenizer.encode("abc").tokens == tokens
    with running(export(tmp_path, tokenizer)) as llama:
        assert llama.tokenize("abc") == [words[token] for token in tokens]


def test_rows_without_a_token_are_unused(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    size = tokenizer.get_vocab_size()
    # It looks like a name that would be made up for row 325; llama.cpp takes no two tokens of one name.
    tokenizer.add_tokens([AddedToken("[PAD325]", special=False)])
    said = metadata(export(tmp_path, tokenizer))
    tokens, kinds = said["tokens"], said["token_type"]
    assert isinstance(tokens, list) and isinstance(kinds, list)
    assert len(tokens) == len(kinds) == LLAMA["vocab_size"]
    assert [tokenizer.id_to_token(token) for token in range(size + 1)] == tokens[: size + 1]
    assert len(set(tokens)) == len(tokens)
    kind = gguf.TokenType
    unused = [kind.UNUSED] * (LLAMA["vocab_size"] - size - 1)
    assert kinds == [kind.CONTROL, *[kind.NORMAL] * (size - 1), kind.USER_DEFINED, *unused]
    assert (said["model"], said["eos_token_id"], said["add_bos_token"]) == ("gpt2", 0, False)


def test_a_token_that_begins_documents_is_put_before_texts(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens(["<|begin_of_text|>"])
    bos_id = tokenizer.token_to_id("<|begin_of_text|>")
    with running(export(tmp_path, tokenizer, bos_id)) as llama:
        plain = tokenizer.encode("The river").ids
        assert llama.tokenize("The river", mark_start=True) == [bos_id, *plain]
        assert llama.tokenize("The river") == plain


def test_without_the_runs_own_files_the_tokenizer_tells_its_borders(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens(["<s>"])
    bos_id = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos_id)])
    checkpoint = save(tmp_path / "run", Transformer(ModelConfig(**LLAMA)), small_tokenizer())
    for name in ("tokenizer.json", "corpus.json"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(DataError, match="--tokenizer"):
        to_gguf(checkpoint, tmp_path / "model.gguf")
    tokenizer.save(str(tmp_path / "other.json"))
    to_gguf(checkpoint, tmp_path / "model.gguf", tokenizer=tmp_path / "other.json")
    said = metadata(tmp_path / "model.gguf")
    assert (said["bos_token_id"], said["eos_token_id"], said["add_bos_token"]) == (bos_id, 0, True)


def changed(**steps: object) -> Tokenizer:
    tokenizer = small_tokenizer()
    for name, step in steps.items():
        setattr(tokenizer, name, step)
    return tokenizer


def sentence_piece() -> Tokenizer:
    words = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "\u2581a": 257}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def individual_digits() -> Tokenizer:
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return changed(pre_tokenizer=pre_tokenizers.Sequence(steps))


def other_behaviour() -> Tokenizer:
    steps = [pre_tokenizers.Split(Regex(LLAMA3), "removed"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return changed(pre_tokenizer=pre_tokenizers.Sequence(steps))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (sentence_piece, "BPE with byte_fallback"),
        (lambda: Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")), "model is WordPiece"),
        (lambda: changed(pre_tokenizer=pre_tokenizers.Whitespace()), 'pre_tokenizer is {"type": "Whitespace"}'),
        (lambda: changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), "add_prefix_space = true"),
        (lambda: changed(pre_tokenizer=pre_tokenizers.ByteLevel(False, use_regex=False)), "cuts texts by nothing"),
        (lambda: changed(normalizer=normalizers.Lowercase()), "normalizer Lowercase"),
        (lambda: split_by(r"\s+|\w+", ignore_merges=False), r"cuts texts by \s+|\w+, with ignore_merges = false"),
        (lambda: split_by(QWEN2, ignore_merges=True), "with ignore_merges = true"),
        (individual_digits, '"type": "Digits"'),
        (other_behaviour, '"behavior": "Removed"'),
        (lambda: changed(model=models.BPE({"a": 0}, [], dropout=0.1)), "dropout = 0.1"),
    ],
)
def test_a_tokenizer_that_gguf_cannot_say_is_refused_by_name(make: Callable[[], Tokenizer], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_vocabulary(make(), Borders(0, None), vocab_size=328)


def test_more_tokens_than_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokens up to \d+, but model\.vocab_size is 260"):
        read_vocabulary(small_tokenizer(), Borders(0, None), vocab_size=260)


def test_a_form_of_unicode_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    read_vocabulary(changed(normalizer=normalizers.NFC()), Borders(0, None), vocab_size=328)
    assert "NFC" in caplog.text
