"""Models that are made once for all tests of conversion: real pretrained ones, and one with an adapter."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.convert import pretrained
from tests.convert.lora_models import LLAMA, LLAMA_ALL, save_adapter, save_source


@pytest.fixture(scope="session")
def pretrained_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.llama_folder(tmp_path_factory.mktemp("pretrained") / "llama")


@pytest.fixture(scope="session")
def pretrained_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.bert_folder(tmp_path_factory.mktemp("pretrained") / "bert")


@pytest.fixture(scope="session")
def pretrained_masked_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.masked_bert_folder(tmp_path_factory.mktemp("pretrained") / "masked_bert")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and an adapter of all its matrices."""
    folder = tmp_path_factory.mktemp("llama")
    source = save_source(folder / "source", AutoModelForCausalLM, LLAMA)
    return source, save_adapter(folder / "adapter", source, AutoModelForCausalLM, target_modules=LLAMA_ALL)


@pytest.fixture
def adapter(llama: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the adapter, to spoil."""
    return shutil.copytree(llama[1], tmp_path / "adapter")
