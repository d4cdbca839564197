"""Train, import, evaluate and export small language models: the commands of `kiara --help`, from Python.

import kiara

dataset = kiara.prepare("notes/", "data/notes")
kiara.train("runs/notes", {"data.train": "data/notes", "training.max_steps": 400})
print(kiara.evaluate("runs/notes").bits_per_byte)
kiara.export("runs/notes", "bundles/notes", quantize=["int8"])
print(kiara.load("runs/notes").generate("Once upon").text)

Every function raises `kiara.UserError`, with field, problem and remedy, for an error that the user can fix.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kiara_runtime.errors import UserError

if TYPE_CHECKING:
    from kiara.face import evaluate, export, import_model, load, prepare, train

__all__ = ["UserError", "evaluate", "export", "import_model", "load", "prepare", "train"]


def __getattr__(name: str) -> Any:
    """Import `kiara.face` when one of its functions is first used, so that `kiara --help` starts quickly."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("kiara.face"), name)
