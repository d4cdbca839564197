"""Helpers shared by the engine tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.engine.engine import Engine
from kiara_runtime.engine.runner import SequentialRunner
from kiara_runtime.engine.session import Session
from kiara_runtime.loading import load
from kiara_runtime.model import Model

TEXT = "def main(argv):\n    for name in argv:\n        print(name)\n\n\ndef other(argv):\n    for name in argv:\n"


def _session(bundle: Path, variant: str | None = None, int8_cache: bool = False) -> Session:
    opened = Bundle.open(bundle)
    return Session(opened.graph_of(variant, int8_cache), opened.architecture)


def _model(bundle: Path, variant: str | None = None, int8_cache: bool = False, **engine: Any) -> Model:
    """Like `load`, with other engine options."""
    model = load(bundle, variant)
    model.runner = Engine(_session(bundle, variant, int8_cache), **engine)
    return model


def _alone(bundle: Path, variant: str | None = None, int8_cache: bool = False) -> Model:
    """The oracle: runs requests one after another, each with its own cache."""
    session, model = _session(bundle, variant, int8_cache), load(bundle, variant)

    def begin() -> Callable[[Sequence[int]], Any]:
        decoder = session.decoder()
        return lambda ids: decoder.append(np.array(ids, dtype=np.int64))

    model.runner = SequentialRunner(begin)
    return model


def _prompt(model: Model, start: int, length: int) -> list[int]:
    ids = model.tokenize(TEXT * 12)
    return ids[start : start + length]
