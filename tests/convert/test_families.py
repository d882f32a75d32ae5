"""Models of transformers come here and go back: the same bits, the same logits, the same tokens."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForPreTraining,
    BertModel,
    pipeline,
)

from scaletrain.checkpoint.weights import load_weights
from scaletrain.config.load import load_config
from scaletrain.config.schema import ModelConfig
from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.from_hf import from_hf
from scaletrain.convert.pairs import Copy, whole
from scaletrain.convert.registry import FAMILIES, family_for
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.start import Start, write_start
from scaletrain.convert.tensors import TensorInfo
from scaletrain.convert.to_hf import to_hf
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.evaluation.generation import generate
from scaletrain.model.transformer import Transformer
from tests.convert.tiny_models import CAUSAL, MODELS, TEXT, VOCAB, save, tokenizer


def start_of(folder: Path) -> CheckpointTensors:
    return CheckpointTensors(find_checkpoint(folder))


def ours(start: Path) -> Transformer:
    model = Transformer(start_of(start).config)
    model.load_state_dict(load_weights(start / "checkpoints"))
    return model.eval()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_model_comes_here_and_goes_back_bit_for_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    reference = save(name, tmp_path / "there", dtype)
    from_hf(tmp_path / "there", tmp_path / "here")
    to_hf(start_of(tmp_path / "here"), tmp_path / "back")
    assert same_bits(tensors_of(tmp_path / "there"), tensors_of(tmp_path / "back"))
    if dtype == torch.float32:
        tokens = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
        model = ours(tmp_path / "here")
        again = type(reference).from_pretrained(tmp_path / "back").eval()
        with torch.no_grad():
            expected, returned, hidden = reference(tokens), again(tokens), model.hidden(tokens)
            key = next(key for key in ("logits", "prediction_logits", "last_hidden_state") if key in expected)
            here = hidden if key == "last_hidden_state" else model.logits(hidden)
            torch.testing.assert_close(here, expected[key], rtol=1e-5, atol=1e-5)
            assert torch.equal(returned[key], expected[key])
            if model.config.n_classes:
                torch.testing.assert_close(model.class_logits(hidden), expected["seq_relationship_logits"])
            if "pooler_output" in expected:
                torch.testing.assert_close(model.pooled(hidden), expected["pooler_output"], rtol=1e-5, atol=1e-5)
        assert float(expected[key].std()) > 0.3  # wide enough for the comparison to mean something


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSAL)
def test_a_model_generates_the_same_tokens_there_and_here(tmp_path: Path, name: str) -> None:
    save(name, tmp_path / "there")
    from_hf(tmp_path / "there", tmp_path / "here")
    to_hf(start_of(tmp_path / "here"), tmp_path / "back")
    prompt = "the quick brown"
    there = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    words = AutoTokenizer.from_pretrained(tmp_path / "back")
    ids = words(prompt, return_tensors="pt").input_ids
    expected = there.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
    found = list(generate(ours(tmp_path / "here"), ids[0].tolist(), 24, temperature=0, ends={0}))
    assert found == [token for token in expected if token != 0]
    assert len(set(found)) > 3
    answer = pipeline("text-generation", model=str(tmp_path / "back"))(prompt, max_new_tokens=8, do_sample=False)
    assert answer[0]["generated_text"] == prompt + tokenizer().decode(found[:8])


SMALL = {"vocab_size": 50, "d_model": 48, "n_layers": 2, "n_heads": 4, "max_seq_len": 32}
# A description of each kind as a training here would have it.
TRAINED_HERE = {
    "gpt2": {"activation": "relu"},
    "gpt_neox": {"positions": "rotary", "rotary_dim": 6, "parallel_residual": True, "tie_embeddings": False},
    "llama": {"positions": "rotary", "norm": "rms_norm", "activation": "swiglu", "bias": False, "n_kv_heads": 2},
    "mistral": {"sliding_window": 9},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "n_kv_heads": 1},
    "bert": {
        "causal": False,
        "norm_position": "post",
        "embedding_norm": True,
        "n_segments": 2,
        "output_transform": True,
        "output_bias": True,
        "activation": "gelu",
    },
}
for _name in ("mistral", "qwen2", "qwen3"):
    TRAINED_HERE[_name] = TRAINED_HERE["llama"] | TRAINED_HERE[_name]


PRESETS = {
    "demo": "gpt_neox",
    "gpt2": "gpt2",
    "gpt3": "gpt2",
    "llama2": "llama",
    "llama3": "llama",
    "bert": "bert",
    "t5": "t5",
    "transformer": "marian",
}


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs/model").glob("*.yaml")), ids=lambda path: path.stem
)
def test_each_preset_is_one_of_the_family_that_the_page_names(path: Path) -> None:
    model = load_config(None, {"model.preset": path.stem}).model
    family, described = family_for(model)
    assert family.model_type == PRESETS[path.stem.split("_")[0]]
    added = [key for key, value in described.model_dump().items() if value != getattr(model, key)]
    biases = ["bias", "qkv_bias", "attention_out_bias"]
    assert added == {"gpt_neox": biases, "marian": ["output_bias"]}.get(family.model_type, [])


@pytest.mark.parametrize("name", TRAINED_HERE)
def test_each_description_is_one_of_its_family(name: str) -> None:
    model = ModelConfig(**SMALL, **TRAINED_HERE[name])
    assert family_for(model) == (FAMILIES[name], model)
    assert FAMILIES[name].model_of(FAMILIES[name].write(model) | {"model_type": name}) == model


def write(model: Transformer, out: Path) -> CheckpointTensors:
    """A start with a model's weights."""
    infos = {name: TensorInfo(tuple(weight.shape), weight.dtype) for name, weight in model.named_parameters()}
    save_file(dict(model.named_parameters()), out.with_suffix(".safetensors"))
    copies = [Copy(whole(name, info.shape), whole(name, info.shape)) for name, info in infos.items()]
    source = functools.partial(SafetensorsFolder, out.with_suffix(".safetensors"))
    start = Start(model.config, infos, None, None, {})
    write_start(out, start, lambda places: copy_tensors(source, copies, places))
    return start_of(out)


def train(model: Transformer) -> None:
    """A few steps on random text, of the next token or of each token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(4):
        tokens = torch.randint(50, (4, 24), generator=torch.Generator().manual_seed(step))
        inputs, targets = (tokens[:, :-1], tokens[:, 1:]) if model.config.causal else (tokens, tokens)
        torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED_HERE)
def test_a_model_trained_here_goes_there_and_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**SMALL, init_std=0.2, **TRAINED_HERE[name]))
    train(model)
    family, proof = to_hf(write(model, tmp_path / "here"), tmp_path / "there", proves=True)
    assert family.model_type == name and proof is not None
    kind = AutoModelForMaskedLM if name == "bert" else AutoModelForCausalLM
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        there = kind.from_pretrained(tmp_path / "there").eval()(tokens).logits
        torch.testing.assert_close(there, model.eval()(tokens), rtol=1e-5, atol=1e-5)
    from_hf(tmp_path / "there", tmp_path / "back", proves=True)
    returned = load_weights(tmp_path / "back" / "checkpoints")
    assert same_bits(returned, {name: weight.detach() for name, weight in model.state_dict().items()})


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_model_without_biases_goes_out_with_biases_of_zero(tmp_path: Path, positions: str) -> None:
    model = Transformer(ModelConfig(**SMALL, positions=positions, bias=False, init_std=0.3)).eval()
    family, _ = to_hf(write(model, tmp_path / "here"), tmp_path / "there", proves=True)
    assert family.model_type == {"learned": "gpt2", "rotary": "gpt_neox"}[positions]
    biases = [tensor for name, tensor in tensors_of(tmp_path / "there").items() if name.endswith("bias")]
    assert len(biases) > 10 and not any(bias.any() for bias in biases)
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        there = AutoModelForCausalLM.from_pretrained(tmp_path / "there")(tokens).logits
        torch.testing.assert_close(there, model(tokens), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_another_model_than_it_says_is_refused(tmp_path: Path) -> None:
    start = write(Transformer(ModelConfig(**SMALL)), tmp_path / "here")
    start.config = ModelConfig(**SMALL, tie_embeddings=False)
    with pytest.raises(CheckpointError, match=r"output.weight is missing in the one and \(50, 48\) in the other"):
        to_hf(start, tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"positions": "sinusoidal"}, "positions = sinusoidal"),
        ({"norm_position": "post"}, "norm_position = post"),
        ({"qk_norm": True}, "qk_norm = True"),
        ({"output_bias": True}, "output_bias = True"),
        ({"positions": "relative"}, "positions = relative"),
        ({"attention_scale": False}, "attention_scale = False"),
        ({"output_scale": 0.5}, "output_scale = 0.5"),
        ({"activation": "geglu"}, "activation = geglu"),
        ({"n_encoder_layers": 2}, "n_encoder_layers = 2"),
        ({"kind": "lstm"}, "kind = lstm"),
        ({"kind": "cnn"}, "kind = cnn"),
        ({"causal": False, "pooler": True, "pooling": "mean"}, "pooling = mean"),
    ],
)
def test_what_no_family_has_is_named(change: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        family_for(ModelConfig(**change))
    assert told in str(error.value)
    assert all(f"\n  {family}: " in str(error.value) for family in FAMILIES)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("llama", {"model_type": "gemma3"}, "model_type 'gemma3' is none that can be converted; there are gpt2"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = gelu"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "the type yarn"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architecture LlamaForSequenceClassification"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("gpt2", {"activation_function": "silu"}, "activation silu"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = relative_key"),
        ("bert", {"is_decoder": True}, "is_decoder = True"),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}, "layer_types"),
    ],
)
def test_a_feature_that_the_model_lacks_is_refused_by_name(
    tmp_path: Path, name: str, changes: dict[str, object], told: str
) -> None:
    save(name, tmp_path / "there")
    change_config(tmp_path / "there", **changes)
    with pytest.raises(ConfigError, match=told.replace("[", r"\[").replace("(", r"\(")):
        from_hf(tmp_path / "there", tmp_path / "here")
    assert not (tmp_path / "here").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_all_wrong_tensors_are_listed(tmp_path: Path) -> None:
    save("llama", tmp_path / "there")
    file = tmp_path / "there" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    tensors["lm_head.weight"] = torch.zeros(VOCAB + 64, 48)
    tensors["model.layers.0.self_attn.extra.weight"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as error:
        from_hf(tmp_path / "there", tmp_path / "here")
    assert "\n  model.layers.1.mlp.up_proj.weight is missing" in str(error.value)
    assert "\n  model.norm.weight is missing" in str(error.value)
    assert "\n  lm_head.weight has the shape [364, 48] instead of [300, 48]" in str(error.value)
    assert "\n  model.layers.0.self_attn.extra.weight [3] has no place in the model" in str(error.value)
    assert "vocab_size is the number of rows" in str(error.value)
    assert not (tmp_path / "here").exists()


def test_a_tied_copy_is_taken_for_what_it_is_and_another_tensor_is_not(tmp_path: Path) -> None:
    save("gpt2", tmp_path / "there")
    file = tmp_path / "there" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(tensors, file)
    from_hf(tmp_path / "there", tmp_path / "here")
    tensors["lm_head.weight"][7, 3] += 1
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"lm_head.weight \[300, 48\] has no place"):
        from_hf(tmp_path / "there", tmp_path / "other")


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_older_folders_are_read(tmp_path: Path, name: str) -> None:
    """Pickled, without the body's prefix, with names of TensorFlow's."""
    reference = save(name, tmp_path / "there")
    file = tmp_path / "there" / "model.safetensors"
    prefix = "transformer." if name == "gpt2" else ""
    tensors = {
        key.removeprefix(prefix)
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for key, tensor in load_file(file).items()
    }
    file.unlink()
    torch.save(tensors, tmp_path / "there" / "pytorch_model.bin")
    from_hf(tmp_path / "there", tmp_path / "here")
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(ours(tmp_path / "here")(tokens), reference(tokens).logits, rtol=1e-5, atol=1e-5)


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("harm"),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save("gpt2", tmp_path / "there")
    (tmp_path / "there" / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Malicious()}, tmp_path / "there" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Get the weights as safetensors"):
        from_hf(tmp_path / "there", tmp_path / "here")
    assert not Path("harm").exists()


def test_masked_words_are_filled_by_what_goes_back(tmp_path: Path) -> None:
    reference = save("bert with both heads", tmp_path / "there")
    from_hf(tmp_path / "there", tmp_path / "here")
    to_hf(start_of(tmp_path / "here"), tmp_path / "back")
    tokens = torch.arange(30).unsqueeze(0)
    with torch.no_grad():
        filled = AutoModelForMaskedLM.from_pretrained(tmp_path / "back").eval()(tokens).logits
        torch.testing.assert_close(filled, reference(tokens).prediction_logits)
    assert BertForPreTraining.from_pretrained(tmp_path / "back")
    assert BertModel.from_pretrained(tmp_path / "back")


def test_a_tokenizer_that_needs_more_rows_is_refused(tmp_path: Path) -> None:
    save("llama", tmp_path / "there")
    larger = tokenizer()
    larger.add_tokens([f"<{number}>" for number in range(VOCAB)])
    larger.save(str(tmp_path / "there" / "tokenizer.json"))
    with pytest.raises(ConfigError, match="but the embedding has 300 rows"):
        from_hf(tmp_path / "there", tmp_path / "here")
    assert TEXT and not (tmp_path / "here").exists()


@pytest.mark.slow
def test_shapes_are_known_without_the_compiler() -> None:
    """It takes a second and 70 MiB."""
    code = (
        "import sys; from scaletrain.config.schema import ModelConfig; "
        "from scaletrain.convert.model_tensors import infos_of; "
        "sys.exit(len(infos_of(ModelConfig())) < 20 or 'torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0
