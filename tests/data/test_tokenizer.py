import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from scaletrain.data.tokenizer import (
    END_OF_TEXT,
    find_borders,
    load_tokenizer,
    token_byte_lengths,
    train_byte_level_bpe,
    vocabulary_rows,
)
from scaletrain.errors import ConfigError, DataError

TEXTS = ["def main():\n    return 'été' + \"λ\"\n", "class A:\n    pass\n" * 4, "the theme of the thesis 🙂"] * 3
TRAINED = train_byte_level_bpe(TEXTS, 320)


@settings(max_examples=200, deadline=None)
@given(st.text() | st.sampled_from([END_OF_TEXT, f"a{END_OF_TEXT}b", "\r\n\t  x", "\x00", "def main():\n"]))
def test_texts_come_back_exactly_and_their_bytes_are_counted(text: str) -> None:
    ids = TRAINED.encode_batch_fast([text], add_special_tokens=False)[0].ids
    assert TRAINED.decode(ids, skip_special_tokens=False) == text
    assert int(token_byte_lengths(TRAINED)[ids].sum()) == len(text.encode())
    # No text can pretend to be the end of a document.
    assert find_borders(TRAINED).eos_id not in ids


def test_special_tokens_stand_for_no_bytes() -> None:
    lengths = token_byte_lengths(TRAINED)
    assert lengths.dtype == np.int32 and len(lengths) == vocabulary_rows(TRAINED) == TRAINED.get_vocab_size() <= 320
    assert lengths[find_borders(TRAINED).eos_id] == 0
    assert (np.sort(lengths)[1:] > 0).all()


def test_special_tokens_of_ones_own_come_behind_the_end_of_text() -> None:
    tokenizer = train_byte_level_bpe(TEXTS, 320, ["<mask>", "<cls>"])
    assert [tokenizer.id_to_token(token) for token in range(3)] == [END_OF_TEXT, "<mask>", "<cls>"]
    assert token_byte_lengths(tokenizer)[:3].tolist() == [0, 0, 0]
    text = "a <mask> is text"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text and 1 not in tokenizer.encode(text).ids
    for names in (["<mask>", "<mask>"], [END_OF_TEXT], [""]):
        with pytest.raises(ConfigError, match="each needs a name of its own"):
            train_byte_level_bpe(TEXTS, 320, names)
    with pytest.raises(ConfigError, match="<cls> need 259"):
        train_byte_level_bpe(TEXTS, 258, ["<mask>", "<cls>"])


def test_training_is_repeatable_in_another_process(tmp_path: Path) -> None:
    program = (
        "import hashlib, sys; from scaletrain.data.tokenizer import train_byte_level_bpe\n"
        "print(hashlib.sha256(train_byte_level_bpe(eval(sys.argv[1]), 320).to_str().encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", program, repr(TEXTS)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(TRAINED.to_str().encode()).hexdigest()


def test_a_saved_tokenizer_encodes_as_before(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TRAINED.save(str(path))
    text = TEXTS[0] + END_OF_TEXT
    loaded = load_tokenizer(path)
    assert loaded.encode(text).ids == TRAINED.encode(text).ids


def test_a_tokenizer_that_puts_a_token_before_a_text_has_a_bos() -> None:
    tokenizer = Tokenizer.from_str(TRAINED.to_str())
    assert find_borders(tokenizer).bos_id is None
    tokenizer.add_special_tokens(["<s>"])
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    assert find_borders(tokenizer).bos_id == begin
    assert find_borders(tokenizer, eos_token="<s>").eos_id == begin


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match="--eos_token"):
        find_borders(words)
    with pytest.raises(DataError, match="not byte-level"):
        token_byte_lengths(words)
    with pytest.raises(ConfigError, match="256 bytes"):
        train_byte_level_bpe(TEXTS, 256)
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path / "missing.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        load_tokenizer(tmp_path / "other.json")
