"""Import Hugging Face folders and GGUF files as ordinary checkpoints; nothing pickled is read.

`kiara.families` defines the names of each model family.
"""

from kiara.importing import importer

__all__ = ["importer"]
