"""From text to token files (sources, documents, split, tokenizer training), and batches of tokens.

Nothing here depends on the model.
"""

from kiara.data.chat_split import IGNORED, ChatSplit, PairSplit
from kiara.data.conversations import conversation_of
from kiara.data.dataset import Dataset, read_manifest
from kiara.data.documents import read_documents, read_records
from kiara.data.engines import Engine
from kiara.data.prepare import as_prepared, dataset_of, prepare_folder
from kiara.data.sequences import GIVEN, Examples, Split
from kiara.data.sources import resolve_source
from kiara.data.token_ids import TokenIds

__all__ = [
    "GIVEN",
    "IGNORED",
    "ChatSplit",
    "Dataset",
    "Engine",
    "Examples",
    "PairSplit",
    "Split",
    "TokenIds",
    "as_prepared",
    "conversation_of",
    "dataset_of",
    "prepare_folder",
    "read_documents",
    "read_manifest",
    "read_records",
    "resolve_source",
]
