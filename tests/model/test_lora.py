"""Adapters are those of the PEFT library: the same outputs, the same gradients, and nothing at first."""

import copy

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from torch import Tensor, nn

from scaletrain.config.schema import LoraConfig, ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.model.lora import LoraLinear, add_adapters
from scaletrain.model.transformer import Transformer

MODEL = {"vocab_size": 50, "d_model": 24, "n_layers": 2, "n_heads": 3, "n_kv_heads": 1, "max_seq_len": 16}
TOKENS_BT = torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(1))
TARGETS = ("q", "v", "feed_forward.up")
# Sums of 24 to 96 products in fp32, in the same order on both sides but for how they are joined.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def build(**more: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(**MODEL, **more))


def randomised(model: nn.Module) -> dict[str, Tensor]:
    """Gives all B numbers, and returns the adapters' tensors."""
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(generator=generator)
    return {name: weight for name, weight in model.named_parameters() if "lora_" in name}


def peft_of(base: Transformer, adapters: dict[str, Tensor], lora: LoraConfig) -> nn.Module:
    """PEFT's adapters on the same weights, with the same numbers."""
    targets = r".*\.(q|v|feed_forward\.up)"
    wanted = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    theirs = inject_adapter_in_model(wanted, copy.deepcopy(base))
    there = {name.replace(".default", ""): weight for name, weight in theirs.named_parameters() if "lora_" in name}
    assert there.keys() == adapters.keys()
    for name, weight in there.items():
        weight.data.copy_(adapters[name])
    return theirs


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_outputs_and_gradients_are_those_of_peft(dropout: float) -> None:
    base, lora = build(), LoraConfig(rank=4, alpha=6.0, dropout=dropout, targets=TARGETS)
    ours = copy.deepcopy(base)
    chosen = add_adapters(ours, lora)
    assert chosen == [
        f"blocks.{i}.{name}" for i in (0, 1) for name in ("attention.q", "attention.v", "feed_forward.up")
    ]
    adapters = randomised(ours)
    theirs = peft_of(base, adapters, lora)
    results = []
    for model in (ours, theirs):
        torch.manual_seed(7)  # of the dropout
        logits_BTV = model(TOKENS_BT)
        logits_BTV.logsumexp(-1).sum().backward()
        results.append(logits_BTV.detach())
    torch.testing.assert_close(*results, **TOLERANCE)
    assert not results[0].allclose(base(TOKENS_BT), atol=0.1), "the adapters do something"
    gradients = {name.replace(".default", ""): weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in adapters.items():
        torch.testing.assert_close(weight.grad, gradients[name], **TOLERANCE)


def test_merged_by_peft_it_computes_the_same() -> None:
    base, lora = build(), LoraConfig(rank=4, targets=TARGETS)
    ours = copy.deepcopy(base)
    add_adapters(ours, lora)
    theirs = peft_of(base, randomised(ours), lora)
    for module in theirs.modules():
        if hasattr(module, "merge"):
            module.merge()
    torch.testing.assert_close(ours(TOKENS_BT), theirs(TOKENS_BT), rtol=1e-5, atol=1e-5)


def test_at_first_it_is_the_model_itself_and_only_adapters_learn() -> None:
    base = build(pooler=True, n_classes=3, causal=False)
    ours = copy.deepcopy(base)
    add_adapters(ours, LoraConfig(rank=2))
    assert ours(TOKENS_BT).equal(base(TOKENS_BT))
    trained = {name for name, weight in ours.named_parameters() if weight.requires_grad}
    heads = {f"{head}.{part}" for head in ("pooler", "classifier") for part in ("weight", "bias")}
    assert trained == heads | {
        f"blocks.{layer}.attention.{name}.lora_{factor}.weight" for layer in (0, 1) for name in "qv" for factor in "AB"
    }
    # The names of all else are those that it has without adapters.
    assert {name for name, _ in base.named_parameters()} <= {name for name, _ in ours.named_parameters()}
    assert sum(isinstance(module, LoraLinear) for module in ours.modules()) == 4


def test_a_is_drawn_as_peft_draws_it() -> None:
    torch.manual_seed(3)
    ours = nn.ModuleDict({"q": nn.Linear(20, 30)})
    theirs = copy.deepcopy(ours)
    torch.manual_seed(4)
    add_adapters(ours, LoraConfig(rank=5, targets=("q",)))
    torch.manual_seed(4)
    inject_adapter_in_model(PeftConfig(r=5, target_modules=["q"]), theirs)
    drawn = theirs["q"].lora_A["default"].weight
    bound = 1 / 20**0.5
    for weight in (ours["q"].lora_A.weight, drawn):
        assert 0.8 * bound < float(weight.detach().abs().max()) <= bound


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        ({"targets": ("q", "queries")}, "no linear layer is called queries; there are down, k, out, output, q, up, v"),
        ({"targets": ("embedding",)}, "no linear layer is called embedding"),
        (
            {"targets": ("q,v",)},
            "is called q,v; there are down, k, out, output, q, up, v; several are given in brackets",
        ),
        ({"targets": ("output",)}, "output shares its weight with another module"),
    ],
)
def test_what_cannot_have_one_is_refused(lora: dict[str, tuple[str, ...]], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        add_adapters(build(), LoraConfig(rank=2, **lora))


def test_they_compile_into_the_models_one_graph_with_the_same_gradients() -> None:
    ours = Transformer(ModelConfig(**(MODEL | {"n_layers": 1})))
    add_adapters(ours, LoraConfig(rank=4, targets=TARGETS))
    adapters = randomised(ours)
    found = []
    for model in (ours, torch.compile(ours, fullgraph=True, backend="aot_eager")):
        ours.zero_grad()
        logits_BTV = model(TOKENS_BT)
        logits_BTV.logsumexp(-1).sum().backward()
        found.append([logits_BTV.detach(), *(weight.grad for weight in adapters.values())])
    torch.testing.assert_close(*found, **TOLERANCE)
