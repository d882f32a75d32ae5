"""Linear, embedding and feed-forward layers that initialise themselves.

Every weight gets its initial value inside the ``__init__`` of the module that owns it. DeepSpeed's ``zero.Init``
cuts the weights of a module into partitions as soon as that ``__init__`` returns; whoever walked the finished model
to initialise it would find empty tensors there.

Shapes: B batch, T time, D d_model, F d_ff.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["gelu", "gelu_tanh", "relu", "swiglu", "geglu"]


class Linear(nn.Linear):
    """A linear layer with normally distributed weights and zero biases.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether there is a bias.
        init_std: standard deviation of the initial weights.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool, init_std: float) -> None:
        self.init_std = init_std  # before super().__init__, which calls reset_parameters
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.init_std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """An embedding table with normally distributed entries.

    Args:
        num_embeddings: number of rows.
        embedding_dim: width of a row.
        init_std: standard deviation of the initial entries.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, init_std: float) -> None:
        self.init_std = init_std
        super().__init__(num_embeddings, embedding_dim)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.init_std)


class FeedForward(nn.Module):
    """Two linear layers around an activation, or three with a gate (SwiGLU, GEGLU).

    Source: Shazeer 2020, "GLU Variants Improve Transformer", for ``down(silu(gate(x)) * up(x))``, and with GELU in
    place of ``silu``. As in T5 1.1, which brought it into use, that is the approximation by tanh.

    Args:
        d_model: width of the residual stream.
        d_ff: width between the layers.
        activation: ``gelu`` (exact), ``gelu_tanh`` (GPT-2's approximation), ``relu``, or with a gate ``swiglu`` and
            ``geglu``.
        bias: whether the linear layers have biases.
        init_std: standard deviation of the initial weights of ``gate`` and ``up``.
        residual_std: the same for ``down``, whose output is added to the residual stream.
    """

    def __init__(
        self, d_model: int, d_ff: int, *, activation: Activation, bias: bool, init_std: float, residual_std: float
    ) -> None:
        super().__init__()
        self.activation = activation
        if is_gated(activation):
            self.gate = Linear(d_model, d_ff, bias=bias, init_std=init_std)
        self.up = Linear(d_model, d_ff, bias=bias, init_std=init_std)
        self.down = Linear(d_ff, d_model, bias=bias, init_std=residual_std)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up_BTF: Tensor = self.up(x_BTD)
        if is_gated(self.activation):
            inner_BTF = activate(self.gate(x_BTD), self.activation) * up_BTF
        else:
            inner_BTF = activate(up_BTF, self.activation)
        out_BTD: Tensor = self.down(inner_BTF)
        return out_BTD


def is_gated(activation: Activation) -> bool:
    """Whether the feed-forward layer has a gate."""
    return activation in ("swiglu", "geglu")


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation function itself, which a gate is multiplied with behind it.

    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units (GELUs)".
    """
    if activation == "relu":
        return functional.relu(x)
    if activation == "swiglu":
        return functional.silu(x)
    return functional.gelu(x, approximate="none" if activation == "gelu" else "tanh")


def scaled(x: Tensor, factor: float) -> Tensor:
    """A product, without a copy where the factor is one."""
    return x if factor == 1.0 else x * factor
