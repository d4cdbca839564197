"""The int8 KV cache: what is cached is the float32 cache, rounded, and the graph has no weights of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from kiara.checkpoints import find_checkpoint, trained_on
from kiara.evaluation import held_out_text
from kiara_export.candidates import caches
from kiara_export.pipeline import Request, export
from kiara_export.quantize.cache import HEADROOM, LARGEST, cache_scales
from kiara_export.texts import texts_of
from kiara_runtime.bundle import Bundle
from kiara_runtime.bundle.graph_file import external_files
from kiara_runtime.engine.session import Session
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load
from kiara_runtime.tokens import Tokenizer

FIXTURE = Path(__file__).parent.parent / "fixtures" / "bundle-1.0"


def _sessions(bundle: Path) -> tuple[Session, Session]:
    opened = Bundle.open(bundle)
    return tuple(Session(opened.graph_of("int8", cache), opened.architecture) for cache in (False, True))  # type: ignore[return-value]


def _scales(bundle: Path) -> list[np.ndarray]:
    """Of keys, then values, of each layer, from the graph itself."""
    graph = onnx.load(str(Bundle.open(bundle).graph_of("int8", True)), load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    return [numpy_helper.to_array(tensors[name])[0] for node in attentions for name in node.input[12:14]]


def test_the_cache_holds_the_float32_values_rounded(bundle: Path) -> None:
    """In the first layer, whose inputs are the same: within half a step, and at the ends where a value is larger."""
    float32, int8 = _sessions(bundle)
    ids = load(bundle).tokenize("def main(argv):\n    for name in argv:\n")
    both = [session.decoder() for session in (float32, int8)]
    for decoder in both:
        decoder(ids)
    assert both[1].cache.buffers.dtype == np.int8 and both[1].cache.buffers.nbytes * 4 == both[0].cache.buffers.nbytes
    for exact, rounded, scale in zip(
        both[0].cache.buffers[:2], both[1].cache.buffers[:2], _scales(bundle), strict=False
    ):
        wanted = np.clip(exact[0, :, : len(ids)], -128 * scale, LARGEST * scale)
        assert (np.abs(rounded[0, :, : len(ids)] * scale - wanted) <= 0.5001 * scale).all()


def test_the_graph_reads_its_weights_from_the_variants_file(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    path = opened.graph_of("int8", True)
    assert external_files(path) == {"model_quantized.onnx"}
    assert path.stat().st_size < opened.graph_of("int8").stat().st_size / 4
    assert {path.name, "model_quantized.onnx"} <= {Path(name).name for name in opened.files_of("int8")}
    assert not any("quantized" in name for name in opened.files_of("fp32"))
    assert [graph for graph in opened.graphs() if graph[1]] == [("int8", True)]  # float32 itself has none


def test_scales_come_from_calibration_and_bound_rotated_keys(bundle: Path) -> None:
    """Both channels of a pair have its largest length; a key turned to any other position stays within it."""
    float32, _ = _sessions(bundle)
    ids = np.arange(64)
    decoder = float32.decoder()
    decoder(ids.tolist())
    shape = float32.architecture
    scales = cache_scales(float32, [ids[:32], ids[32:], ids], shape.head_dim)
    keys, values = decoder.cache.buffers[0, 0, :, :64], decoder.cache.buffers[1, 0, :, :64]
    half = shape.head_dim // 2
    lengths = np.hypot(keys[..., :half], keys[..., half:]).max(axis=1)
    for part in (scales[0][:, :half], scales[0][:, half:]):
        assert (part * LARGEST >= lengths * 0.9999).all()
    assert (scales[1] * LARGEST >= np.abs(values).max(axis=1) * HEADROOM * 0.9999).all()
    assert len(scales) == 2 * shape.num_hidden_layers and all(scale.dtype == np.float32 for scale in scales)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(2, 60), chunk=st.integers(2, 30))
def test_single_steps_and_passes_read_the_same_rounded_values(bundle: Path, cut: int, chunk: int) -> None:
    """Unlike with a float32 cache, a pass rounds its own keys and values before it reads them."""
    _, int8 = _sessions(bundle)
    ids = np.array(load(bundle).tokenize("def main(argv):\n    return argv\n" * 8)[:64])
    whole, parts = int8.decoder(), int8.decoder()
    expected = whole.append(ids)
    pieces = [ids[:cut], *(ids[i : i + chunk] for i in range(cut, len(ids), chunk))]
    found = np.concatenate([parts.append(piece) for piece in pieces])
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_the_receipt_tells_its_loss_and_verify_checks_it(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    figures = json.loads((bundle / "receipt.json").read_text("utf-8"))["variants"]["int8"]["int8_cache"]
    assert abs(figures["bits_per_byte_loss"]) <= caches.MOST_LOST + 2 * figures["bits_per_byte_loss_error"]
    assert "With an int8 KV cache" in (bundle / "README.md").read_text("utf-8")
    deep = kiara_run("verify", "--deep", bundle)
    assert deep.exit_code == 0 and "int8, int8 cache: top-1 agreement" in deep.stdout
    assert "int8 KV cache" in kiara_run("info", bundle).stdout


def test_the_commands_use_it(bundle: Path, tmp_path: Path, kiara_run: Callable[..., Result]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("def main(argv):\n    return argv\n" * 20, "utf-8")
    both = [
        json.loads(kiara_run("evaluate", bundle, text, "--json", "--kv-cache", kind).stdout)
        for kind in ("fp32", "int8")
    ]
    assert both[0] != both[1] and both[1]["bits_per_byte"] == pytest.approx(both[0]["bits_per_byte"], rel=0.01)
    options = ("-p", "def ", "--max-tokens", "8", "--temperature", "0", "--kv-cache", "int8")
    assert kiara_run("generate", bundle, *options).exit_code == 0
    speed = json.loads(kiara_run("bench", bundle, "--batch", "1", "--json", "--kv-cache", "int8").stdout)
    assert speed["decode_tokens_per_second"] > 0


def test_a_bundle_without_one_refuses(tmp_path: Path, bundle: Path, kiara_run: Callable[..., Result]) -> None:
    old = tmp_path / "old"
    shutil.copytree(FIXTURE, old)
    for command in (("generate", old, "-p", "x"), ("serve", old, "--port", "0"), ("bench", old)):
        refused = kiara_run(*command, "--kv-cache", "int8")
        assert refused.exit_code == 1 and refused.stderr.count("\n") == 1
        assert "there is no int8 cache for int8" in refused.stderr and "export the bundle again" in refused.stderr
    with pytest.raises(UserError, match=r"kv_cache: 'int4' is not a type of cache; use int8 or fp32"):
        load(bundle, kv_cache="int4")  # type: ignore[arg-type]


def test_a_cache_that_loses_too_much_is_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def coarse(*given: Any) -> list[np.ndarray]:
        return [scale * 100 for scale in cache_scales(*given)]

    monkeypatch.setattr(caches, "cache_scales", coarse)
    export(run, tmp_path / "bundle", Request(("int8",)))
    opened = Bundle.open(tmp_path / "bundle")
    opened.check()
    assert opened.graphs() == [("int8", False)]
    assert "with an int8 KV cache loses" in caplog.text and "leaving that cache out" in caplog.text


def test_it_is_calibrated_on_text_that_is_not_reported(run: Path, tmp_path: Path) -> None:
    """An own model's training text; of an imported one the first quarter of --text, if that is enough text."""
    request = Request(("int8",))
    own = find_checkpoint(run)
    texts = texts_of(own, Tokenizer.load(own), request, request.orders())
    assert texts.calibrate and texts.calibrate.sha256 == trained_on(own).train.sha256 != texts.report.sha256
    imported = tmp_path / "imported"
    shutil.copytree(own, imported)
    state = json.loads((imported / "trainer_state.json").read_text("utf-8"))
    (imported / "trainer_state.json").write_text(json.dumps({**state, "dataset": None, "sha256": {}}), "utf-8")
    for repeats, enough in ((40, True), (8, False)):
        (tmp_path / "text.txt").write_text("def main(argv):\n    return argv\n\n" * repeats, "utf-8")
        request = Request(("int8",), text=str(tmp_path / "text.txt"))
        found = texts_of(imported, Tokenizer.load(imported), request, request.orders())
        assert (found.calibrate is not None) == enough
        whole = held_out_text(imported, Tokenizer.load(imported), request.text)
        assert found.report.tokens + (found.calibrate.tokens if found.calibrate else 0) == whole.tokens


def test_a_bundle_of_an_older_format_is_exported_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara: Callable[..., Result]
) -> None:
    """Nothing else has changed, but older bundles have no int8 cache."""
    with monkeypatch.context() as older:
        older.setattr("kiara_runtime.bundle.manifest.FORMAT", (1, 0))
        assert kiara("export", run, "--out", tmp_path / "bundle").exit_code == 0
    assert "Up to date" not in kiara("export", run, "--out", tmp_path / "bundle").stderr
    assert Bundle.open(tmp_path / "bundle").manifest["format_version"] == "1.1"
    assert "Up to date" in kiara("export", run, "--out", tmp_path / "bundle").stderr


def test_an_older_onnx_runtime_runs_everything_else(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara_run: Callable[..., Result]
) -> None:
    """The runtime allows versions of ONNX Runtime whose attention knows no int8 cache."""
    monkeypatch.setattr(ort, "__version__", "1.26.0")
    (tmp_path / "text.txt").write_text("def main(argv):\n    return argv\n", "utf-8")
    assert load(bundle).generate("def ", max_tokens=2).tokens
    for command in (
        ("generate", bundle, "-p", "x"),
        ("evaluate", bundle, tmp_path / "text.txt"),
        ("bench", bundle, "--profile"),
    ):
        refused = kiara_run(*command, "--kv-cache", "int8")
        assert refused.exit_code == 1 and "kv_cache: int8 needs ONNX Runtime 1.28, and this is 1.26.0" in refused.stderr
    for options in ((), ("--deep",)):
        verified = kiara_run("verify", bundle, *options)
        assert verified.exit_code == 0 and "int8 KV caches were not run" in verified.stderr
        assert "int8 cache:" not in verified.stdout
