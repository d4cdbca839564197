"""Fixtures of the tests in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiara_runtime.loading import load
from kiara_runtime.model import Model


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return load(bundle)
