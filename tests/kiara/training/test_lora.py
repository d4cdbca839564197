"""Adapters against `peft`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import MODELS, make_folder
from safetensors.torch import save_file
from torch import Tensor

from kiara.checkpoints.checkpoint import load_model
from kiara.config.sections import AdaptConfig
from kiara.importing.importer import import_model
from kiara.model.gpt import GPT
from kiara.training.lora import adapter_config, adapter_tensors, adapters, add_lora, load_adapters, merged

ADAPT = AdaptConfig(rank=4, alpha=6.0)


@pytest.fixture(params=["llama", "llama-biases", "qwen3", "arcee", "gpt2"])
def imported(request: pytest.FixtureRequest, texts: list[str], tmp_path: Path) -> Path:
    assert request.param in MODELS
    make_folder(request.param, tmp_path / "theirs", texts)
    import_model(tmp_path / "theirs", tmp_path / "ours")
    return tmp_path / "ours"


def _adapted(folder: Path) -> GPT:
    """A model with adapters that change its logits."""
    model, _ = load_model(folder)
    add_lora(model, ADAPT, seed=1)
    generator = torch.Generator().manual_seed(2)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=generator)
    return model


def _assert_close(found: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest value."""
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.detach().abs().max().item(), rtol=0)


def _ids(model: GPT) -> Tensor:
    return torch.randint(0, model.vocab_size, (2, 30), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_merged_applied_and_opened_in_peft_give_the_same_logits(imported: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = _adapted(imported)
    ids, (plain, _) = _ids(model), load_model(imported)
    applied = model(ids)[0]
    assert (applied - plain(ids)[0]).abs().max() > 0.1
    _assert_close(merged(model)(ids)[0], applied)

    save_file(adapter_tensors(model), tmp_path / "adapter_model.safetensors", {"format": "pt"})
    values = adapter_config(model, ADAPT, str(imported))
    (tmp_path / "adapter_config.json").write_text(json.dumps(values), "utf-8")
    base = AutoModelForCausalLM.from_pretrained(imported)
    _assert_close(PeftModel.from_pretrained(base, tmp_path)(ids).logits, applied)


@torch.no_grad()
def test_adapters_change_nothing_at_first_and_are_loaded_as_they_were(imported: Path) -> None:
    model, (fresh, _) = _adapted(imported), load_model(imported)
    ids = _ids(model)
    before = fresh(ids)[0]
    add_lora(fresh, ADAPT, seed=5)
    assert torch.equal(fresh(ids)[0], before)
    load_adapters(fresh, adapter_tensors(model))
    assert torch.equal(fresh(ids)[0], model(ids)[0])


def test_only_adapters_are_trained_and_each_gets_the_gradient_of_its_merged_weight(imported: Path) -> None:
    model = _adapted(imported)
    ids = _ids(model)
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}

    whole = merged(model).requires_grad_()
    whole.loss(ids[:, :-1], ids[:, 1:]).backward()
    for name, layer in adapters(model).items():
        full = whole.get_parameter(f"{name}.weight").grad
        assert full is not None
        assert layer.lora_B.grad is not None
        assert layer.lora_A.grad is not None
        parts = zip(full.split(layer.rows), layer.lora_A.split(layer.rank), layer.lora_B.split(layer.rows), strict=True)
        a, b = zip(*((layer.scale * B.T @ part, layer.scale * part @ A.T) for part, A, B in parts), strict=True)
        _assert_close(layer.lora_A.grad, torch.cat(a))
        _assert_close(layer.lora_B.grad, torch.cat(b))
