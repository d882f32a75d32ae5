"""A GGUF file holds the model's own numbers, and llama.cpp says with it what the model says."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from scaletrain.checkpoint.layout import CONFIG
from scaletrain.config.schema import ModelConfig
from scaletrain.convert.gguf_export import to_gguf
from scaletrain.errors import CheckpointError, ConfigError, DataError
from scaletrain.evaluation.generation import generate
from scaletrain.model.transformer import Transformer
from tests.convert.gguf_models import LLAMA, PROMPTS, SHAPES, save, small_tokenizer, train
from tests.convert.llama_cpp import running

END = 0


class Trained(NamedTuple):
    model: Transformer
    tokenizer: Tokenizer
    checkpoint: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Each model, trained once."""
    made: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in made:
            tokenizer = small_tokenizer()
            model = train(SHAPES[name], tokenizer)
            made[name] = Trained(model, tokenizer, save(tmp_path_factory.mktemp("run"), model, tokenizer))
        return made[name]

    return get


def log_probabilities(model: Transformer, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0, -1].log_softmax(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_says_what_the_model_says(name: str, trained: Callable[[str], Trained], tmp_path: Path) -> None:
    model, tokenizer, checkpoint = trained(name)
    to_gguf(checkpoint, tmp_path / "model.gguf", dtype="fp32")
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    # llama.cpp looks GELU up in a table of 16-bit numbers.
    tolerance = 5e-3 if name == "gpt2" else 5e-5
    with running(tmp_path / "model.gguf") as llama:
        for tokens in prompts:
            expected = list(generate(model, tokens, 60, temperature=0, ends={END}))
            assert llama.generate(tokens, 60) == expected
            for length in (1, len(tokens), len(tokens) + len(expected)):
                part = [*tokens, *expected][:length]
                told = torch.tensor(llama.log_probabilities(part, model.config.vocab_size))
                torch.testing.assert_close(told, log_probabilities(model, part), rtol=0, atol=tolerance)


def neighbours_to_halves(rows: np.ndarray[Any, Any], n_heads: int) -> np.ndarray[Any, Any]:
    """Undoes the order of rows of llama.cpp's queries and keys."""
    return np.concatenate([half for head in np.split(rows, n_heads) for half in (head[0::2], head[1::2])])


def expected_tensors(model: Transformer, architecture: str) -> dict[str, Tensor]:
    """The model's tensors by the names in the file, written down one by one."""
    tensors = {"token_embd.weight": model.embedding.weight}
    if architecture == "gpt2":
        tensors["position_embd.weight"] = model.position_embedding.weight
    if not model.config.tie_embeddings:
        tensors["output.weight"] = model.output.weight
    modules = {"output_norm": model.norm}
    for index, block in enumerate(model.blocks):
        attention, feed_forward = block.attention, block.feed_forward
        of_block = {
            "attn_norm": block.attention_norm,
            "attn_output": attention.out,
            "ffn_norm": block.feed_forward_norm,
            "ffn_up": feed_forward.up,
            "ffn_down": feed_forward.down,
        }
        if architecture == "gpt2":
            for kind in ("weight", "bias"):
                parts = [getattr(getattr(attention, part), kind) for part in ("q", "k", "v")]
                tensors[f"blk.{index}.attn_qkv.{kind}"] = torch.cat(parts)
        else:
            of_block |= {"attn_q": attention.q, "attn_k": attention.k, "attn_v": attention.v}
            of_block["ffn_gate"] = feed_forward.gate
        if architecture == "qwen3":
            of_block |= {"attn_q_norm": attention.q_norm, "attn_k_norm": attention.k_norm}
        modules |= {f"blk.{index}.{name}": module for name, module in of_block.items()}
    for name, module in modules.items():
        tensors |= {f"{name}.{kind}": weight for kind, weight in module.named_parameters()}
    return {name: tensor.detach() for name, tensor in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_every_number_is_the_models(name: str, trained: Callable[[str], Trained], tmp_path: Path) -> None:
    model, _, checkpoint = trained(name)
    to_gguf(checkpoint, tmp_path / "model.gguf", dtype="fp32")
    architecture = name.split()[0]
    expected = expected_tensors(model, architecture)
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    if name == "llama 3.1":
        factors = found.pop("rope_freqs.weight")
        assert factors.shape == (8,) and factors[0] == 1 and factors[-1] == 8
        assert (np.diff(factors) >= 0).all()
    assert found.keys() == expected.keys()
    for tensor, numbers in found.items():
        if architecture == "llama" and ".attn_q." in tensor:
            numbers = neighbours_to_halves(numbers, model.config.n_heads)
        if architecture == "llama" and ".attn_k." in tensor:
            numbers = neighbours_to_halves(numbers, model.config.n_kv_heads)
        assert numbers.dtype == np.float32 and np.array_equal(numbers, expected[tensor].numpy()), tensor


def test_the_file_says_how_frequencies_are_stretched(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    to_gguf(trained("llama with wide heads").checkpoint, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    scaling = {kind: fields[f"llama.rope.scaling.{kind}"].contents() for kind in ("type", "factor")}
    assert scaling == {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_matrices_are_rounded_and_all_else_is_kept(
    name: str, dtype: str, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    model, tokenizer, checkpoint = trained(name)
    to_gguf(checkpoint, tmp_path / "model.gguf", dtype=dtype)
    kind, torch_type = {"fp16": ("F16", torch.float16), "bf16": ("BF16", torch.bfloat16)}[dtype]
    expected = expected_tensors(model, name)
    for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors:
        exact = expected[tensor.name]
        if exact.dim() == 1 or tensor.name == "position_embd.weight":
            assert tensor.tensor_type.name == "F32" and np.array_equal(tensor.data, exact.numpy()), tensor.name
        else:
            bits = torch.from_numpy(tensor.data.view(np.int16).copy()).view(exact.shape)
            assert tensor.tensor_type.name == kind and torch.equal(bits, exact.to(torch_type).view(torch.int16))
    tokens = tokenizer.encode(PROMPTS[0]).ids
    with running(tmp_path / "model.gguf") as llama:
        assert llama.generate(tokens, 60) == list(generate(model, tokens, 60, temperature=0, ends={END}))


@pytest.mark.thorough
def test_two_processes_write_the_same_file(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    checkpoint = trained("llama").checkpoint
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        to_gguf(checkpoint, tmp_path / str(processes) / "model.gguf", processes=processes)
    assert (tmp_path / "1/model.gguf").read_bytes() == (tmp_path / "2/model.gguf").read_bytes()


MEASURE = r"""
import re, sys
from pathlib import Path
import gguf, torch
from scaletrain.convert.gguf_export import to_gguf

def peak_mib():
    # getrusage would tell the peak of the process that started this one, where that was higher.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before = peak_mib()
to_gguf(Path(sys.argv[1]), Path(sys.argv[2]), dtype="fp16")
print(peak_mib() - before)
"""


@pytest.mark.thorough
def test_memory_is_less_than_one_large_tensor(tmp_path: Path) -> None:
    shape = {**SHAPES["gpt2"], "d_model": 1024, "d_ff": 64, "n_layers": 1, "max_seq_len": 100_000}
    model = Transformer(ModelConfig(**shape))
    checkpoint = save(tmp_path / "run", model, small_tokenizer())
    largest_mib = model.position_embedding.weight.nbytes / 2**20
    command = [sys.executable, "-c", MEASURE, str(checkpoint), str(tmp_path / "model.gguf")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    assert 16 < float(result.stdout) < 300 < largest_mib
    embedding = next(t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors if t.name == "position_embd.weight")
    assert np.array_equal(embedding.data[-1], model.position_embedding.weight[-1].detach().numpy())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"positions": "learned"}, "model.positions = learned (it has rotary)"),
        ({"positions": "sinusoidal"}, "model.positions = sinusoidal"),
        ({"norm": "layer_norm"}, "model.norm = layer_norm (it has rms_norm)"),
        ({"activation": "gelu"}, "model.activation = gelu (it has swiglu)"),
        ({"parallel_residual": True}, "model.parallel_residual = true (it has false)"),
        ({"rotary_dim": 8}, "model.rotary_dim = 8 (it rotates all of a head's 16 dimensions)"),
        ({"sliding_window": 64}, "model.sliding_window = 64 (it sees all tokens)"),
        ({"causal": False, "n_segments": 2}, "model.causal = false (it has true), nor model.n_segments = 2 (it has 0)"),
        ({"output_bias": True}, "model.output_bias = true"),
        (
            {"qk_norm": True, "bias": True},
            "architecture qwen3, the nearest to this model, cannot say model.bias = true",
        ),
        ({"qkv_bias": True, "rope_scaling": "llama3"}, "model.rope_scaling = llama3 (it has none or linear)"),
        ({"positions": "learned", "norm": "layer_norm", "activation": "gelu_tanh"}, "model.n_kv_heads = 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_gguf_cannot_say_is_refused_by_name(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = Transformer(ModelConfig(**{**LLAMA, **changed}))
    checkpoint = save(tmp_path / "run", model, small_tokenizer())
    with pytest.raises(ConfigError, match=re.escape(said)):
        to_gguf(checkpoint, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_window_that_hides_nothing_is_none(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    tokenizer = trained("llama").tokenizer
    model = Transformer(ModelConfig(**LLAMA, sliding_window=LLAMA["max_seq_len"]))
    to_gguf(save(tmp_path / "run", model, tokenizer), tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").exists()


def test_nothing_is_left_where_it_cannot_be_done(
    trained: Callable[[str], Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, checkpoint = trained("llama")
    out = tmp_path / "model.gguf"
    with pytest.raises(ConfigError, match="--dtype int8"):
        to_gguf(checkpoint, out, dtype="int8")
    with pytest.raises(DataError, match=r"no_such\.json"):
        to_gguf(checkpoint, out, tokenizer=tmp_path / "no_such.json")
    damaged = save(tmp_path / "run", model, tokenizer)
    states = damaged / "mp_rank_00_model_states.pt"
    states.write_bytes(b"\0" * states.stat().st_size)
    with pytest.raises(CheckpointError):
        to_gguf(damaged, out)
    other = save(tmp_path / "other", model, tokenizer)
    text = (other / CONFIG).read_text()
    (other / CONFIG).write_text(text.replace("d_ff: 128", "d_ff: 124"))
    with pytest.raises(
        CheckpointError, match=r"blocks\.0\.feed_forward\.down\.weight is \(64, 128\) in the one and \(64, 124\)"
    ):
        to_gguf(other, out)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=re.escape("pip install scaletrain[gguf]")):
        to_gguf(checkpoint, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]


def test_a_file_that_is_there_stays(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        to_gguf(trained("llama").checkpoint, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_text() == "mine"
