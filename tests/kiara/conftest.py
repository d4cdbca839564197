"""Fixtures of the tests in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import make_folder

from kiara.importing.importer import import_model


@pytest.fixture(scope="module")
def texts(corpus: Path) -> list[str]:
    return [path.read_text("utf-8") for path in sorted(corpus.glob("[a-c]*.py"))]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("import") / "llama"
    make_folder("llama", folder, texts)
    return folder


@pytest.fixture(scope="module")
def imported(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the imported model `llama`."""
    folder = tmp_path_factory.mktemp("imported") / "ours"
    import_model(llama, folder)
    return folder
