"""Encoder-decoders come here and go out: the same bits, the same logits, the same texts."""

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from scaletrain.checkpoint.weights import load_weights
from scaletrain.config.schema import ModelConfig, TaskConfig
from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.from_hf import from_hf
from scaletrain.convert.pairs import Copy, whole
from scaletrain.convert.registry import FAMILIES, family_for
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.start import Start, write_start
from scaletrain.convert.tensors import TensorInfo
from scaletrain.convert.to_hf import to_hf
from scaletrain.convert.verification import verify
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.evaluation.beam_search import Search, search_texts
from scaletrain.model.encoder_decoder import EncoderDecoder
from scaletrain.model.losses import cross_entropy_terms
from tests.convert.encoder_decoders import EOS_ID, MODELS, START_ID, change_config, ours, save, start_of
from tests.convert.tiny_models import VOCAB


def some_tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in MODELS), ("t5 1.1", torch.bfloat16), ("marian", torch.bfloat16)],
)
def test_a_model_comes_here_and_goes_back_bit_for_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    reference = save(name, tmp_path / "there", dtype)
    _, proof = from_hf(tmp_path / "there", tmp_path / "here", proves=True)
    assert proof is not None and not proof.unread
    stages = [stage.name for stage in proof.comparison.states]
    assert {"encoder embedding", "encoder layer 1", "decoder embedding", "decoder layer 1"} <= set(stages)
    to_hf(start_of(tmp_path / "here"), tmp_path / "back", proves=True)
    assert same_bits(tensors_of(tmp_path / "there"), tensors_of(tmp_path / "back"))
    if dtype == torch.float32:
        source, tokens = some_tokens(1, 3, 30), some_tokens(2, 3, 22)
        mask = torch.arange(30) < torch.tensor([[30], [11], [1]])
        again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back").eval()
        inputs = {"input_ids": source, "attention_mask": mask.long(), "decoder_input_ids": tokens}
        with torch.no_grad():
            expected = reference(**inputs).logits
            assert torch.equal(again(**inputs).logits, expected)
            found = ours(tmp_path / "here")(source, tokens, mask)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert float(expected.std()) > 0.3  # wide enough for the comparison to mean something


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_likeliest_texts_are_the_same_there_and_here(tmp_path: Path, name: str) -> None:
    save(name, tmp_path / "there")
    from_hf(tmp_path / "there", tmp_path / "here")
    to_hf(start_of(tmp_path / "here"), tmp_path / "back")
    there = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back").eval()
    source, mask = some_tokens(5, 3, 12), torch.arange(12) < torch.tensor([[12], [7], [3]])
    # This version of transformers makes a cache of as many layers as the encoder has.
    has_cache = start_of(tmp_path / "here").config.n_layers <= start_of(tmp_path / "here").config.n_encoder_layers
    options = {"max_new_tokens": 16, "do_sample": False, "use_cache": has_cache}
    # How it begins and ends a text is told by the folder.
    told = there.generate(source, attention_mask=mask.long(), **options)
    assert told[:, 0].tolist() == [START_ID] * 3
    with torch.no_grad():
        found = search_texts(ours(tmp_path / "here"), source, mask, Search(16, START_ID, EOS_ID, beams=1))
    expected = [[token for token in row if token != EOS_ID] for row in told[:, 1:].tolist()]
    assert [[token for token in row if token != EOS_ID] for row in found] == expected
    assert len({token for row in expected for token in row}) > 1


SMALL = {"vocab_size": 50, "d_model": 48, "n_encoder_layers": 2, "n_layers": 3, "n_heads": 4, "max_seq_len": 32}
OUR_T5 = {
    "positions": "relative",
    "relative_buckets": 8,
    "relative_max_distance": 20,
    "norm": "rms_norm",
    "bias": False,
    "attention_scale": False,
    "activation": "relu",
    "output_scale": 48**-0.5,
}
ORIGINAL = {"positions": "sinusoidal", "norm_position": "post", "activation": "relu"}
# Descriptions as a training here would have them.
TRAINED_HERE = {
    "t5": ("t5", OUR_T5),
    "t5, wide heads, untied": ("t5", OUR_T5 | {"head_dim": 20, "tie_embeddings": False, "output_scale": 1.0}),
    "t5, tied and not scaled": ("t5", OUR_T5 | {"activation": "geglu", "output_scale": 1.0}),
    "t5, untied and scaled": ("t5", OUR_T5 | {"activation": "gelu", "tie_embeddings": False}),
    "the original": ("marian", ORIGINAL),
    "the original, with a bias of the output": ("marian", ORIGINAL | {"output_bias": True, "activation": "gelu"}),
}


def write(model: EncoderDecoder, out: Path) -> CheckpointTensors:
    """A start with a model's weights."""
    infos = {name: TensorInfo(tuple(weight.shape), weight.dtype) for name, weight in model.named_parameters()}
    save_file(dict(model.named_parameters()), out.with_suffix(".safetensors"))
    copies = [Copy(whole(name, info.shape), whole(name, info.shape)) for name, info in infos.items()]
    source = functools.partial(SafetensorsFolder, out.with_suffix(".safetensors"))
    start = Start(model.config, infos, None, None, {}, task=TaskConfig(name="seq2seq"))
    write_start(out, start, lambda places: copy_tensors(source, copies, places))
    return start_of(out)


def train(model: EncoderDecoder) -> None:
    """A few steps on random pairs."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(4):
        source, tokens = (torch.randint(50, (4, 16), generator=torch.Generator().manual_seed(step + k)) for k in (0, 9))
        cross_entropy_terms(model(source, tokens[:, :-1]), tokens[:, 1:]).loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINED_HERE)
def test_a_model_trained_here_goes_there_and_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model_type, described = TRAINED_HERE[kind]
    model = EncoderDecoder(ModelConfig(**SMALL, init_std=0.2, **described))
    train(model)
    family, proof = to_hf(write(model, tmp_path / "here"), tmp_path / "there", proves=True)
    assert family.model_type == model_type and proof is not None and not proof.unread
    source, tokens = (torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    there = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "there").eval()
    with torch.no_grad():
        expected = model.eval()(source, tokens)
        found = there(input_ids=source, decoder_input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    from_hf(tmp_path / "there", tmp_path / "back", proves=True)
    returned = load_weights(tmp_path / "back" / "checkpoints")
    wanted = {name: weight.detach() for name, weight in model.state_dict().items()}
    assert same_bits({name: returned[name] for name in wanted}, wanted)
    assert start_of(tmp_path / "back").config.output_scale == model.config.output_scale


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bias": True}, "bias = True"),
        ({"positions": "rotary"}, "positions = rotary"),
        ({"attention_scale": True}, "attention_scale = True"),
        ({"output_scale": 0.5}, "output_scale = 0.5"),
        ({"norm_position": "post"}, "norm_position = post"),
        ({"n_kv_heads": 2}, "n_kv_heads = 2"),
        ({"n_encoder_layers": 0}, "n_encoder_layers = 0"),
        ({"kind": "lstm"}, "kind = lstm"),
    ],
)
def test_what_t5_does_not_have_is_named(change: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        family_for(ModelConfig(**{**SMALL, **OUR_T5, **change}), "t5")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"feed_forward_proj": "gated-tanh"}, "the feed_forward_proj gated-tanh; in this family the model here has"),
        ({"dense_act_fn": "gelu"}, "dense_act_fn = gelu"),
        ({"num_layers": 0}, "num_layers = 0"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder = False"),
        ({"architectures": ["T5EncoderModel"]}, "the architecture T5EncoderModel"),
        ({"model_type": "marian", "activation_function": "swish"}, "the activation swish"),
        ({"model_type": "marian", "scale_embedding": False}, "scale_embedding = False"),
        ({"model_type": "marian", "decoder_ffn_dim": 100}, "decoder_ffn_dim = 100"),
        ({"model_type": "marian", "decoder_vocab_size": 100}, "decoder_vocab_size = 100"),
    ],
)
def test_a_feature_that_the_model_lacks_is_refused_by_name(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    save(str(changes.get("model_type", "t5")), tmp_path / "there")
    change_config(tmp_path / "there", **changes)
    with pytest.raises(ConfigError, match=told):
        from_hf(tmp_path / "there", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_older_folders_are_read_and_what_only_seems_tied_is_refused(tmp_path: Path) -> None:
    save("t5", tmp_path / "there")
    file = tmp_path / "there" / "model.safetensors"
    tensors = load_file(file)
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[copy] = tensors["shared.weight"].clone()
    # Cross attention never reads it.
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 4)
    save_file(tensors, file)
    from_hf(tmp_path / "there", tmp_path / "here", proves=True)
    tensors["decoder.embed_tokens.weight"][3, 5] += 1
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"decoder.embed_tokens.weight \[300, 48\] has no place"):
        from_hf(tmp_path / "there", tmp_path / "other")


def test_an_output_layer_that_only_the_file_has_is_refused_with_the_remedy(tmp_path: Path) -> None:
    save("t5 1.1", tmp_path / "there")
    change_config(tmp_path / "there", tie_word_embeddings=True, scale_decoder_outputs=False)  # as transformers saves it
    with pytest.raises(CheckpointError, match=r"lm_head.weight \[300, 48\] has no place[\s\S]*mend config.json"):
        from_hf(tmp_path / "there", tmp_path / "here")
    change_config(tmp_path / "there", tie_word_embeddings=False)
    from_hf(tmp_path / "there", tmp_path / "here", proves=True)


def test_how_a_text_begins_is_kept_and_is_the_end_of_one_for_models_trained_here(tmp_path: Path) -> None:
    save("t5", tmp_path / "there")
    (tmp_path / "there" / "generation_config.json").unlink()  # old folders have none
    from_hf(tmp_path / "there", tmp_path / "here")
    to_hf(start_of(tmp_path / "here"), tmp_path / "back")
    for file in ("config.json", "generation_config.json"):
        told = json.loads((tmp_path / "back" / file).read_text())
        assert (told["decoder_start_token_id"], told["eos_token_id"], told["pad_token_id"]) == (START_ID, EOS_ID, 0)
    (tmp_path / "here" / "hugging_face" / "generation_config.json").unlink()  # a run that goes on has none
    to_hf(start_of(tmp_path / "here"), tmp_path / "trained")
    told = json.loads((tmp_path / "trained" / "generation_config.json").read_text())
    assert told["decoder_start_token_id"] == told["eos_token_id"] == EOS_ID


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("encoder.blocks.1.feed_forward.up.weight", "encoder layer 1"),
        ("encoder.norm.weight", "decoder layer 0"),
        ("decoder.blocks.2.cross_attention.k.weight", "decoder layer 2"),
        ("decoder.norm.weight", "logits"),
    ],
)
def test_a_fault_is_found_and_placed(tmp_path: Path, tensor: str, place: str) -> None:
    save("t5", tmp_path / "there")
    from_hf(tmp_path / "there", tmp_path / "here")
    model = ours(tmp_path / "here")
    state = {name: weight.clone() for name, weight in model.named_parameters()}
    state[tensor] = state[tensor].flip(0)
    (tmp_path / "changed").mkdir()
    save_file({name: weight.contiguous() for name, weight in state.items()}, tmp_path / "changed" / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"not the same. {place}: largest difference"):
        verify(SafetensorsFolder(tmp_path / "changed"), model.config, tmp_path / "there")


def test_a_table_of_distances_is_compared_row_by_row(tmp_path: Path) -> None:
    save("t5", tmp_path / "there")
    from_hf(tmp_path / "there", tmp_path / "here")
    model = ours(tmp_path / "here")
    state = {name: weight.clone() for name, weight in model.named_parameters()}
    state["decoder.position_bias.weight"][6] += 1e-6
    (tmp_path / "changed").mkdir()
    save_file(state, tmp_path / "changed" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"row 6 of the decoder\.position_bias table"):
        verify(SafetensorsFolder(tmp_path / "changed"), model.config, tmp_path / "there")


def test_the_bias_of_marians_output_is_compared_too(tmp_path: Path) -> None:
    save("marian", tmp_path / "there")
    from_hf(tmp_path / "there", tmp_path / "here")
    model = ours(tmp_path / "here")
    state = {name: weight.clone() for name, weight in model.named_parameters()}
    state["output.bias"][17] *= -1
    (tmp_path / "changed").mkdir()
    save_file(state, tmp_path / "changed" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not the same\. logits: largest difference"):
        verify(SafetensorsFolder(tmp_path / "changed"), model.config, tmp_path / "there")


def test_a_row_of_marians_embedding_is_compared_in_our_order(tmp_path: Path) -> None:
    save("marian", tmp_path / "there")
    from_hf(tmp_path / "there", tmp_path / "here")
    model = ours(tmp_path / "here")
    state = {name: weight.clone() for name, weight in model.named_parameters()}
    state["encoder.embedding.weight"][299, 5] += 1e-6
    (tmp_path / "changed").mkdir()
    save_file(state, tmp_path / "changed" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"row 299 of the encoder\.embedding table"):
        verify(SafetensorsFolder(tmp_path / "changed"), model.config, tmp_path / "there", [list(range(40))] * 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tie_embeddings": False}, "tie_embeddings = False"),
        ({"norm_position": "pre"}, "norm_position = pre"),
        ({"positions": "learned"}, "positions = learned"),
        ({"norm_eps": 1e-6}, "norm_eps = 1e-06"),
        ({"n_encoder_layers": 0}, "n_encoder_layers = 0"),
        ({"d_model": 45, "n_heads": 5}, "d_model = 45"),
    ],
)
def test_what_marian_does_not_have_is_named(change: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        family_for(ModelConfig(**{**SMALL, **ORIGINAL, **change}), "marian")
    assert told in str(error.value)


def test_the_defaults_are_those_of_t5_small() -> None:
    assert FAMILIES["t5"].model_of({"model_type": "t5"}).output_scale == 512**-0.5
