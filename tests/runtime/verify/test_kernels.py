"""`kiara-run verify --deep`, signatures, and speed measurements on this machine."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from kiara_runtime.bundle.manifest import Bundle, write_manifest
from kiara_runtime.bundle.signing import read_private_key, sign
from kiara_runtime.engine.session import Session
from kiara_runtime.errors import UserError
from kiara_runtime.verify.bench import measure_in_subprocess
from kiara_runtime.verify.kernels import probe

PEM = serialization.Encoding.PEM


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_a_good_bundle_computes_the_recorded_values(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    result = kiara_run("verify", bundle, "--deep")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["int8", "int8, int8 cache", "fp32"]
    for line in lines[:2]:
        assert "recorded tokens 100.0%, log-likelihood within 0.000%" in line and "batching changes nothing" in line


def test_a_probe_is_the_log_likelihood_of_its_text(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    session = Session(opened.graph_of("fp32"), opened.architecture)
    ids = np.array(json.loads((bundle / "receipt.json").read_text("utf-8"))["probe"]["ids"])
    logits = torch.from_numpy(session.decoder().append(ids))
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(ids[1:]), reduction="sum")
    assert probe(session, ids)["nats"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["variants", "int8_caches"])
@pytest.mark.parametrize(
    ("what", "expected"), [("top1", "of the recorded likeliest"), ("nats", "off"), (None, "no valid probe")]
)
def test_a_graph_that_differs_from_the_record_is_refused(
    kind: str, what: str | None, expected: str, copy: Path, kiara_run: Callable[..., Result]
) -> None:
    """As on a machine whose kernels differ; here the record is changed instead."""
    receipt = json.loads((copy / "receipt.json").read_text("utf-8"))
    recorded = receipt["probe"][kind]["int8"]
    if what == "top1":
        recorded["top1"] = [token + 1 for token in recorded["top1"]]
    elif what == "nats":
        recorded["nats"] *= 1.02
    else:
        del receipt["probe"]
    (copy / "receipt.json").write_text(json.dumps(receipt), "utf-8")
    values = json.loads((copy / "kiara.json").read_text("utf-8"))
    write_manifest(copy, {key: value for key, value in values.items() if key not in ("files", "sha256")})
    result = kiara_run("verify", copy, "--deep")
    assert result.exit_code == 1 and expected in result.stderr and result.stderr.count("\n") == 1


def _keys(folder: Path, name: str) -> tuple[Path, Path]:
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_a_signature_proves_the_signer_and_every_byte(
    copy: Path, tmp_path: Path, kiara_run: Callable[..., Result]
) -> None:
    (private, public), (_, stranger) = _keys(tmp_path, "mine"), _keys(tmp_path, "other")
    result = kiara_run("verify", copy, "--public-key", public)
    assert result.exit_code == 1 and "kiara.json.sig: missing, the bundle is not signed" in result.stderr
    sign(copy, read_private_key(private))
    result = kiara_run("verify", copy, "--public-key", public)
    assert result.exit_code == 0 and "signed by the owner of" in result.stdout
    assert kiara_run("verify", copy).exit_code == 0
    result = kiara_run("verify", copy, "--public-key", stranger)
    assert result.exit_code == 1 and "not the signature of kiara.json by this key" in result.stderr
    (copy / "notes.txt").write_text("new", "utf-8")
    values = json.loads((copy / "kiara.json").read_text("utf-8"))
    write_manifest(copy, {key: value for key, value in values.items() if key not in ("files", "sha256")})
    assert kiara_run("verify", copy).exit_code == 0  # consistent, but no longer what was signed
    assert kiara_run("verify", copy, "--public-key", public).exit_code == 1


def test_invalid_key_files_are_refused(copy: Path, tmp_path: Path, kiara_run: Callable[..., Result]) -> None:
    private, public = _keys(tmp_path, "mine")
    (tmp_path / "text").write_text("no key", "utf-8")
    other = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa").write_bytes(
        other.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    for path, expected in (
        (tmp_path / "none", "there is no such key file"),
        (tmp_path / "text", "not a private key in PEM"),
        (tmp_path / "rsa", "not an Ed25519 private key"),
        (public, "not a private key in PEM"),
    ):
        with pytest.raises(UserError, match=expected):
            read_private_key(path)
    result = kiara_run("verify", copy, "--public-key", private)
    assert result.exit_code == 1 and "not a public key in PEM" in result.stderr


def test_without_the_extra_the_error_says_what_to_install(
    copy: Path, kiara_run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.setitem(sys.modules, name, None)
    result = kiara_run("verify", copy, "--public-key", copy / "any.pub")
    assert result.exit_code == 1 and "--public-key: needs the package cryptography; pip install" in result.stderr


def test_measurements_run_in_a_separate_process(bundle: Path) -> None:
    speed = measure_in_subprocess(bundle, "int8")
    assert speed.prefill_tokens_per_second > speed.decode_tokens_per_second > 0
    assert 0 < speed.load_seconds < 60 and speed.prompt_tokens == 48
    assert speed.peak_memory_bytes is None or 20 << 20 < speed.peak_memory_bytes < 1 << 30
    with pytest.raises(UserError, match="no such folder"):
        measure_in_subprocess(bundle / "none", None)
