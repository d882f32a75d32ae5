"""Programs of others that load what a conversion writes: lm-eval scores it as it scores here, peft adapts it."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

from scaletrain.checkpoint.layout import list_checkpoints
from scaletrain.checkpoint.weights import load_weights
from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.lora import merge_lora
from scaletrain.convert.to_hf import to_hf
from scaletrain.model.transformer import Transformer
from tests.convert import saving_bodies
from tests.convert.tiny_models import TEXT, VOCAB, tokenizer
from tests.distributed import run_on_ranks
from tests.engine.bodies import Case

TASK = """
task: fox
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: byte_perplexity}}]
"""
# In a process of its own, which reads its tasks without a network.
EVALUATE = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
folder, tasks = sys.argv[1:]
arguments = {"pretrained": folder, "dtype": "float32", "prefix_token_id": 0}
manager = TaskManager(include_path=tasks, include_defaults=False)
found = simple_evaluate("hf", model_args=arguments, tasks=["fox"], task_manager=manager, device="cpu", batch_size=1)
print(json.dumps(found["results"]["fox"]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two ranks with ZeRO-2, and its Hugging Face folder."""
    run_dir = tmp_path_factory.mktemp("clients") / "run"
    shape = {"vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "max_seq_len": 64, "positions": "rotary"}
    case = Case(stage=2, model=shape | {"norm": "rms_norm", "activation": "swiglu", "bias": False})
    run_on_ranks(2, saving_bodies.train_and_save, case, str(run_dir), 8)
    tokenizer().save(str(run_dir / "tokenizer.json"))
    to_hf(CheckpointTensors(list_checkpoints(run_dir / "checkpoints")[0]), run_dir / "hf", proves=True)
    return run_dir, run_dir / "hf"


@pytest.mark.thorough
def test_lm_eval_scores_a_text_as_it_scores_here(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run_dir, folder = trained
    text = TEXT[:120]
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (tmp_path / "fox.yaml").write_text(TASK.format(file=tmp_path / "data.jsonl"))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", EVALUATE, str(folder), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    scored = json.loads(done.stdout.splitlines()[-1])["byte_perplexity,none"]
    model = Transformer(CheckpointTensors(list_checkpoints(run_dir / "checkpoints")[0]).config)
    model.load_state_dict(load_weights(run_dir / "checkpoints"))
    tokens = torch.tensor([[0, *tokenizer().encode(text).ids]])
    assert tokens.shape[1] <= 64
    with torch.no_grad():
        nll = functional.cross_entropy(model.eval()(tokens)[0, :-1], tokens[0, 1:], reduction="sum")
    assert scored == pytest.approx(float((nll / len(text.encode())).exp()), rel=1e-4)


def test_peft_adapts_it_and_the_adapter_is_merged(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder = trained[1]
    load = functools.partial(AutoModelForCausalLM.from_pretrained, folder)
    model = get_peft_model(load(), LoraConfig(target_modules=["q_proj", "down_proj"], r=4, lora_alpha=8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.tensor([tokenizer().encode(TEXT).ids[:60]])
    losses = []
    for _ in range(10):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    model.save_pretrained(tmp_path / "adapter")
    merge_lora(folder, tmp_path / "adapter", tmp_path / "merged", None, 1)
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits
        torch.testing.assert_close(merged, model.eval()(input_ids=tokens).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(merged, load()(tokens).logits, atol=1e-2)
