"""CUDA: what runs there, and, where there is a GPU, that it computes what the CPU does (`make check-cuda`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from kiara_runtime.bundle import Bundle
from kiara_runtime.engine.session import Device, Session
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load

GPU = "CUDAExecutionProvider"
needs_gpu = pytest.mark.skipif(GPU not in ort.get_available_providers(), reason="needs a GPU and onnxruntime-gpu")
TEXT = "def main(argv):\n    for name in argv:\n        print(name)\n"


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ONNX Runtime had been built with CUDA."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [GPU, "CPUExecutionProvider"])


@pytest.mark.usefixtures("with_cuda")
def test_variants_in_float32_stay_on_the_cpu(bundle: Path, recwarn: pytest.WarningsRecorder) -> None:
    """GroupQueryAttention of the CUDA provider takes float16 and bfloat16 only."""
    model = load(bundle)
    assert model.generate(TEXT, max_tokens=3).tokens and not recwarn.list
    with pytest.raises(UserError, match=r"device: attention on CUDA needs float16, and int8 .*; name the variant fp16"):
        load(bundle, device="cuda")


@pytest.mark.usefixtures("with_cuda")
def test_an_int8_cache_is_for_the_cpu(bundle: Path, embedding_bundle: Path) -> None:
    assert load(bundle, kv_cache="int8").generate(TEXT, max_tokens=3).tokens
    with pytest.raises(UserError, match="kv_cache: 'int8' runs on the CPU only; use fp32, or the device cpu"):
        load(embedding_bundle, "fp16", kv_cache="int8")


def test_float16_has_no_int8_cache(embedding_bundle: Path) -> None:
    with pytest.raises(UserError, match="there is no int8 cache for fp16"):
        load(embedding_bundle, "fp16", kv_cache="int8")


@needs_gpu
def test_logits_on_a_gpu_are_those_of_the_cpu(embedding_bundle: Path) -> None:
    """Up to float16, in one pass, in chunks and in single steps."""
    opened = Bundle.open(embedding_bundle)
    devices: tuple[Device, ...] = ("cpu", "cuda")
    cpu, gpu = (Session(opened.graph_of("fp16"), opened.architecture, device=device) for device in devices)
    assert gpu.device == "cuda"
    ids = np.array(load(embedding_bundle).tokenize(TEXT * 2)[:60])
    expected = cpu.decoder().append(ids)
    for chunk in (60, 17, 1):
        decoder = gpu.decoder()
        found = np.concatenate([decoder.append(ids[i : i + chunk]) for i in range(0, len(ids), chunk)])
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@needs_gpu
def test_requests_on_a_gpu_get_together_what_they_get_alone(embedding_bundle: Path) -> None:
    """Their likeliest tokens; in float16 the last bits may differ, so the models' texts may, at a near tie."""
    with load(embedding_bundle, "fp16", device="cuda") as model:
        prompts = [TEXT[:length] for length in (10, 25, 40, 55)]
        alone = [model.generate(prompt, max_tokens=8, temperature=0.0).tokens for prompt in prompts]
        together = [one.tokens for (one,) in model.generate_all(prompts, max_tokens=8, temperature=0.0)]
        same = sum(a == b for one, other in zip(alone, together, strict=True) for a, b in zip(one, other, strict=False))
        assert same >= 0.9 * sum(map(len, alone))
        assert model.embed(prompts).shape[0] == len(prompts)
