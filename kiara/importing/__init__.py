"""Other people's models to an ordinary checkpoint: Hugging Face folders and GGUF files, nothing pickled.

What a family's names mean is `kiara.families`'.
"""

from kiara.importing import importer

__all__ = ["importer"]
