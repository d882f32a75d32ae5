"""merge_lora against peft's own merge_and_unload, on tiny models that transformers makes."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from scaletrain.convert.lora import merge_lora, open_merged
from scaletrain.convert.low_rank import add_product
from scaletrain.convert.placing import lay_out_safetensors
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import CheckpointError, ConfigError
from tests.convert.lora_models import (
    BERT,
    GPT2,
    LLAMA,
    LLAMA_ALL,
    LLAMA_BIASED,
    LLAMA_TIED,
    Loader,
    save_adapter,
    save_source,
)


def by_peft(source: Path, adapter: Path, loader: Loader) -> Any:
    return PeftModel.from_pretrained(loader.from_pretrained(source), adapter).merge_and_unload()


def logits(model: Any) -> Tensor:
    tokens = torch.arange(40).view(2, 20) % 101
    with torch.no_grad():
        found: Tensor = model.eval()(tokens)[0]
    return found


def assert_merged_as_by_peft(tmp_path: Path, source: Path, adapter: Path, loader: Loader, processes: int = 1) -> None:
    """Every tensor and the logits, of the folder loaded by transformers."""
    merge_lora(source, adapter, tmp_path / "out", None, processes)
    expected = by_peft(source, adapter, loader)
    merged, info = loader.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    base = loader.from_pretrained(source).state_dict()
    wanted, found = expected.state_dict(), merged.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
    assert any(not base[name].equal(tensor) for name, tensor in found.items())
    torch.testing.assert_close(logits(merged), logits(expected), rtol=1e-5, atol=1e-5)


# Ranks and alphas by PEFT's rules: the first pattern that matches wins, a pattern matches whole parts of a name only,
# and may be a regular expression.
PATTERNS = {
    "rank_pattern": {r"layers\.0\..*q_proj": 5, "q_proj": 2, "roj": 7, r".*\.1\.mlp\.(up|down)_proj": 4},
    "alpha_pattern": {"self_attn.v_proj": 11, "v_proj": 13, "^model.layers.1.self_attn.k_proj": 1},
}
CASES: dict[str, tuple[Loader, PreTrainedConfig, dict[str, Any]]] = {
    "llama": (AutoModelForCausalLM, LLAMA, {"target_modules": LLAMA_ALL}),
    "llama_tied": (AutoModelForCausalLM, LLAMA_TIED, {"target_modules": LLAMA_ALL}),
    "rslora": (AutoModelForCausalLM, LLAMA, {"target_modules": LLAMA_ALL, "use_rslora": True}),
    "patterns": (AutoModelForCausalLM, LLAMA, {"target_modules": LLAMA_ALL} | PATTERNS),
    "rslora_patterns": (AutoModelForCausalLM, LLAMA, {"target_modules": LLAMA_ALL, "use_rslora": True} | PATTERNS),
    "head": (AutoModelForCausalLM, LLAMA, {"target_modules": ["q_proj", "lm_head"]}),
    "embedding": (AutoModelForCausalLM, LLAMA, {"target_modules": ["embed_tokens", "q_proj"]}),
    "whole": (
        AutoModelForCausalLM,
        LLAMA,
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    ),
    "bias_all": (AutoModelForCausalLM, LLAMA_BIASED, {"target_modules": ["q_proj", "up_proj"], "bias": "all"}),
    "bias_lora_only": (AutoModelForCausalLM, LLAMA_BIASED, {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "lora_bias": (AutoModelForCausalLM, LLAMA_BIASED, {"target_modules": ["q_proj"], "lora_bias": True}),
    "lora_bias_and_all": (
        AutoModelForCausalLM,
        LLAMA_BIASED,
        {"target_modules": ["q_proj"], "lora_bias": True, "bias": "all"},
    ),
    "gpt2": (AutoModelForCausalLM, GPT2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2_bias": (AutoModelForCausalLM, GPT2, {"target_modules": ["c_proj"], "bias": "all", "fan_in_fan_out": True}),
    # The layers are Conv1D, the head is not; the square c_proj shows which of both is turned.
    "gpt2_head": (AutoModelForCausalLM, GPT2, {"target_modules": ["c_proj", "lm_head", "wte", "wpe"]}),
    "gpt2_score": (AutoModelForSequenceClassification, GPT2, {"target_modules": ["c_proj"], "task_type": "SEQ_CLS"}),
    "bert": (AutoModelForMaskedLM, BERT, {"target_modules": ["query", "value", "dense"]}),
    "bert_bias": (AutoModelForMaskedLM, BERT, {"target_modules": ["query", "dense"], "bias": "all"}),
    "bert_base": (AutoModel, BERT, {"target_modules": ["query", "position_embeddings"], "bias": "lora_only"}),
    "bert_classes": (
        AutoModelForSequenceClassification,
        BERT,
        {"target_modules": ["query"], "task_type": "SEQ_CLS", "modules_to_save": ["classifier"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_fp32_equals_peft(tmp_path: Path, case: str) -> None:
    loader, config, options = CASES[case]
    source = save_source(tmp_path / "source", loader, config)
    adapter = save_adapter(tmp_path / "adapter", source, loader, **options)
    assert_merged_as_by_peft(tmp_path, source, adapter, loader)


@pytest.mark.filterwarnings("ignore")
def test_an_embedding_may_be_replaced_and_adapted(tmp_path: Path) -> None:
    """As when rows of it were made anew before the training."""
    source = save_source(tmp_path / "source", AutoModelForCausalLM, LLAMA)
    adapter = save_adapter(tmp_path / "adapter", source, AutoModelForCausalLM, target_modules=["embed_tokens"])
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.embed_tokens.base_layer.weight"][7:9] += 1
    save_file(tensors, path)
    assert_merged_as_by_peft(tmp_path, source, adapter, AutoModelForCausalLM)


@pytest.mark.parametrize("adapter_dtype", ["fp32", "bf16"])
def test_bf16_is_the_exact_sum_rounded_once(tmp_path: Path, adapter_dtype: str) -> None:
    source = save_source(tmp_path / "source", AutoModelForCausalLM, LLAMA, "bf16")
    adapter = save_adapter(tmp_path / "adapter", source, AutoModelForCausalLM, adapter_dtype, target_modules=LLAMA_ALL)
    merge_lora(source, adapter, tmp_path / "out", None, 1)
    found, weights = load_file(tmp_path / "out" / "model.safetensors"), load_file(source / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    peft = by_peft(source, adapter, AutoModelForCausalLM).state_dict()
    for name, weight in weights.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        exact = weight.double()
        if f"{key}A.weight" in factors:
            exact = exact + 5 / 3 * factors[f"{key}B.weight"].double() @ factors[f"{key}A.weight"].double()
        assert found[name].dtype == torch.bfloat16
        # Of a sum in fp32 that lies next to the middle of two neighbours the last bit may go the other way.
        wrong = found[name] != exact.bfloat16()
        assert wrong.double().mean() < 1e-3, name
        step = torch.finfo(torch.bfloat16).eps * exact.abs()
        assert bool(((found[name].double() - exact).abs() <= 0.505 * step).all()), name
        # peft rounds the product too, where the adapter is bf16: one rounding apart.
        assert bool(((found[name].double() - peft[name].double()).abs() <= 2.02 * step + 1e-12).all()), name


def test_a_dtype_is_written_and_told(llama: tuple[Path, Path], tmp_path: Path) -> None:
    merge_lora(*llama, tmp_path / "wide", None, 1)
    merge_lora(*llama, tmp_path / "half", "bf16", 1)
    wide, half = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "half"))
    assert all(tensor.equal(wide[name].bfloat16()) for name, tensor in half.items())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "wide").dtype == torch.float32
    with pytest.raises(ConfigError, match="int8 is no type to store weights in"):
        merge_lora(*llama, tmp_path / "other", "int8", 1)


@pytest.mark.thorough
def test_shards_and_processes_give_the_same_bits(llama: tuple[Path, Path], tmp_path: Path) -> None:
    source, adapter = llama
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(sharded, max_shard_size="10KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    merge_lora(source, adapter, tmp_path / "one", None, 1)
    merge_lora(sharded, adapter, tmp_path / "two", None, 2)
    one, two = SafetensorsFolder(tmp_path / "one"), SafetensorsFolder(tmp_path / "two")
    assert one.infos == two.infos
    for name, info in one.infos.items():
        assert one.read(name, 0, info.numel).equal(two.read(name, 0, info.numel)), name


def test_a_model_saved_without_its_head_takes_an_adapter_trained_with_it(tmp_path: Path) -> None:
    """As GPT-2's own files: names without ``transformer.``, and the reverse."""
    options = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    whole = save_source(tmp_path / "whole", AutoModelForCausalLM, GPT2)
    AutoModel.from_pretrained(whole).save_pretrained(tmp_path / "body")
    of_whole = save_adapter(tmp_path / "of_whole", whole, AutoModelForCausalLM, **options)
    of_body = save_adapter(tmp_path / "of_body", tmp_path / "body", AutoModel, **options)
    merge_lora(tmp_path / "body", of_whole, tmp_path / "out_body", None, 1)
    merge_lora(whole, of_body, tmp_path / "out_whole", None, 1)
    expected = by_peft(whole, of_whole, AutoModelForCausalLM).transformer.state_dict()
    body = load_file(tmp_path / "out_body" / "model.safetensors")
    assert body.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(body[name], tensor, rtol=1e-6, atol=1e-6)
    inner = by_peft(tmp_path / "body", of_body, AutoModel).state_dict()
    found = load_file(tmp_path / "out_whole" / "model.safetensors")
    for name, tensor in inner.items():
        torch.testing.assert_close(found[f"transformer.{name}"], tensor, rtol=1e-6, atol=1e-6)


def test_a_pickled_adapter_is_read_and_never_run(llama: tuple[Path, Path], adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, adapter / "adapter_model.bin")
    merge_lora(*llama, tmp_path / "one", None, 1)
    merge_lora(llama[0], adapter, tmp_path / "two", None, 1)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(one[name].equal(two[name]) for name in one)

    torch.save(tensors | {"more": Path("x")}, adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is refused"):
        merge_lora(llama[0], adapter, tmp_path / "three", None, 1)
    assert not (tmp_path / "three").exists()


def test_everything_but_weights_is_copied(llama: tuple[Path, Path], tmp_path: Path) -> None:
    source = shutil.copytree(llama[0], tmp_path / "source")
    (source / "tokenizer.json").write_text('{"a": 1}')
    (source / "tokenizer.model").write_bytes(b"\0\1")
    (source / "extra").mkdir()
    (source / "extra" / "notes.txt").write_text("text")
    for stale in ("pytorch_model.bin", "model.gguf", "model.onnx", ".hidden", "pytorch_model.bin.index.json"):
        (source / stale).write_text("old")
    merge_lora(source, llama[1], tmp_path / "out", None, 1)
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    kept = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "extra", "extra/notes.txt"}
    assert written == kept | {"model.safetensors"}
    for name in kept - {"extra"}:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(-2, 2, width=32), st.integers(0), st.integers(0)
)
def test_any_range_gets_its_part_of_the_product(
    rows: int, columns: int, rank: int, scale: float, first: int, length: int
) -> None:
    start = first % (rows * columns)
    numel = 1 + length % (rows * columns - start)
    generator = torch.Generator().manual_seed(rows + 10 * columns)
    left = torch.randn(rank, rows, generator=generator).T
    right = torch.randn(rank, columns, generator=generator)
    values = torch.randn(numel, generator=generator)
    expected = values.double() + scale * (left.double() @ right.double()).flatten()[start : start + numel]
    add_product(values, start, left, right, scale)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_range_of_any_tensor_is_that_of_the_whole(llama: tuple[Path, Path]) -> None:
    merged = open_merged(*llama)
    for name, info in merged.infos.items():
        whole = merged.read(name, 0, info.numel)
        for start, numel in ((0, info.numel), (info.numel // 3, info.numel // 2), (info.numel - 1, 1)):
            part = merged.read(name, start, numel)
            torch.testing.assert_close(part, whole[start : start + numel], rtol=1e-6, atol=1e-6)
            assert part.dtype == info.dtype
        merged.release()


MEASURE = """
import sys
from pathlib import Path

from scaletrain.convert.diff import diff
from scaletrain.convert.lora import merge_lora
from scaletrain.convert.weights_folder import open_weights

def peak_mib():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

source, adapter, out = map(Path, sys.argv[1:])
before = peak_mib()
merge_lora(source, adapter, out, None, 1)
(found,) = diff(open_weights(source), open_weights(out))
assert found.largest_absolute == 6 and found.differing_share == 1, found
print(peak_mib() - before)
"""


@pytest.mark.thorough
def test_memory_does_not_depend_on_the_largest_tensor(tmp_path: Path) -> None:
    """A matrix of 256 MiB to which a product of ones is added; the source is a hole in a file, that is, zeros."""
    source, adapter = tmp_path / "source", tmp_path / "adapter"
    for folder in (source, adapter):
        folder.mkdir()
    name, shape = "model.layers.0.mlp.up_proj", (1 << 16, 1 << 10)
    lay_out_safetensors(source, {f"{name}.weight": TensorInfo(shape, torch.float32)}, 1 << 40, {})
    (source / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": false}')
    factors = {"A": torch.ones(3, shape[1]), "B": torch.ones(shape[0], 3)}
    stored = {f"base_model.model.{name}.lora_{key}.weight": factor for key, factor in factors.items()}
    save_file(stored, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 6}')
    command = [sys.executable, "-c", MEASURE, str(source), str(adapter), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=140)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 160, done.stdout
    shutil.rmtree(tmp_path / "out")


def test_weights_pickled_by_torch_are_merged_into(llama: tuple[Path, Path], tmp_path: Path) -> None:
    source = shutil.copytree(llama[0], tmp_path / "source")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    merge_lora(source, llama[1], tmp_path / "one", None, 1)
    merge_lora(*llama, tmp_path / "two", None, 1)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)
    assert not list((tmp_path / "one").glob("*.bin"))
