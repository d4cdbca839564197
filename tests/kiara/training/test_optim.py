"""Optimizers and schedules: against their definitions, and through a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from training_runs import _changed, _losses

from kiara.config.sections import AdaptConfig, Config
from kiara.data.dataset import Dataset
from kiara.model.gpt import GPT
from kiara.training.lora import add_lora
from kiara.training.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonal, packed_rows
from kiara.training.optim import make_optimizers, schedule, set_learning_rates
from kiara.training.run import Run
from kiara.training.trainer import train


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_rates_rise_over_the_warmup_and_fall_to_nearly_zero(kind: str, small_config: Config) -> None:
    config = _changed(small_config, schedule=kind, max_steps=200, warmup_steps=10).training
    rates = [schedule(config, step) for step in range(200)]
    top = rates.index(max(rates))
    assert 5 <= top <= 10 and max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 0.01
    middle = (200 - 10) / 2 + 10
    assert schedule(config, round(middle)) == pytest.approx(0.5, abs=0.01)
    quarter = {"linear": 0.75, "cosine": (1 + math.cos(math.pi / 4)) / 2}[kind]
    assert schedule(config, 10 + round(190 / 4)) == pytest.approx(quarter, abs=0.01)


def test_each_weight_has_its_optimizer_rate_and_decay(small_config: Config) -> None:
    rates = {"learning_rate": 0.01, "embedding_learning_rate": 0.02, "weight_decay": 0.3}
    model = GPT(small_config.model, 512)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for kind in ("muon", "adamw"):
        config = _changed(small_config, optimizer=kind, warmup_steps=0, **rates).training
        optimizers = make_optimizers(model, config)
        assert set(optimizers) == {"adamw", kind}
        set_learning_rates(optimizers, config, 0)
        found = {
            names[id(parameter)]: (type(optimizer).__name__, group["lr"], group["weight_decay"])
            for optimizer in optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        assert set(found) == set(names.values())
        inner = {"muon": "Muon", "adamw": "AdamW"}[kind]
        assert found["layers.0.mlp.up_proj.weight"] == (inner, 0.01, 0.3)
        assert found["embed_tokens.weight"] == found["layers.0.input_layernorm.weight"] == ("AdamW", 0.02, 0.0)


def test_adamw_alone_follows_pytorchs_adamw(small_config: Config) -> None:
    config = _changed(small_config, optimizer="adamw", weight_decay=0.2, learning_rate=0.01, warmup_steps=0).training
    ours, plain = GPT(small_config.model, 512), GPT(small_config.model, 512)
    for model in (ours, plain):
        model.initialise(0)
    name, weight = "layers.0.mlp.up_proj.weight", plain.get_parameter("layers.0.mlp.up_proj.weight")
    reference = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.95), weight_decay=0.2)
    optimizers = make_optimizers(ours, config)
    for step in range(3):
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        weight.grad, ours.get_parameter(name).grad = gradient.clone(), gradient.clone()
        set_learning_rates(optimizers, config, step)
        reference.param_groups[0]["lr"] = 0.01 * schedule(config, step)
        reference.step()
        optimizers["adamw"].step()
    torch.testing.assert_close(ours.get_parameter(name), weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [[48], [16, 8, 24]])
def test_muon_follows_pytorchs_on_each_packed_matrix(rows: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(48, 32, generator=generator))
    parts = [torch.nn.Parameter(part.detach().clone()) for part in weight.split(rows)]
    ours = Muon([{"params": [weight], "lr": 0.02, "weight_decay": 0.3}], {weight: rows}, torch.bfloat16)
    reference = torch.optim.Muon(parts, lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        weight.grad = torch.randn(weight.shape, generator=generator)
        for part, gradient in zip(parts, weight.grad.split(rows), strict=True):
            part.grad = gradient.clone()
        ours.step()
        reference.step()
    torch.testing.assert_close(weight, torch.cat([*parts]), rtol=1e-5, atol=1e-6)


def test_muon_in_float32_makes_singular_values_alike() -> None:
    matrix = torch.randn(40, 24, generator=torch.Generator().manual_seed(0)) * 1e-3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = torch.linalg.svdvals(orthogonal(matrix))
    assert found.min() > 0.6 and found.max() < 1.3
    assert torch.linalg.matrix_norm(orthogonal(matrix) - left @ right, 2) < 0.4


@pytest.mark.parametrize("shape", [(32, 96), (256, 64), (16, 1024)])
@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-8])
def test_wide_matrices_are_iterated_as_their_definition_says(shape: tuple[int, int], smallest: float) -> None:
    """Also with singular values too small for the float32 of their squares."""
    generator = torch.Generator().manual_seed(shape[0])
    left, values, right = torch.linalg.svd(torch.randn(*shape, generator=generator), full_matrices=False)
    matrix = left @ torch.diag(torch.logspace(0, math.log10(smallest), len(values))) @ right
    x = matrix.double() / matrix.double().norm()
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(orthogonal(matrix), x.float(), rtol=0, atol=1e-3)


def test_every_packed_matrix_of_a_model_has_its_rows(small_config: Config) -> None:
    shape = small_config.model
    gated = GPT(shape.model_copy(update={"mlp": "swiglu"}), 512)
    parts = packed_rows(gated)
    rows = {name: parts[weight] for name, weight in gated.named_parameters() if weight in parts and "layers.0" in name}
    heads, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    assert rows == {
        "layers.0.self_attn.qkv_proj.weight": [heads, keys, keys],
        "layers.0.mlp.gate_up_proj.weight": [shape.intermediate_size] * 2,
    }
    add_lora(gated, AdaptConfig(rank=4), seed=0)
    adapted = {name: packed_rows(gated).get(weight) for name, weight in gated.named_parameters()}
    assert adapted["layers.0.self_attn.qkv_proj.lora_A"] == [4, 4, 4]
    assert adapted["layers.0.self_attn.qkv_proj.lora_B"] == [heads, keys, keys]
    assert adapted["layers.0.self_attn.o_proj.lora_B"] == [shape.hidden_size]


def test_a_run_with_adamw_and_cosine_decay_resumes_exactly(
    small_config: Config, dataset: Dataset, tmp_path: Path
) -> None:
    config = _changed(small_config, optimizer="adamw", schedule="cosine", learning_rate=0.003, max_steps=12)
    config = _changed(config, checkpoint_every=6, eval_every=6, sample_tokens=0)
    assert train(Run(tmp_path / "whole", config, resume=False), dataset)
    losses = [record["loss"] for record in _losses(tmp_path / "whole") if "loss" in record]
    assert losses[-1] < losses[0]
    (tmp_path / "part" / "checkpoints").mkdir(parents=True)
    first = sorted((tmp_path / "whole" / "checkpoints").iterdir())[0]
    first.rename(tmp_path / "part" / "checkpoints" / first.name)
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / "part" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    assert train(Run(tmp_path / "part", config, resume=True), dataset)
    assert [record["loss"] for record in _losses(tmp_path / "part") if "loss" in record] == losses
