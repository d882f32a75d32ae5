"""Encoder-decoder models to search with: a table of probabilities, and one of the transformers library."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration

START, EOS = 0, 1


class Prefixes:
    """The tokens of each row so far."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []

    def reorder(self, rows_B: Tensor, within_sources: bool) -> None:
        self.rows = [self.rows[row] for row in rows_B.tolist()]


class TableModel(nn.Module):
    """Gives each beginning of a text probabilities of its own, drawn at random: nothing can be guessed from another."""

    def __init__(self, vocab_size: int, seed: int, spread: float) -> None:
        super().__init__()
        self.vocab_size, self.seed, self.spread = vocab_size, seed, spread
        self.calls = 0

    def encode(self, source_BS: Tensor, source_mask_BS: Tensor | None) -> Tensor:
        return source_BS.unsqueeze(2).float()

    def decode(self, tokens_BT: Tensor, memory_BSD: Tensor, source_mask_BS: Tensor | None, cache: Prefixes) -> Tensor:
        self.calls += 1
        cache.rows = cache.rows or [()] * len(tokens_BT)
        cache.rows = [(*row, *new) for row, new in zip(cache.rows, tokens_BT.tolist(), strict=True)]
        sources = memory_BSD[:, :, 0].int().tolist()
        rows = [self.logits_of(tuple(source), row) for source, row in zip(sources, cache.rows, strict=True)]
        return torch.stack(rows).unsqueeze(1)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD

    def logits_of(self, source: tuple[int, ...], prefix: tuple[int, ...]) -> Tensor:
        """Logits (V,) behind a prefix that begins with the start."""
        generator = torch.Generator().manual_seed(hash((self.seed, source, prefix)) % 2**63)
        return torch.randn(self.vocab_size, generator=generator, dtype=torch.float64) * self.spread

    def new_cache(self, max_len: int) -> Prefixes:
        return Prefixes()


class HuggingFaceCache:
    """A cache of transformers."""

    def __init__(self) -> None:
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def reorder(self, rows_B: Tensor, within_sources: bool) -> None:
        self.cache.reorder_cache(rows_B)


class HuggingFaceT5(nn.Module):
    """A T5 of the transformers library, behind the interface that the search asks for."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        shape: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        self.t5 = T5ForConditionalGeneration(
            T5Config(vocab_size=14, dropout_rate=dropout, decoder_start_token_id=START, pad_token_id=START, **shape)
        )
        with torch.no_grad():
            # Weights so large that what a token is followed by depends on all before it: some texts end, some do not.
            self.t5.shared.weight.normal_()
            for name, weight in self.t5.named_parameters():
                if weight.ndim > 1 and name != "shared.weight":
                    weight.mul_(4.0)
        self.t5.eval()

    def encode(self, source_BS: Tensor, source_mask_BS: Tensor | None) -> Tensor:
        return self.t5.encoder(input_ids=source_BS, attention_mask=source_mask_BS).last_hidden_state

    def decode(
        self, tokens_BT: Tensor, memory_BSD: Tensor, source_mask_BS: Tensor | None, cache: HuggingFaceCache
    ) -> Tensor:
        return self.t5.decoder(
            input_ids=tokens_BT,
            encoder_hidden_states=memory_BSD,
            encoder_attention_mask=source_mask_BS,
            past_key_values=cache.cache,
            use_cache=True,
        ).last_hidden_state

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        scale = self.t5.config.d_model**-0.5 if self.t5.config.tie_word_embeddings else 1.0
        return self.t5.lm_head(hidden_BTD * scale)

    def new_cache(self, max_len: int) -> HuggingFaceCache:
        return HuggingFaceCache()
