"""From text to token files (sources, documents, split, tokenizer training), and batches of tokens.

Nothing here depends on the model.
"""

from kiara.data.dataset import GIVEN, Dataset, Split, read_manifest
from kiara.data.documents import read_documents
from kiara.data.prepare import as_prepared, dataset_of, prepare_folder
from kiara.data.sources import resolve_source
from kiara.data.token_ids import TokenIds

__all__ = [
    "GIVEN",
    "Dataset",
    "Split",
    "TokenIds",
    "as_prepared",
    "dataset_of",
    "prepare_folder",
    "read_documents",
    "read_manifest",
    "resolve_source",
]
