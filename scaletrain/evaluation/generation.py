"""Generation of text from a language model, token by token.

Shapes: T time, V vocabulary.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from scaletrain.errors import ConfigError
from scaletrain.model.build import LanguageModel, Model

_REPLACEMENT = "�"  # what a decoder writes for bytes that are no (or not yet a) character


class Mode(Protocol):
    """A module, as far as its mode goes."""

    training: bool

    def train(self, mode: bool = True) -> object:
        """Switches dropout on or off."""


def generate(
    model: Model,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    ends: Collection[int] = (),
    max_context: int | None = None,
    agree: Callable[[int], int] | None = None,
) -> Iterator[int]:
    """Continue a prompt.

    What was computed for the tokens so far is cached. When the context is full, its older half is dropped and the rest
    is read anew, so that a text may be longer than the model's sequences.

    Under ZeRO-3 a forward pass gathers weights from all ranks, so all ranks must make the same calls: let them use the
    same arguments, and ``agree``, lest ranks whose logits differ in the last bit part ways, and the run hang.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", for ``top_p``.

    Args:
        model: a causal language model; dropout is off while it is called, and its mode is restored after each token.
        prompt_tokens: tokens to continue; at least one.
        max_new_tokens: tokens to make at most.
        temperature: divisor of the logits; 0 takes the likeliest token always.
        top_k: sample among the k likeliest tokens; 0 among all.
        top_p: sample among the likeliest tokens that together have this probability; 1 among all.
        seed: of the sampling; the global random state is neither used nor changed.
        ends: tokens that end the text; they are not yielded.
        max_context: tokens that the model sees at most; default and upper limit is the model's ``max_seq_len``. A model
            trained on shorter sequences than it was made for should be given their length.
        agree: maps this rank's token to the one that all ranks use, for instance by a broadcast.

    Returns:
        The new tokens, one by one.

    Raises:
        ConfigError: an argument is out of its range, or the model is of another kind.
    """
    if not isinstance(model, LanguageModel):
        raise ConfigError(f"a {type(model).__name__} continues no text; use a language model, without an encoder")
    if not model.config.causal:
        raise ConfigError("a bidirectional model (model.causal false) continues no text; use a causal one")
    limit = model.config.max_seq_len
    _check_prompt(prompt_tokens, model.config.vocab_size)
    _check_ranges(max_new_tokens, temperature, top_k, top_p, seed, max_context)
    generator = torch.Generator().manual_seed(seed)

    def choose(logits_V: Tensor) -> int:
        token = sample(logits_V, temperature, top_k, top_p, generator)
        return token if agree is None else agree(token)

    tokens = _continue(model, prompt_tokens, limit if max_context is None else min(max_context, limit), choose)
    return itertools.takewhile(lambda token: token not in ends, itertools.islice(tokens, max_new_tokens))


def _continue(
    model: LanguageModel, prompt_tokens: Sequence[int], context_len: int, choose: Callable[[Tensor], int]
) -> Iterator[int]:
    device = next(model.parameters()).device
    cache = model.new_cache(context_len)
    context = unread = list(prompt_tokens[-context_len:])
    while True:
        if cache.length + len(unread) > context_len:
            cache.clear()
            context = unread = context[-max(1, context_len // 2) :]
        token = choose(_next_logits(model, torch.tensor([unread], device=device), cache))
        yield token
        context, unread = [*context, token], [token]


def sample(logits_V: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """Choose a token.

    Args:
        logits_V: logits of the next token, fp32, on the CPU.
        temperature: see ``generate``, like ``top_k`` and ``top_p``.
        top_k: see ``generate``.
        top_p: see ``generate``.
        generator: source of randomness.

    Returns:
        The token.
    """
    # So low a temperature overflows fp32; and of NaN logits, those of a diverged model, nothing can be sampled.
    if temperature < 1e-6 or not logits_V.isfinite().any():
        return int(logits_V.argmax())
    sorted_V, order_V = (logits_V / temperature).sort(descending=True, stable=True)
    if top_k:
        sorted_V = sorted_V[:top_k]
    probabilities_V = sorted_V.softmax(0)
    # A token stays while the likelier ones have not reached top_p, so the first always does.
    probabilities_V[probabilities_V.cumsum(0) - probabilities_V >= top_p] = 0.0
    return int(order_V[torch.multinomial(probabilities_V, 1, generator=generator)])


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Decode tokens to text as they come.

    The bytes of one character may be spread over several tokens; such a character is held back until it is whole.

    Args:
        tokenizer: the tokenizer.
        tokens: tokens, one by one.

    Yields:
        Pieces of text, none empty; together they are the text of all tokens.
    """
    # Some decoders treat the start of a text in their own way, so each piece is decoded behind the one before it.
    behind: list[int] = []
    pending: list[int] = []
    for token in tokens:
        pending.append(token)
        piece = _decode_after(tokenizer, behind, pending)
        if piece.endswith(_REPLACEMENT):
            continue
        behind, pending = pending, []
        if piece:
            yield piece
    rest = _decode_after(tokenizer, behind, pending)
    if rest:
        yield rest


def _decode_after(tokenizer: Tokenizer, behind: list[int], tokens: list[int]) -> str:
    return str(tokenizer.decode(behind + tokens))[len(tokenizer.decode(behind)) :]


@contextmanager
def undisturbed(model: Mode) -> Iterator[None]:
    """Calls a model for its words alone: without dropout, gradients and compilation; its mode is restored afterwards.

    Args:
        model: A module.
    """
    was_training = model.training
    if was_training:
        model.train(False)
    try:
        # Compiled, the model would be compiled anew for each length of the cache. And no inference_mode: a weight that
        # ZeRO-3 gathers in it could not be trained on later.
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            yield
    finally:
        if was_training:
            model.train()


def _next_logits(model: LanguageModel, tokens_1T: Tensor, cache: Any) -> Tensor:
    with undisturbed(model):
        hidden_1TD = model.hidden(tokens_1T, cache=cache)
        logits_V = model.logits(hidden_1TD[:, -1])[0]
    return logits_V.float().cpu()


def _check_prompt(prompt_tokens: Sequence[int], vocab_size: int) -> None:
    if not prompt_tokens:
        raise ConfigError("the prompt has no tokens, but a text starts with at least one; give a prompt")
    if max(prompt_tokens) >= vocab_size:
        raise ConfigError(
            f"the prompt holds token {max(prompt_tokens)}, but the model knows {vocab_size} tokens; "
            f"use the tokenizer that the model was trained with"
        )


def _check_ranges(
    max_new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int, max_context: int | None
) -> None:
    for name, value, is_right, rule in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 0, "0 or more"),
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 (greedy) or more"),
        ("top_k", top_k, top_k >= 0, "0 (all tokens) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1 (all tokens)"),
        ("seed", seed, 0 <= seed < 2**63, "0 or more and below 2^63"),
        ("max_context", max_context, max_context is None or max_context >= 1, "1 or more"),
    ):
        if not is_right:
            raise ConfigError(f"{name} = {value} is out of range; give {rule}")
