"""The folder that ships: its manifest and hashes, its variants, its graph files as bytes, its signature.

Independent of `tokens` and `engine`: a bundle can be checked without either.
"""

from kiara_runtime.bundle.graph_file import gathered_tables
from kiara_runtime.bundle.manifest import (
    GRAPH_FOLDER,
    HIDDEN_STATES,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Architecture,
    Bundle,
    io_names,
    write_manifest,
)
from kiara_runtime.bundle.signing import (
    SIGNATURE,
    PrivateKey,
    check_signature,
    check_signature_by,
    read_private_key,
    sign,
)
from kiara_runtime.bundle.variants import FLOAT32, VARIANTS, Limits, Rounding, Variant, find_variant

__all__ = [
    "FLOAT32",
    "GRAPH_FOLDER",
    "HIDDEN_STATES",
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "SIGNATURE",
    "VARIANTS",
    "Architecture",
    "Bundle",
    "Limits",
    "PrivateKey",
    "Rounding",
    "Variant",
    "check_signature",
    "check_signature_by",
    "find_variant",
    "gathered_tables",
    "io_names",
    "read_private_key",
    "sign",
    "write_manifest",
]
