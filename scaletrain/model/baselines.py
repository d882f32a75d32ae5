"""What a Transformer is compared with: recurrent and convolutional models, of torch's own modules.

They stand behind the interface of ``Transformer`` and ``EncoderDecoder``, so that tasks, generation and search take
them as they are. Positions and segments are part of that interface only: such models read in order.

Shapes: B batch, T time, S tokens of the source, D d_model, L layers, V vocabulary, C classes, F all feature maps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

from scaletrain.config.model_rules import model_problems
from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.model.attention import visible_memory
from scaletrain.model.document_attention import find_spans
from scaletrain.model.layers import Embedding, Linear
from scaletrain.model.pooling import pool

State = tuple[Tensor, Tensor]
"""Hidden and cell states of all layers, each (L, B, D)."""


class RecurrentCache:
    """The state of an LSTM behind the tokens so far."""

    def __init__(self) -> None:
        self.length = 0
        self.state: State | None = None

    def advance(self, n_tokens: int, state: State) -> None:
        """Take the state behind so many more tokens."""
        self.length, self.state = self.length + n_tokens, state

    def clear(self) -> None:
        """Forget all tokens."""
        self.length, self.state = 0, None

    def reorder(self, rows_B: Tensor, within_sources: bool = False) -> None:
        """Let row i go on from what was row ``rows_B[i]``; nothing is kept of the source, whichever row that is of."""
        if self.state is not None:
            h_LBD, c_LBD = self.state
            self.state = h_LBD[:, rows_B], c_LBD[:, rows_B]


class Recurrent(nn.Module):
    """Layers of LSTMs, each of which starts anew at a border of documents.

    Each layer and direction is a module of its own, and documents lie side by side: torch's packed sequences would do
    the same in one call, but in a backward pass whose order depends on the lengths. ZeRO-2 reduces gradients
    in the order in which they come, so that ranks with other lengths would mix up their weights, without a word.

    Args:
        d_model: width of input and output; in both directions each has half of it.
        n_layers: layers.
        both_directions: whether a second one reads from the end.
        dropout: share dropped between the layers.
    """

    def __init__(self, d_model: int, n_layers: int, *, both_directions: bool, dropout: float) -> None:
        super().__init__()
        width = d_model // 2 if both_directions else d_model
        self.forwards = nn.ModuleList(nn.LSTM(d_model, width, batch_first=True) for _ in range(n_layers))
        n_backwards = n_layers if both_directions else 0
        self.backwards = nn.ModuleList(nn.LSTM(d_model, width, batch_first=True) for _ in range(n_backwards))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Compute the states of the last layer.

        Args:
            x_BTD: input, a document in each row.
            lengths_B: places of each before the padding, int64; None where nothing is padded.

        Returns:
            (B, T, D); states of padding mean nothing.
        """
        if lengths_B is None:
            lengths_B = torch.full((len(x_BTD),), x_BTD.shape[1], device=x_BTD.device)
        mirror = _mirror(lengths_B, x_BTD.shape[1]) if self.backwards else None
        for layer, forwards in enumerate(self.forwards):
            read_BTD = self.dropout(x_BTD) if layer else x_BTD
            x_BTD = forwards(read_BTD)[0]
            if mirror is not None:
                x_BTD = torch.cat((x_BTD, self.backwards[layer](read_BTD[mirror])[0][mirror]), dim=-1)
        return x_BTD

    def read_packed(self, x_BTD: Tensor, documents_BT: Tensor) -> Tensor:
        """Compute the states of the last layer where rows hold several documents.

        Args:
            x_BTD: input.
            documents_BT: integer number of each place's document, which never decreases along a row. The work grows
                with the number of documents times the length of the longest.

        Returns:
            (B, T, D).

        Raises:
            ValueError: the numbers of documents decrease along a row.
        """
        spans = find_spans(documents_BT)
        lengths = [span.stop - span.start for span in spans]
        documents = [x_BTD[span.row, span.start : span.stop] for span in spans]
        states = self(rnn.pad_sequence(documents, batch_first=True), torch.tensor(lengths, device=x_BTD.device))
        # Spans cover all places in their order, so what was cut into them is in order again once it is joined.
        joined = torch.cat([states_TD[:length] for states_TD, length in zip(states, lengths, strict=True)])
        return joined.view(*documents_BT.shape, -1)

    def advance(self, x_BTD: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Compute the states of the last layer of one that reads forwards, and go on from a state.

        Args:
            x_BTD: input.
            state: hidden and cell states (L, B, D) behind what was read before; None for zeros.

        Returns:
            (B, T, D), and the states behind these places.
        """
        hs, cs = [], []
        for layer, forwards in enumerate(self.forwards):
            before = None if state is None else (state[0][layer : layer + 1], state[1][layer : layer + 1])
            x_BTD, (h_1BD, c_1BD) = forwards(self.dropout(x_BTD) if layer else x_BTD, before)
            hs.append(h_1BD)
            cs.append(c_1BD)
        return x_BTD, (torch.cat(hs), torch.cat(cs))


class LSTM(nn.Module):
    """A language model, or with ``n_classes`` a classifier; reading in both directions where it is not causal.

    Source: Hochreiter and Schmidhuber 1997, "Long Short-Term Memory"; dropout between the layers only, as Zaremba et
    al. 2014, "Recurrent Neural Network Regularization", have it.

    Args:
        config: the model's description.

    Raises:
        ConfigError: what the description asks for cannot be together; see ``model_problems``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model, init_std=config.init_std)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = Recurrent(
            config.d_model, config.n_layers, both_directions=not config.causal, dropout=config.dropout
        )
        self.output = _output(config, self.embedding)
        if config.n_classes:
            self.classifier = Linear(config.d_model, config.n_classes, bias=True, init_std=config.init_std)

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: RecurrentCache | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of the token after each token: see ``hidden``, and ``Transformer.forward``."""
        return self.logits(self.hidden(tokens_BT, positions_BT, documents_BT, cache, segments_BT))

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: RecurrentCache | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Compute the hidden states of the last layer.

        Args:
            tokens_BT: int64 tokens.
            positions_BT: not used.
            documents_BT: integer number of each token's document, which never decreases along a row. Given, each
                document begins with a state of zeros. In a classifier a row is one document: what has another number
                than its first token is padding, whose states mean nothing.
            cache: the state behind the tokens before these; it is advanced.
            segments_BT: not used.

        Returns:
            (B, T, D) in the type of the computation.

        Raises:
            ValueError: both documents and a cache are given, the documents' numbers decrease along a row, or a model
                that reads in both directions is given a cache.
        """
        if cache is not None and (documents_BT is not None or not self.config.causal):
            raise ValueError("a cache continues one document per row of a causal model; leave the cache out")
        x_BTD = self.dropout(self.embedding(tokens_BT))
        if cache is not None:
            hidden_BTD, state = self.lstm.advance(x_BTD, cache.state)
            cache.advance(tokens_BT.shape[1], state)
        elif documents_BT is None:
            hidden_BTD = self.lstm(x_BTD)
        elif self.config.n_classes:
            hidden_BTD = self.lstm(x_BTD, _of_first_document(documents_BT).sum(1))
        else:
            hidden_BTD = self.lstm.read_packed(x_BTD, documents_BT)
        dropped_BTD: Tensor = self.dropout(hidden_BTD)
        return dropped_BTD

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Compute logits (B, T, V) from what ``hidden`` returned, or from a part of it."""
        logits_BTV: Tensor = self.output(hidden_BTD)
        return logits_BTV

    def class_logits(self, hidden_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Compute the logits (B, C) of each sequence's classes: see ``Transformer.class_logits``."""
        logits_BC: Tensor = self.classifier(pool(hidden_BTD, mask_BT, self.config.pooling))
        return logits_BC

    def new_cache(self, max_len: int) -> RecurrentCache:
        """An empty cache; a state takes as much for any number of tokens."""
        del max_len
        return RecurrentCache()


class LSTMSeq2Seq(nn.Module):
    """An LSTM that reads a source in both directions, and one that writes, with attention to what was read.

    The scores of attention are ``h^T W m`` of the decoder's state and each state of the source ("general"). What was
    attended to is not fed into the next step, so that a text that is known is read in one call. The decoder's first
    state is made of the encoder's last ones, as by Bahdanau et al. 2015.

    Source: Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation", sections 3 and 3.1.

    Args:
        config: the model's description, with ``n_encoder_layers``.

    Raises:
        ConfigError: what the description asks for cannot be together; see ``model_problems``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        width, init_std = config.d_model, config.init_std
        self.embedding = Embedding(config.vocab_size, width, init_std=init_std)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Recurrent(width, config.n_encoder_layers, both_directions=True, dropout=config.dropout)
        self.bridge = Linear(width, config.n_layers * width, bias=True, init_std=init_std)
        self.decoder = Recurrent(width, config.n_layers, both_directions=False, dropout=config.dropout)
        self.query = Linear(width, width, bias=False, init_std=init_std)
        self.combine = Linear(2 * width, width, bias=False, init_std=init_std)
        self.output = _output(config, self.embedding)

    def forward(self, source_BS: Tensor, tokens_BT: Tensor, source_mask_BS: Tensor | None = None) -> Tensor:
        """Compute the logits of the token after each token of a known text: see ``EncoderDecoder.forward``."""
        memory_BSD = self.encode(source_BS, source_mask_BS)
        return self.logits(self.decode(tokens_BT, memory_BSD, source_mask_BS))

    def encode(self, source_BS: Tensor, source_mask_BS: Tensor | None = None) -> Tensor:
        """Read the sources: see ``EncoderDecoder.encode``."""
        lengths_B = None if source_mask_BS is None else source_mask_BS.sum(1)
        memory_BSD: Tensor = self.dropout(self.encoder(self.dropout(self.embedding(source_BS)), lengths_B))
        return memory_BSD

    def decode(
        self,
        tokens_BT: Tensor,
        memory_BSD: Tensor,
        source_mask_BS: Tensor | None = None,
        cache: RecurrentCache | None = None,
    ) -> Tensor:
        """Compute the states that tell the next tokens: see ``EncoderDecoder.decode``."""
        state = None if cache is None else cache.state
        if state is None:
            state = self._first_state(memory_BSD, source_mask_BS)
        h_BTD, state = self.decoder.advance(self.dropout(self.embedding(tokens_BT)), state)
        if cache is not None:
            cache.advance(tokens_BT.shape[1], state)
        mask_B11S = visible_memory(source_mask_BS).mask
        context_BTD = functional.scaled_dot_product_attention(
            self.query(h_BTD),
            memory_BSD,
            memory_BSD,
            attn_mask=None if mask_B11S is None else mask_B11S.squeeze(1),
            scale=1.0,
        )
        hidden_BTD: Tensor = self.dropout(torch.tanh(self.combine(torch.cat((context_BTD, h_BTD), dim=-1))))
        return hidden_BTD

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Compute logits (B, T, V) from what ``decode`` returned, or from a part of it."""
        logits_BTV: Tensor = self.output(hidden_BTD)
        return logits_BTV

    def new_cache(self, max_len: int) -> RecurrentCache:
        """An empty cache; a state takes as much for any number of tokens."""
        del max_len
        return RecurrentCache()

    def _first_state(self, memory_BSD: Tensor, source_mask_BS: Tensor | None) -> State:
        forwards, backwards = memory_BSD.chunk(2, dim=-1)
        ends = (pool(forwards, source_mask_BS, "last"), pool(backwards, source_mask_BS, "first"))
        h_BD = torch.tanh(self.bridge(torch.cat(ends, dim=-1)))
        h_LBD = torch.stack(h_BD.chunk(self.config.n_layers, dim=-1))
        return h_LBD, torch.zeros_like(h_LBD)


class CNN(nn.Module):
    """A classifier of filters over several tokens, and the greatest answer of each.

    Source: Kim 2014, "Convolutional Neural Networks for Sentence Classification".

    Args:
        config: the model's description; ``d_ff`` feature maps for each of ``kernel_widths``.

    Raises:
        ConfigError: what the description asks for cannot be together; see ``model_problems``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model, init_std=config.init_std)
        self.dropout = nn.Dropout(config.dropout)
        self.filters = nn.ModuleList(nn.Conv1d(config.d_model, config.d_ff, width) for width in config.kernel_widths)
        if config.n_classes:
            n_features = len(config.kernel_widths) * config.d_ff
            self.classifier = Linear(n_features, config.n_classes, bias=True, init_std=config.init_std)

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Compute what the filters that begin at each token say.

        Args:
            tokens_BT: int64 tokens.
            positions_BT: not used.
            documents_BT: integer number of each token's document. A row is one document: what has another number than
                its first token is padding, of which the filters see zeros.
            cache: not used.
            segments_BT: not used.

        Returns:
            (B, T, F) in the type of the computation; no number is below zero.
        """
        x_BTD = self.dropout(self.embedding(tokens_BT))
        if documents_BT is not None:
            x_BTD = x_BTD.where(_of_first_document(documents_BT).unsqueeze(-1), 0.0)
        x_BDT = x_BTD.transpose(1, 2)
        # Behind the last token stand zeros, so that texts shorter than a filter have an answer too.
        answers = [
            filters(functional.pad(x_BDT, (0, width - 1)))
            for filters, width in zip(self.filters, self.config.kernel_widths, strict=True)
        ]
        return functional.relu(torch.cat(answers, dim=1)).transpose(1, 2)

    def class_logits(self, hidden_BTF: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Compute the logits (B, C) of each sequence's classes: see ``Transformer.class_logits``."""
        if mask_BT is not None:
            hidden_BTF = hidden_BTF.where(mask_BT.unsqueeze(-1), 0.0)
        logits_BC: Tensor = self.classifier(self.dropout(hidden_BTF.amax(1)))
        return logits_BC


def _check(config: ModelConfig) -> None:
    if problems := list(model_problems(config)):
        raise ConfigError("; ".join(problems))


def _output(config: ModelConfig, embedding: Embedding) -> Linear:
    output = Linear(config.d_model, config.vocab_size, bias=config.output_bias, init_std=config.init_std)
    if config.tie_embeddings:
        # The very same Parameter: ZeRO-3 then gathers it for this module as one of its own.
        output.weight = embedding.weight
    return output


def _of_first_document(documents_BT: Tensor) -> Tensor:
    return documents_BT == documents_BT[:, :1]


def _mirror(lengths_B: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Rows and places by which each sequence is turned round, and back again; what is behind its end stays."""
    lengths_B1, places_1T = lengths_B.unsqueeze(1), torch.arange(T, device=lengths_B.device).unsqueeze(0)
    mirrored_BT = torch.where(places_1T < lengths_B1, lengths_B1 - 1 - places_1T, places_1T)
    return torch.arange(len(lengths_B), device=lengths_B.device).unsqueeze(1), mirrored_BT
