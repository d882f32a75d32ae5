"""A conversion is proved by running both models, and a fault in it is found and placed."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from scaletrain.convert.reference_model import build_reference, reference_outputs, reference_spellings
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.streaming import WeightSource, build_without_weights, streamed
from scaletrain.convert.verification import verify
from scaletrain.data.tokenizer import train_byte_level_bpe
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.model.transformer import Transformer
from tests.convert.renamed_models import FAMILIES, H, Renamed, T, V, make

ROOT = Path(__file__).parents[2]


@pytest.fixture
def llama(tmp_path: Path) -> Renamed:
    return make("llama", tmp_path / "hf")


@pytest.fixture
def gpt2(tmp_path: Path) -> Renamed:
    return make("gpt2", tmp_path / "hf")


def refusal(model: Renamed, folder: Path, **options: str) -> str:
    """What the proof says against a model."""
    with pytest.raises(CheckpointError) as caught:
        verify(model.tensors(folder), model.config, model.hf_folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model_is_proved_in_every_family(family: str, tmp_path: Path) -> None:
    model = make(family, tmp_path / "hf")
    proof = verify(model.tensors(tmp_path / "ours"), model.config, model.hf_folder)
    assert proof.comparison.relative <= 1e-5
    assert proof.comparison.agreeing_share == 1
    assert [stage.name for stage in proof.comparison.states] == ["embedding", "layer 0", "layer 1", "layer 2"]
    assert all(stage.relative <= 3e-5 for stage in proof.comparison.states)
    assert proof.rounding is None and not proof.faults and not proof.unread


@pytest.mark.parametrize(
    ("family", "outputs", "n_positions", "tables"),
    [
        ("llama", ["logits"], 256, 1),
        ("mistral", ["logits"], 256, 1),
        ("bert", ["logits", "classes"], 256, 3),
        ("bert_bare", ["states", "pooled"], 256, 3),
        ("bert_classes", ["classes"], 2, 3),
    ],
)
def test_everything_that_both_models_tell_is_compared(
    family: str, outputs: list[str], n_positions: int, tables: int, tmp_path: Path
) -> None:
    model = make(family, tmp_path / "hf")
    proof = verify(model.tensors(tmp_path / "ours"), model.config, model.hf_folder)
    assert [stage.name for stage in proof.comparison.outputs] == outputs
    assert proof.comparison.n_positions == n_positions
    assert len(proof.tables) == tables


def swap_heads(weights: dict[str, Tensor]) -> None:
    q = weights["blocks.1.attention.q.weight"].unflatten(0, (-1, H))
    q[[0, 1]] = q[[1, 0]]


def transpose_square_matrix(weights: dict[str, Tensor]) -> None:
    weights["blocks.1.attention.q.weight"] = weights["blocks.1.attention.q.weight"].mT


def flip_one_sign(weights: dict[str, Tensor]) -> None:
    weights["blocks.1.feed_forward.down.weight"][7, 11] *= -1


def swap_norms(weights: dict[str, Tensor]) -> None:
    first, second = "blocks.1.attention_norm.weight", "blocks.1.feed_forward_norm.weight"
    weights[first], weights[second] = weights[second], weights[first]


FAULTS = [swap_heads, transpose_square_matrix, flip_one_sign, swap_norms]


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, id="fp32", marks=pytest.mark.thorough), pytest.param(torch.bfloat16, id="bf16")],
)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_fault_is_found_and_its_layer_named(
    family: str, fault: Callable[[dict[str, Tensor]], None], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = make(family, tmp_path / "hf", dtype)
    fault(model.weights)
    message = refusal(model, tmp_path / "ours", dtype="fp32" if dtype == torch.float32 else "bf16")
    assert "not the same. layer 1: largest difference" in message
    assert "it is the first that deviates" in message


def shrink_embedding(model: Renamed) -> None:
    model.weights["embedding.weight"] *= 0.02
    state = load_file(model.hf_folder / "model.safetensors")
    state["model.embed_tokens.weight"] = model.weights["embedding.weight"]
    save_file(state, model.hf_folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("change", [{"rope_theta": 500_000.0}, {"rope_theta": 10_010.0}, {"norm_eps": 1e-6}])
def test_another_number_in_the_configuration_is_found(change: dict[str, float], llama: Renamed, tmp_path: Path) -> None:
    other = replace(llama, config=llama.config.model_copy(update=change))
    if "norm_eps" in change:
        shrink_embedding(other)  # beside large ones such a number is nothing
    assert "not the same. layer 0:" in refusal(other, tmp_path / "ours")


def test_a_missing_sliding_window_is_found(tmp_path: Path) -> None:
    model = make("mistral", tmp_path / "hf")
    model.config = model.config.model_copy(update={"sliding_window": 0})
    assert "not the same. layer 0:" in refusal(model, tmp_path / "ours")


def test_a_fault_in_the_head_is_found(llama: Renamed, tmp_path: Path) -> None:
    llama.weights["output.weight"][[3, 4]] = llama.weights["output.weight"][[4, 3]]
    assert "not the same. logits: largest difference" in refusal(llama, tmp_path / "ours")


def test_a_fault_in_what_is_told_of_the_whole_sequence_is_found(tmp_path: Path) -> None:
    model = make("bert", tmp_path / "hf")
    model.weights["classifier.bias"] *= -1
    assert "not the same. classes: largest difference" in refusal(model, tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "place"), [("blocks.1.attention.k.weight", "layer 1: not finite"), ("output.weight", "logits: not finite")]
)
def test_a_nan_is_found_and_named(name: str, place: str, llama: Renamed, tmp_path: Path) -> None:
    llama.weights[name][3, 5] = torch.nan
    message = refusal(llama, tmp_path / "ours")
    assert f"values that are not finite in {name} of our model" in message
    assert place in message


def test_a_nan_on_both_sides_is_none_the_better(llama: Renamed, tmp_path: Path) -> None:
    llama.weights["blocks.2.feed_forward_norm.weight"][0] = torch.nan
    state = load_file(llama.hf_folder / "model.safetensors")
    state["model.layers.2.post_attention_layernorm.weight"][0] = torch.nan
    save_file(state, llama.hf_folder / "model.safetensors", metadata={"format": "pt"})
    assert "layer 2: not finite" in refusal(llama, tmp_path / "ours")


@pytest.mark.parametrize(("table", "row"), [("embedding", 90), ("position_embedding", 150)])
def test_a_row_that_the_text_does_not_need_is_compared_all_the_same(
    table: str, row: int, tmp_path: Path, gpt2: Renamed
) -> None:
    tokens = [list(range(40))] * 2
    assert verify(gpt2.tensors(tmp_path / "right"), gpt2.config, gpt2.hf_folder, tokens).comparison.n_positions == 80
    model = make("llama" if table == "embedding" else "gpt2", tmp_path / "untied")
    model.weights[f"{table}.weight"][row] += 1e-6
    with pytest.raises(CheckpointError, match=f"row {row} of the {table} table"):
        verify(model.tensors(tmp_path / "ours"), model.config, model.hf_folder, tokens)


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 8), ("fp16", 11)])
def test_rounded_weights_are_compared_as_rounded_and_as_they_were(dtype: str, bits: int, tmp_path: Path) -> None:
    model = make("qwen3", tmp_path / "hf", torch.bfloat16 if dtype == "bf16" else torch.float16)
    proof = verify(model.tensors(tmp_path / "ours"), model.config, model.hf_folder, dtype=dtype)
    assert proof.comparison.relative <= 1e-5
    assert proof.rounding is not None
    assert 0.1 * 2.0**-bits < proof.rounding.relative < proof.rounding_bound


def test_weights_cut_off_instead_of_rounded_are_found(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "hf", torch.bfloat16)
    state = load_file(model.hf_folder / "model.safetensors")
    cut = model.weights["blocks.2.feed_forward.up.weight"].view(torch.int32) & -65536  # the upper 16 bits
    state["model.layers.2.mlp.up_proj.weight"] = cut.view(torch.float32).bfloat16()
    save_file(state, model.hf_folder / "model.safetensors", metadata={"format": "pt"})
    assert "not the same. layer 2:" in refusal(model, tmp_path / "ours", dtype="bf16")


def test_weights_too_large_for_fp16_are_found(llama: Renamed, tmp_path: Path) -> None:
    llama.weights["blocks.0.feed_forward.down.weight"][0, 0] = 70_000.0
    assert "blocks.0.feed_forward.down.weight of our model" in refusal(llama, tmp_path / "ours", dtype="fp16")


def test_weights_that_no_output_depends_on_are_named(tmp_path: Path) -> None:
    model = make("bert_masked", tmp_path / "hf")
    model.weights["pooler.weight"] = torch.zeros(48, 48)
    proof = verify(model.tensors(tmp_path / "ours"), model.config, model.hf_folder)
    assert proof.unread == ("pooler.weight of our model",)
    assert any(line.startswith("not compared") and "pooler.weight" in line for line in proof.lines())


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "bert"])
def test_a_streamed_model_computes_what_a_loaded_one_does(family: str, tmp_path: Path) -> None:
    model = make(family, tmp_path / "hf")
    tokens = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(2))
    loaded = Transformer(model.config).eval()
    loaded.load_state_dict(model.weights, strict="bert" not in family and not model.config.tie_embeddings)
    empty = build_without_weights(lambda: Transformer(model.config))
    source = WeightSource(empty, model.tensors(tmp_path / "ours"), "our model")
    with torch.no_grad():
        with streamed(source, None):
            ours = empty(tokens)
        assert torch.equal(ours, loaded(tokens))
    reference = build_reference(model.hf_folder)
    source = WeightSource(reference, SafetensorsFolder(model.hf_folder), "their model", reference_spellings(reference))
    whole = type(reference).from_pretrained(model.hf_folder).eval()
    with torch.no_grad():
        with streamed(source, None):
            theirs = reference_outputs(reference, tokens)["logits"]
        assert torch.equal(theirs, reference_outputs(whole, tokens)["logits"])
    for half_run in (empty, reference):
        assert all(parameter.is_meta for parameter in half_run.parameters())


def test_a_file_may_hold_a_model_without_the_prefix_of_its_head(gpt2: Renamed, tmp_path: Path) -> None:
    bare = transformers.GPT2LMHeadModel.from_pretrained(gpt2.hf_folder).transformer
    bare.save_pretrained(tmp_path / "bare")
    config = (gpt2.hf_folder / "config.json").read_text()
    (tmp_path / "bare" / "config.json").write_text(config)
    assert "wte.weight" in load_file(tmp_path / "bare" / "model.safetensors")
    proof = verify(gpt2.tensors(tmp_path / "ours"), gpt2.config, tmp_path / "bare")
    assert [stage.name for stage in proof.comparison.outputs] == ["logits"]


def test_the_spelling_of_old_files_is_understood(tmp_path: Path) -> None:
    model = make("bert", tmp_path / "hf")
    path = model.hf_folder / "model.safetensors"
    state = load_file(path)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }
    save_file(old, path, metadata={"format": "pt"})
    assert not verify(model.tensors(tmp_path / "ours"), model.config, model.hf_folder).unread


def test_real_text_is_read_where_there_is_a_tokenizer(tmp_path: Path) -> None:
    model = make("gpt2", tmp_path / "hf")
    tensors = model.tensors(tmp_path / "ours")
    assert "random tokens" in verify(tensors, model.config, model.hf_folder).text
    tokenizer = train_byte_level_bpe(["Any text will do."], 300)
    tokenizer.save(str(model.hf_folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="has 97: it is another model's tokenizer"):
        verify(tensors, model.config, model.hf_folder)


def test_real_text_has_many_tokens(tmp_path: Path) -> None:
    model = make("wide_llama", tmp_path / "hf")
    train_byte_level_bpe(["Any text will do."], 300).save(str(model.hf_folder / "tokenizer.json"))
    proof = verify(model.tensors(tmp_path / "ours"), model.config, model.hf_folder)
    assert proof.text == "real text"
    assert proof.comparison.n_positions == 256


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([], "0 rows"),
        ([[1, 2], [3]], r"2 rows of lengths \[1, 2\]"),
        ([[1] * (T + 1)], f"from 1 to {T}"),
        ([[1, V]], f"Token {V} .* none of the model's {V}"),
        ([[1, -1]], "Token -1 "),
    ],
)
def test_tokens_that_are_none_of_the_models_are_refused(
    tokens: list[list[int]], says: str, gpt2: Renamed, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        verify(gpt2.tensors(tmp_path / "ours"), gpt2.config, gpt2.hf_folder, tokens)


def test_a_missing_tensor_and_one_of_another_shape_are_named(llama: Renamed, tmp_path: Path) -> None:
    removed = llama.weights.pop("blocks.2.attention.v.weight")
    assert "our model has no tensor blocks.2.attention.v.weight" in refusal(llama, tmp_path / "without")
    llama.weights["blocks.2.attention.v.weight"] = removed[:-1]
    assert "blocks.2.attention.v.weight in the shape (23, 48)" in refusal(llama, tmp_path / "smaller")


def test_a_folder_of_another_number_of_layers_is_refused(llama: Renamed, tmp_path: Path) -> None:
    llama.config = llama.config.model_copy(update={"n_layers": 2})
    assert "no list of 2 layers" in refusal(llama, tmp_path / "ours")


def test_a_folder_of_a_smaller_vocabulary_is_refused(llama: Renamed, tmp_path: Path) -> None:
    llama.config = llama.config.model_copy(update={"vocab_size": 2 * V})
    assert "LlamaForCausalLM cannot run" in refusal(llama, tmp_path / "ours")


def test_without_transformers_the_remedy_is_told(
    gpt2: Renamed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install scaletrain\[hf\].*--verify false"):
        verify(gpt2.tensors(tmp_path / "ours"), gpt2.config, gpt2.hf_folder)


def test_a_folder_that_transformers_does_not_know_is_refused(gpt2: Renamed, tmp_path: Path) -> None:
    (gpt2.hf_folder / "config.json").write_text('{"model_type": "unheard_of"}')
    assert "transformers cannot build the model" in refusal(gpt2, tmp_path / "ours")
    (gpt2.hf_folder / "config.json").unlink()
    assert "Check its config.json" in refusal(gpt2, tmp_path / "ours_again")


def test_the_text_for_people_is_aligned(tmp_path: Path) -> None:
    model = make("gpt2", tmp_path / "hf", torch.bfloat16)
    lines = verify(model.tensors(tmp_path / "ours"), model.config, model.hf_folder, dtype="bf16").lines()
    titles = ["compared", "same weights", "hidden states", "bf16 rounding", "row by row"]
    assert [line[: len(title)] for line, title in zip(lines, titles, strict=True)] == titles
    assert all(line[13:15] == "  " and line[15] != " " for line in lines)
    assert "logits, 256 positions of random tokens" in lines[0]


MEASURE = """
import sys
from pathlib import Path
from scaletrain.config.schema import ModelConfig
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.verification import verify

def peak_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

peaks = []
for folder in map(Path, sys.argv[1:]):
    config = ModelConfig.model_validate_json((folder / "ours.json").read_text())
    verify(SafetensorsFolder(folder / "ours"), config, folder / "hf", dtype="bf16")
    peaks.append(peak_kib())
print((peaks[1] - peaks[0]) / 1024)
"""


@pytest.mark.thorough
def test_memory_is_that_of_the_largest_module(tmp_path: Path) -> None:
    names = ("one_large_layer", "sixteen_large_layers")
    for name in names:
        (tmp_path / name).mkdir()
        model = make(name, tmp_path / name / "hf", torch.bfloat16)
        total_mib = sum(tensor.numel() for tensor in model.weights.values()) * 4 / 2**20
        model.weights = {key: tensor.bfloat16() for key, tensor in model.weights.items()}
        model.tensors(tmp_path / name / "ours")
        (tmp_path / name / "ours.json").write_text(model.config.model_dump_json())
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    # Fifteen layers more are 8 MiB of states that are kept, and 180 MiB of weights on either side that are not.
    assert total_mib > 190
    assert float(done.stdout) < 60
