"""Import against `transformers` and `tokenizers`: the checkpoint, its bundle, and the checkpoint opened there again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import MODELS, make_folder
from safetensors.torch import load_file, save_file

from kiara.checkpoints.checkpoint import load_model
from kiara.data.token_ids import TokenIds
from kiara.evaluation.reference import reference_model
from kiara.importing.importer import import_model
from kiara.importing.tokenizers import hard_texts
from kiara.model import sizes
from kiara_export.graph.lower import blocks
from kiara_export.graph.onnx_file import save
from kiara_export.graph.trace import trace
from kiara_export.pipeline import Request, architecture, export
from kiara_export.quantize.kept import round_int8
from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.engine.session import Session
from kiara_runtime.loading import load


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_imported_models_match_transformers(name: str, texts: list[str], corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = make_folder(name, tmp_path / "theirs", texts)
    import_model(tmp_path / "theirs", tmp_path / "ours")
    ours, tokenizer = load_model(tmp_path / "ours")
    ids = torch.randint(0, ours.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids)[0], expected, atol=1e-4, rtol=1e-4)
        first, past = ours(ids[:, :17])
        rest, _ = ours(ids[:, 17:], past)
        torch.testing.assert_close(torch.cat((first, rest), 1), expected, atol=1e-4, rtol=1e-4)
        back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
        torch.testing.assert_close(back(ids).logits, expected, atol=1e-4, rtol=1e-4)
    counted = sum(parameter.numel() for parameter in ours.parameters())
    assert sizes.parameters(ours.config, ours.vocab_size) == counted == theirs.num_parameters()

    prompt = tokenizer.encode("def main(argv):")
    greedy = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(prompt) :].tolist()
    options: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True}
    reference = reference_model(ours, tokenizer, TokenIds.read(tmp_path / "ours"))
    assert reference.generate(prompt, **options).tokens == greedy
    export(tmp_path / "ours", tmp_path / "bundle", Request(("fp32",), text=str(corpus / "bisect.py")))
    assert load(tmp_path / "bundle").generate(prompt, **options).tokens == greedy

    original = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    engine = Bundle.open(tmp_path / "bundle").manifest["tokenizer"]["engine"]
    assert engine == ("tokenizers" if name.startswith("qwen") else "tiktoken")
    bundled = load(tmp_path / "bundle").tokenizer
    for text in hard_texts(tokenizer):
        if "<|" not in text:  # the original parses special tokens in text, ours does not
            whole = [*bundled.prompt_prefix, *bundled.encode(text)]
            assert whole == original(text)["input_ids"]


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "gpt2",
        "qwen2",
        "granite",
        "phi",
        "phi3-mini",
        "gpt_neox",
        "olmo3",
        "exaone4",
        "gemma2",
        "gemma3_text",
        "falcon",
    ],
)
@pytest.mark.slow
def test_int8_with_odd_widths_biases_and_untied_tables_matches_the_rounded_model(
    name: str, texts: list[str], tmp_path: Path
) -> None:
    make_folder(name, tmp_path / "theirs", texts)
    import_model(tmp_path / "theirs", tmp_path / "ours")
    model, _ = load_model(tmp_path / "ours")
    graph = blocks(trace(model), lambda _, weight: round_int8(weight))
    save(graph, tmp_path / "int8.onnx")
    assert [node.op_type for node in graph.graph].count("MatMul") == 0
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if parameter.dim() == 2 and label != "embed_positions.weight":
                parameter.copy_(torch.from_numpy(round_int8(parameter.numpy()).weight()))
        ids = torch.randint(0, model.vocab_size, (40,), generator=torch.Generator().manual_seed(1))
        expected = model(ids[None])[0][0].numpy()
    found = Session(tmp_path / "int8.onnx", architecture(model)).decoder().append(ids.numpy())
    assert np.std(found - expected) < 0.05 * np.std(expected)  # activations are rounded, too


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_and_half_precision_import_without_loss(
    dtype: torch.dtype, llama: Path, texts: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(llama, folder)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    import_model(folder, tmp_path / "ours")
    written = load_file(tmp_path / "ours/model.safetensors")
    assert all(torch.equal(written[name], tensor.float()) for name, tensor in tensors.items())
    (folder / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"b.safetensors: there is no such file"):
        import_model(folder, tmp_path / "other")


def test_a_rotation_that_onnx_runtime_does_not_have_is_refused_before_any_work(
    texts: list[str], corpus: Path, tmp_path: Path
) -> None:
    make_folder("gpt_neox-narrow", tmp_path / "theirs", texts)
    import_model(tmp_path / "theirs", tmp_path / "ours")
    with pytest.raises(ValueError, match="rotates 8 of the 32 dimensions of a head"):
        export(tmp_path / "ours", tmp_path / "bundle", Request(("fp32",), text=str(corpus / "bisect.py")))
    assert not (tmp_path / "bundle").exists()
