"""Fixtures of the tests in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiara.checkpoints.checkpoint import find_checkpoint, load_model
from kiara.model.gpt import GPT


@pytest.fixture(scope="module")
def model(run: Path) -> GPT:
    return load_model(find_checkpoint(run))[0]
