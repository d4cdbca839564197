"""Train, import, evaluate and export small language models: the commands of `kiara --help`, from Python.

import kiara

dataset = kiara.prepare("notes/", "data/notes")
kiara.train("runs/notes", {"data.train": "data/notes", "training.max_steps": 400})
print(kiara.evaluate("runs/notes").bits_per_byte)
kiara.export("runs/notes", "bundles/notes", quantize=["int8"])
print(kiara.load("runs/notes").generate("Once upon").text)

Every function raises `kiara.UserError`, with field, problem and remedy, for an error that the user can fix.
"""

from typing import TYPE_CHECKING

from kiara_runtime.errors import UserError
from kiara_runtime.lazy import lazy_names

if TYPE_CHECKING:
    from kiara.face import compare, evaluate, export, import_model, load, prepare, train, trim

__all__ = ["UserError", "compare", "evaluate", "export", "import_model", "load", "prepare", "train", "trim"]

__getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "kiara.face"))
