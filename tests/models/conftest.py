"""The tiny models, as a chat model and as a base model."""

from __future__ import annotations

import pytest

from tiny_world import model_folder


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.getbasetemp(), chat=False)
