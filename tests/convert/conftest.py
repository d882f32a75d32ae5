"""The real pretrained models, each made once for all tests of conversion."""

from pathlib import Path

import pytest

from tests.convert import pretrained


@pytest.fixture(scope="session")
def pretrained_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.llama_folder(tmp_path_factory.mktemp("pretrained") / "llama")


@pytest.fixture(scope="session")
def pretrained_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.bert_folder(tmp_path_factory.mktemp("pretrained") / "bert")


@pytest.fixture(scope="session")
def pretrained_masked_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.masked_bert_folder(tmp_path_factory.mktemp("pretrained") / "masked_bert")
