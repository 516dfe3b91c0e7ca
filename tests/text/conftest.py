"""The shipped micro tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2chat.text import M2ChatTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> M2ChatTokenizer:
    return M2ChatTokenizer(Path(__file__).parents[2] / "data/micro/llama")
