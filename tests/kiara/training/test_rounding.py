"""Quantisation in the loop: the weights end on the grid, the export rounds nothing, and a resumed run is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from onnx import numpy_helper
from processors import exact_products
from training_runs import _changed, _losses

from kiara.checkpoints.checkpoint import find_checkpoint, list_checkpoints, load_model
from kiara.config.sections import Config
from kiara.data.dataset import Dataset
from kiara.grid import Grid
from kiara.model.block import Linear
from kiara.model.gpt import GPT
from kiara.model.ops import round_rows
from kiara.training.curvature import curvatures
from kiara.training.rounding import Rounding
from kiara.training.run import Run
from kiara.training.trainer import Trainer, train
from kiara_runtime.bundle.variants import find_variant

UP, WIDTH = "layers.0.mlp.up_proj.weight", 64


def _grid(name: str) -> Grid:
    variant = find_variant(name)
    assert variant is not None
    return Grid.of(variant)


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_the_bundle_holds_the_trained_weights_bit_for_bit(
    name: str, small_config: Config, dataset: Dataset, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    config = _changed(small_config, max_steps=12, checkpoint_every=6, quantize=name, quantize_from=0.5)
    assert train(Run(tmp_path / "run", config, resume=False), dataset)
    checkpoint = find_checkpoint(tmp_path / "run")
    model, _ = load_model(checkpoint)
    assert all(_grid(name).holds(weight) for weight in model.matrices().values())
    options = ("--quantize", name, "--out", tmp_path / "bundle", "--max-bpb-loss", f"{name}=5%")
    result = kiara("export", tmp_path / "run", *options)
    assert result.exit_code == 0, result.stderr
    path = next((tmp_path / "bundle" / "onnx").glob("*.onnx"))
    bits, found = _grid(name).bits, _dequantised(path)
    trained = {f"model.{name}": weight.detach().numpy() for name, weight in model.matrices().items()}
    assert found.keys() == trained.keys()
    for matrix, weight in trained.items():
        np.testing.assert_array_equal(found[matrix], weight, err_msg=matrix)
    receipt = json.loads((tmp_path / "bundle" / "receipt.json").read_text("utf-8"))
    assert abs(receipt["variants"][name]["bits_per_byte_loss"]) < 1e-3, bits


@exact_products
@pytest.mark.slow
def test_int8_dynamic_ships_the_trained_weights_without_smoothing(
    small_config: Config, dataset: Dataset, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    config = _changed(small_config, max_steps=12, checkpoint_every=6, quantize="int8-dynamic", quantize_from=0.5)
    assert train(Run(tmp_path / "run", config, resume=False), dataset)
    model, _ = load_model(find_checkpoint(tmp_path / "run"))
    options = ("--quantize", "int8-dynamic", "--out", tmp_path / "bundle", "--max-bpb-loss", "int8-dynamic=5%")
    result = kiara("export", tmp_path / "run", *options)
    assert result.exit_code == 0, result.stderr
    path = next((tmp_path / "bundle" / "onnx").glob("*.onnx"))
    graph, found = onnx.load(path).graph, _dequantised(path)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in (node for node in graph.node if node.op_type == "MatMulIntegerToFloat"):
        matrix, scales = tensors[node.input[1]].astype(np.float32), tensors[node.input[3]]
        found[node.input[1].removesuffix(".int8")] = matrix.T * scales[:, None]
    trained = {f"model.{name}": weight.detach().numpy() for name, weight in model.matrices().items()}
    assert found.keys() == trained.keys() and len(found) > 4
    for name, weight in trained.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


def test_activations_are_rounded_only_while_weights_are(small_config: Config) -> None:
    torch.manual_seed(0)
    model = GPT(small_config.model, 300)
    model.initialise(0)
    with torch.no_grad():
        for weight in model.matrices().values():
            weight.normal_(std=0.05)
    ids = torch.arange(1, 33)[None]
    exact = model.predict(ids)
    with Rounding(model, "int8-dynamic")():
        both = model.predict(ids)
        for layer in model.layers.modules():
            if isinstance(layer, Linear):
                layer.register_forward_pre_hook(lambda _, inputs: (round_rows(inputs[0]),))
                layer.rounded = False
        torch.testing.assert_close(both, model.predict(ids))
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
    assert not torch.equal(both, exact) and (both - exact).abs().max() < 0.2 * exact.abs().max()


def test_rows_are_rounded_as_the_operator_defines_it() -> None:
    """QuantizeLinear with zero point 128, in float64; values on the border between two steps may take either."""
    rows = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    peak = rows.double().abs().amax(-1, keepdim=True)
    exact = rows.double() / peak * 127
    quantised = exact.round().add(128).clamp(0, 255)
    border = (exact - exact.floor() - 0.5).abs() < 1e-3
    expected = torch.where(border, round_rows(rows).double(), (quantised - 128) / 127 * peak)
    torch.testing.assert_close(round_rows(rows).double(), expected, rtol=1e-5, atol=1e-6)
    assert border.double().mean() < 0.02 and not round_rows(torch.zeros(2, 8)).any()


def _dequantised(path: Path) -> dict[str, np.ndarray]:
    """Every matrix of a graph's MatMulNBits nodes by its name, computed from the operator's definition."""
    graph = onnx.load(path).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found: dict[str, np.ndarray] = {}
    start = 0
    for node in (node for node in graph.node if node.op_type == "MatMulNBits"):
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        bits, rows, columns, size = (attributes[key] for key in ("bits", "N", "K", "block_size"))
        packed = tensors[node.input[1]]
        each = [(packed >> (bits * i)) & ((1 << bits) - 1) for i in range(8 // bits)]
        values = np.stack(each, -1).reshape(rows, columns // size, size).astype(np.float32)
        count = rows * columns // size
        scales = tensors["scales"][start : start + count].astype(np.float32).reshape(rows, -1, 1)
        start += count
        name = node.input[1].removesuffix(f".int{bits}")
        found[name] = ((values - (1 << (bits - 1))) * scales).reshape(rows, columns)
    return found


def test_rounding_is_undone_and_its_gradient_is_that_of_the_rounded_weights(small_config: Config) -> None:
    model = GPT(small_config.model, 320)
    model.initialise(0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    rounding = Rounding(model, "int4")
    rounded = GPT(small_config.model, 320)  # the oracle: a model that has the rounded weights for good
    rounded.load_state_dict({n: _grid("int4").nearest(w) if n in model.matrices() else w for n, w in before.items()})
    ids = torch.arange(24).view(2, 12)
    with rounding():
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
    rounded.loss(ids[:, :-1], ids[:, 1:]).backward()
    for (name, weight), other in zip(model.named_parameters(), rounded.parameters(), strict=True):
        assert torch.equal(weight, before[name])
        assert weight.grad is not None and other.grad is not None and torch.equal(weight.grad, other.grad)


def test_a_run_that_stops_while_it_rounds_resumes_to_the_same_end(
    small_config: Config, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _changed(small_config, max_steps=12, checkpoint_every=4, eval_every=4, quantize="int4", quantize_from=0.25)
    assert train(Run(tmp_path / "whole", config, resume=False), dataset)
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self: _stop() if self.step == 9 else step(self))
    with pytest.raises(_StoppedError):
        train(Run(tmp_path / "cut", config, resume=False), dataset)
    monkeypatch.undo()
    assert train(Run(tmp_path / "cut", config, resume=True), dataset)
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")
    first, second = (list_checkpoints(tmp_path / name)[-1].folder for name in ("cut", "whole"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


class _StoppedError(Exception):
    pass


def _stop() -> float:
    raise _StoppedError


def test_the_best_checkpoint_is_that_of_what_ships(small_config: Config, dataset: Dataset, tmp_path: Path) -> None:
    """In full precision the last checkpoint is the best; the one selected is by the loss at two bits."""
    config = _changed(small_config, max_steps=20, checkpoint_every=5, eval_every=5, keep_last=9, select_by="int2")
    assert train(Run(tmp_path / "run", config, resume=False), dataset)
    records = _losses(tmp_path / "run")
    by_step = {record["step"]: record["int2_val_loss"] for record in records if "int2_val_loss" in record}
    assert len(by_step) == 4
    best = min(by_step, key=lambda step: (by_step[step], -step))
    assert find_checkpoint(tmp_path / "run").name.endswith(f"{best:06}")
    for checkpoint in list_checkpoints(tmp_path / "run"):
        assert checkpoint.state()["selection_loss"] == by_step[checkpoint.step]
        assert not _grid("int2").holds(load_model(checkpoint.folder)[0].embed_tokens.weight)  # selected by, not rounded


def test_a_checkpoint_in_full_precision_is_no_match_for_one_that_ships(
    small_config: Config, dataset: Dataset, tmp_path: Path
) -> None:
    config = _changed(small_config, max_steps=12, checkpoint_every=6, quantize="int2", quantize_from=0.6)
    assert train(Run(tmp_path / "run", config, resume=False), dataset)
    exact, rounded = list_checkpoints(tmp_path / "run")
    assert exact.state()["selection_loss"] > exact.state()["val_loss"]  # of weights that were not trained for it
    assert rounded.state()["selection_loss"] == rounded.state()["val_loss"]


def test_tables_stay_exact_in_passes_of_int4_and_what_ships_has_less_error(
    small_config: Config, dataset: Dataset
) -> None:
    torch.manual_seed(0)
    model = GPT(small_config.model, dataset.tokenizer.vocab_size)
    model.initialise(0)
    with torch.no_grad():
        model.embed_tokens.weight.normal_()
    exact = {name: weight.detach().clone() for name, weight in model.matrices().items()}
    rounding, table = Rounding(model, "int4", partial(curvatures, model, dataset.train)), "embed_tokens.weight"
    read = {
        table: _rows(model, dataset, model.norm, 2),
        UP: _rows(model, dataset, model.get_submodule(UP.removesuffix(".weight")), 1),
    }
    with rounding(training=True):
        assert torch.equal(model.embed_tokens.weight, exact[table])
        assert all(_grid("int4").holds(w) for name, w in model.matrices().items() if name != table)
    with rounding():
        shipped = {name: weight.detach().clone() for name, weight in model.matrices().items()}
    assert all(torch.equal(weight, exact[name]) for name, weight in model.matrices().items())
    assert all(_grid("int4").holds(weight) for weight in shipped.values())
    for name, rows in read.items():
        nearest = _grid("int4").nearest(exact[name])
        error = [(rows @ (weight - exact[name]).T).square().mean() for weight in (nearest, shipped[name])]
        assert error[1] < 0.95 * error[0], name
    with Rounding(model, "int8", partial(curvatures, model, dataset.train))(training=True):
        assert not torch.equal(model.embed_tokens.weight, exact[table])


def _rows(model: GPT, dataset: Dataset, module: torch.nn.Module, place: int) -> torch.Tensor:
    """What a module reads (place 1) or gives (place 2) on training text, (tokens, D)."""
    found: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda *given: found.append(given[place][0].detach().reshape(-1, WIDTH)))
    with torch.no_grad():
        for i in range(8):
            model.predict(torch.from_numpy(dataset.train.window(i, model.config.context_length)[None, :-1]))
    hook.remove()
    return torch.cat(found)
