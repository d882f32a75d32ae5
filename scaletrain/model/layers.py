"""Linear, embedding and feed-forward layers that initialise themselves.

Every weight gets its initial value inside the ``__init__`` of the module that owns it. DeepSpeed's ``zero.Init``
cuts the weights of a module into partitions as soon as that ``__init__`` returns; whoever walked the finished model
to initialise it would find empty tensors there.

Shapes: B batch, T time, D d_model, F d_ff.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["gelu", "gelu_tanh", "swiglu"]


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
    """Two linear layers around an activation, or three with a gate (SwiGLU).

    Source: Shazeer 2020, "GLU Variants Improve Transformer", for ``down(silu(gate(x)) * up(x))``.

    Args:
        d_model: width of the residual stream.
        d_ff: width between the layers.
        activation: ``gelu`` (exact), ``gelu_tanh`` (GPT-2's approximation) or ``swiglu``.
        bias: whether the linear layers have biases.
        init_std: standard deviation of the initial weights of ``gate`` and ``up``.
        residual_std: the same for ``down``, whose output is added to the residual stream.
    """

    def __init__(
        self, d_model: int, d_ff: int, *, activation: Activation, bias: bool, init_std: float, residual_std: float
    ) -> None:
        super().__init__()
        self.activation = activation
        if activation == "swiglu":
            self.gate = Linear(d_model, d_ff, bias=bias, init_std=init_std)
        self.up = Linear(d_model, d_ff, bias=bias, init_std=init_std)
        self.down = Linear(d_ff, d_model, bias=bias, init_std=residual_std)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up_BTF: Tensor = self.up(x_BTD)
        if self.activation == "swiglu":
            inner_BTF = functional.silu(self.gate(x_BTD)) * up_BTF
        else:
            inner_BTF = gelu(up_BTF, self.activation)
        out_BTD: Tensor = self.down(inner_BTF)
        return out_BTD


def gelu(x: Tensor, activation: Activation) -> Tensor:
    """The exact GELU, or GPT-2's approximation where that is the activation.

    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units (GELUs)".
    """
    return functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
