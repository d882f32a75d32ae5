"""The proof after a conversion: both models run on the same text, and must tell the same at every layer.

Each side is run by its own code, ours by ``model/``, theirs by transformers, with weights that are read from the
files that the conversion read and wrote, and that are in memory one module at a time.

Bounds. First the weights of both sides are rounded to the stored dtype, which changes nothing in the side that is
stored in it. Both then calculate in fp32 with the very same numbers, and only the order of sums may differ: 3e-5 at
each layer and of the largest output, whatever the dtype. Small trained models were 1e-6 apart, random ones with weights
so large that they are chaotic up to 1.4e-5.

Then, where that rounding changes any weight, both calculate with what is stored. The difference is the price of
rounding, by 2^-9 of a weight at most in bf16 and 2^-12 in fp16: of the largest logit 3e-3 and 4e-4 in trained models of
8 layers, 8e-3 and 7e-4 in untrained ones of 24 layers, up to 6e-2 and 9e-3 in chaotic ones. The bounds of 1e-1 and
1.25e-2 lie above all of them: faults are found by the first comparison, and what breaks the second is a model that
rounding ruins.

Shapes: B batch, T time, D d_model, V vocabulary.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.proof import (
    Comparison,
    Proof,
    StageDifference,
    agreeing_share,
    difference_of_outputs,
    difference_of_states,
)
from scaletrain.convert.reference_model import (
    build_reference,
    reference_layers,
    reference_order,
    reference_outputs,
    reference_spellings,
    reference_tables,
    tables_of,
)
from scaletrain.convert.sample_text import sample_tokens, written_tokens
from scaletrain.convert.streaming import WeightSource, allocate, build_without_weights, streamed
from scaletrain.convert.tensors import DTYPES, Tensors
from scaletrain.convert.weights_folder import open_weights
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.model.build import build_model
from scaletrain.model.encoder_decoder import EncoderDecoder
from scaletrain.model.transformer import Transformer

_Model = Transformer | EncoderDecoder

_KERNEL_BOUND = 3e-5
_ROUNDING_BOUNDS = {"fp32": _KERNEL_BOUND, "bf16": 1e-1, "fp16": 1.25e-2}


def verify(
    ours: Tensors, config: ModelConfig, hf_folder: Path, tokens: list[list[int]] | None = None, dtype: str = "fp32"
) -> Proof:
    """Proves that two sets of weights are the same model, by running both, or says where they part.

    Memory: the largest single module in fp32, and the activations, among them the states after each layer,
    ``4 (n_layers + 1) B T D`` bytes.

    The bounds are justified at the top of this file.

    Embeddings are besides compared number by number: most of their rows belong to tokens or positions that no text of
    a few hundred tokens has.

    Args:
        ours: Our weights, by their names in the model's ``state_dict()``, tied ones once.
        config: Our model.
        hf_folder: The other side, a Hugging Face folder.
        tokens: At least one row of tokens, all rows of one length; real text by default, or random tokens where the
            folder has no ``tokenizer.json``.
        dtype: ``fp32``, ``bf16`` or ``fp16``: what the converted weights are stored in.

    Returns:
        The figures.

    Raises:
        CheckpointError: The two differ by more than the bound; the message has the figures and the first layer that
            deviates. Or a tensor is missing, has another shape, or a number that is not finite.
        ConfigError: transformers is not installed, or the tokens are none of this model's.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"The dtype {dtype} of a proof is none of {', '.join(DTYPES)}. Give one of them.")
    rows, text = _choose_tokens(tokens, config, hf_folder)
    our_side = WeightSource(build_without_weights(lambda: _build(config)), ours, "our model")
    reference = build_reference(hf_folder)
    folder = open_weights(hf_folder)
    their_side = WeightSource(reference, folder, str(hf_folder), reference_spellings(reference))
    comparison, rounding = _compare(our_side, their_side, torch.tensor(rows), DTYPES[dtype])
    tables, table_faults = _compare_tables(our_side, their_side, DTYPES[dtype])
    sides = (our_side, their_side)
    proof = Proof(
        text=text,
        dtype=dtype,
        comparison=comparison,
        bound=_KERNEL_BOUND,
        rounding=rounding,
        rounding_bound=_ROUNDING_BOUNDS[dtype],
        tables=tuple(tables),
        table_faults=tuple(table_faults),
        not_finite=tuple(f"{name} of {side.side}" for side in sides for name in side.not_finite),
        unread=tuple(f"{name} of {side.side}" for side in sides for name in side.unread()),
    )
    if proof.faults:
        raise CheckpointError(
            f"The two models are not the same. {'; '.join(proof.faults)}. Do not use the result: one of the "
            f"configurations is wrong, a file is damaged, or the conversion has a fault."
        )
    return proof


@dataclass(frozen=True)
class _Trace:
    """What the other model told, to be compared with ours.

    Attributes:
        states: Hidden states (B, T, D) by the name of the place.
        outputs: By name, as ``reference_outputs`` returns them.
    """

    states: dict[str, Tensor]
    outputs: dict[str, Tensor]


def _compare(
    ours: WeightSource[_Model], theirs: WeightSource[nn.Module], tokens_BT: Tensor, dtype: torch.dtype
) -> tuple[Comparison, Comparison | None]:
    """Compares with weights rounded alike, and with those that are stored, where rounding changes any."""
    layers = reference_layers(theirs.model, {side: len(blocks) for side, blocks in _our_layers(ours.model).items()})
    trace = _run_theirs(theirs, layers, tokens_BT, dtype)
    comparison = _run_ours(ours, tokens_BT, dtype, trace)
    theirs_change = _is_changed(theirs, dtype)
    if not theirs_change and not _is_changed(ours, dtype):
        return comparison, None
    if theirs_change:
        del trace  # so that there are not two of them in memory
        trace = _run_theirs(theirs, layers, tokens_BT, None)
    return comparison, _run_ours(ours, tokens_BT, None, trace)


def _is_changed(source: WeightSource[Any], dtype: torch.dtype) -> bool:
    """Whether rounding to a dtype can change any of the tensors."""
    return dtype != torch.float32 and any(info.dtype != dtype for info in source.infos.values())


def _run_theirs(
    theirs: WeightSource[nn.Module],
    layers: Mapping[str, Sequence[nn.Module]],
    tokens_BT: Tensor,
    round_to: torch.dtype | None,
) -> _Trace:
    states: dict[str, Tensor] = {}

    def keep(name: str, theirs_BTD: Tensor) -> None:
        order = reference_order(theirs.model, theirs_BTD.shape[-1])
        theirs_BTD = theirs_BTD if order is None else theirs_BTD[..., order]
        states[name] = allocate(theirs_BTD.numel()).view(theirs_BTD.shape).copy_(theirs_BTD)

    with torch.no_grad(), streamed(theirs, round_to), _watched(layers, keep):
        outputs = reference_outputs(theirs.model, tokens_BT)
    return _Trace(states, outputs)


def _run_ours(ours: WeightSource[_Model], tokens_BT: Tensor, round_to: torch.dtype | None, trace: _Trace) -> Comparison:
    states: list[StageDifference] = []
    outputs: list[StageDifference] = []
    n_positions, share = 0, 0.0

    def compare(name: str, ours_BTD: Tensor) -> None:
        states.append(difference_of_states(name, ours_BTD, _counterpart(name, ours_BTD, trace.states)))

    with torch.no_grad(), streamed(ours, round_to), _watched(_our_layers(ours.model), compare):
        for name, output_BTV in _our_outputs(ours.model, tokens_BT, trace.outputs):
            theirs_BTV = _counterpart(name, output_BTV, trace.outputs)
            if not outputs:
                n_positions, share = output_BTV[..., 0].numel(), agreeing_share(output_BTV, theirs_BTV)
            outputs.append(difference_of_outputs(name, output_BTV, theirs_BTV))
    return Comparison(tuple(states), tuple(outputs), n_positions, share)


def _build(config: ModelConfig) -> _Model:
    model = build_model(config)
    assert isinstance(model, _Model)  # of others there is no family
    return model


def _our_layers(model: _Model) -> dict[str, Sequence[nn.Module]]:
    """The layers by the side that they belong to, as ``reference_layers`` calls it."""
    if isinstance(model, EncoderDecoder):
        return {"encoder": list(model.encoder.blocks), "decoder": list(model.decoder.blocks)}
    return {"": list(model.blocks)}


def _our_outputs(model: _Model, tokens_BT: Tensor, wanted: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """Runs our model for those of the outputs of ``reference_outputs`` that are wanted and that it has."""
    if isinstance(model, EncoderDecoder):
        yield "logits", model(tokens_BT, written_tokens(tokens_BT))
        return
    hidden_BTD = model.hidden(tokens_BT)
    if "logits" in wanted:
        yield "logits", model.logits(hidden_BTD)
    if "classes" in wanted and model.config.n_classes:
        yield "classes", model.class_logits(hidden_BTD).unsqueeze(1)
    if "states" in wanted:
        yield "states", hidden_BTD
    if "pooled" in wanted and model.config.pooler:
        yield "pooled", model.pooled(hidden_BTD).unsqueeze(1)


def _counterpart(name: str, ours: Tensor, theirs: Mapping[str, Tensor]) -> Tensor:
    if name not in theirs or theirs[name].shape != ours.shape:
        found = f"in the shape {tuple(theirs[name].shape)}" if name in theirs else "not at all"
        raise CheckpointError(
            f"Our model computes {name} in the shape {tuple(ours.shape)}, transformers' {found}. The configurations "
            f"describe different models."
        )
    return theirs[name]


@contextmanager
def _watched(layers: Mapping[str, Sequence[nn.Module]], visit: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Tells the hidden states before the first layer, as those of the ``embedding``, and behind each layer."""

    def input_visitor(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda module, inputs, named: visit(name, inputs[0] if inputs else named["hidden_states"])

    def visitor(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, inputs, output: visit(name, output[0] if isinstance(output, tuple) else output)

    handles = []
    for side, of_side in layers.items():
        begin = f"{side} " if side else ""
        handles.append(of_side[0].register_forward_pre_hook(input_visitor(f"{begin}embedding"), with_kwargs=True))
        for index, layer in enumerate(of_side):
            handles.append(layer.register_forward_hook(visitor(f"{begin}layer {index}")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _compare_tables(
    ours: WeightSource[_Model], theirs: WeightSource[nn.Module], dtype: torch.dtype
) -> tuple[list[str], list[str]]:
    """Compares embeddings number by number.

    Returns:
        Which were compared, and what differs, both in words. One without a counterpart of its shape is left out, and
        so is one with more than there are here.
    """
    compared: list[str] = []
    faults: list[str] = []
    tables = reference_tables(theirs.model)
    own = tables_of(ours.model)
    for our_name, wanted in own.items():
        alike = [table for table, shape in tables.items() if shape == wanted]
        # That of the tokens stands first in both models, and is found whatever has its shape besides. As many of one
        # shape as here stand in one order in both: that of an encoder before that of a decoder.
        n_left = sum(shape == wanted for name, shape in own.items() if name.removesuffix(".weight") not in compared)
        if not alike or (len(alike) > n_left and compared):
            continue
        del tables[alike[0]]
        compared.append(our_name.removesuffix(".weight"))
        row = _first_difference(ours, our_name, theirs, alike[0], dtype)
        if row is not None:
            faults.append(f"row {row} of the {compared[-1]} table is not the same number by number")
    return compared, faults


def _first_difference(
    ours: WeightSource[_Model], our_name: str, theirs: WeightSource[nn.Module], their_name: str, dtype: torch.dtype
) -> int | None:
    """Finds the first row of a table in which two sides differ, all rounded to the same dtype."""
    width = ours.infos[ours.stored_name(our_name)].shape[1]
    order = reference_order(theirs.model, width)
    both = zip(ours.slices(our_name, dtype), theirs.slices(their_name, dtype), strict=True)
    for (start, our_piece), (_, their_piece) in both:
        if order is not None:
            their_piece = their_piece.view(-1, width)[:, order].flatten()
        differing = torch.nonzero(our_piece != their_piece)
        if len(differing):
            return (start + int(differing[0])) // width
    return None


def _choose_tokens(tokens: list[list[int]] | None, config: ModelConfig, hf_folder: Path) -> tuple[list[list[int]], str]:
    if tokens is None:
        return sample_tokens(
            hf_folder,
            vocab_size=config.vocab_size,
            max_seq_len=config.max_seq_len,
            sliding_window=config.sliding_window,
        )
    lengths = {len(row) for row in tokens}
    if len(lengths) != 1 or not 0 < max(lengths) <= config.max_seq_len:
        raise ConfigError(
            f"The tokens of a proof are {len(tokens)} rows of lengths {sorted(lengths)}. Give at least one row, "
            f"and rows of one length from 1 to {config.max_seq_len}, the model's positions."
        )
    strange = next((token for row in tokens for token in row if not 0 <= token < config.vocab_size), None)
    if strange is not None:
        raise ConfigError(
            f"Token {strange} of a proof is none of the model's {config.vocab_size}. Give tokens of its own tokenizer."
        )
    return tokens, "tokens that were given"
