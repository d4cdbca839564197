"""Checkpoints made from others: imported from Hugging Face folders and GGUF files, or with a smaller vocabulary.

Nothing pickled is read. `kiara.families` defines the names of each model family.
"""

from kiara.importing import importer
from kiara.importing.trim import trim

__all__ = ["importer", "trim"]
