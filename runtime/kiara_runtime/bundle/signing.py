"""Proves who made a bundle: an Ed25519 signature (RFC 8032) over its manifest, which has every file's hash.

Needs the extra `signing` (cryptography). Keys are PEM files, as `openssl genpkey -algorithm ed25519` writes them.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiara_runtime.bundle.manifest import MANIFEST
from kiara_runtime.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = f"{MANIFEST}.sig"
MAX_KEY_BYTES = 1 << 16


@dataclass(frozen=True)
class PrivateKey:
    """A key that signs bundles. fingerprint: SHA-256 of the public key's 32 bytes, in hexadecimal."""

    key: Ed25519PrivateKey
    fingerprint: str


def read_private_key(path: Path) -> PrivateKey:
    """Read an unencrypted Ed25519 private key."""
    key = _read_key("--sign-key", path, "private")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(
            f"--sign-key {path}", "not an Ed25519 private key", "make one: openssl genpkey -algorithm ed25519"
        )
    return PrivateKey(key, hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest())


def sign(folder: Path, key: PrivateKey) -> None:
    """Write the signature of a finished manifest beside it, in base64."""
    signature = key.key.sign((folder / MANIFEST).read_bytes())
    (folder / SIGNATURE).write_text(base64.b64encode(signature).decode() + "\n", "utf-8")


def check_signature(folder: Path, public_key: Path) -> None:
    """Raise UserError if the manifest is not signed, or not by the owner of `public_key`."""
    key = _read_key("--public-key", public_key, "public")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"--public-key {public_key}", "not an Ed25519 public key", "make one: openssl pkey -pubout")
    check_signature_by(folder, key)


def check_signature_by(folder: Path, key: Ed25519PublicKey) -> None:
    """The same, for a key in memory."""
    from cryptography.exceptions import InvalidSignature

    path = folder / SIGNATURE
    if path.is_symlink() or not path.is_file():
        raise UserError(path, "missing, the bundle is not signed", "export it with --sign-key")
    try:
        signature = base64.b64decode(path.read_bytes()[:1024], validate=False)
        key.verify(signature, (folder / MANIFEST).read_bytes())
    except (InvalidSignature, ValueError):
        raise UserError(path, f"not the signature of {MANIFEST} by this key", "do not trust the bundle") from None


def _read_key(option: str, path: Path, kind: str) -> Ed25519PrivateKey | Ed25519PublicKey | Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ImportError:
        raise UserError(option, "needs the package cryptography", "pip install 'kiara-runtime[signing]'") from None
    if not path.is_file() or path.stat().st_size > MAX_KEY_BYTES:
        raise UserError(f"{option} {path}", "there is no such key file", "name a PEM file")
    data = path.read_bytes()
    try:
        return load_pem_private_key(data, password=None) if kind == "private" else load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(
            f"{option} {path}", f"not a {kind} key in PEM without a password", "name an Ed25519 one"
        ) from None
