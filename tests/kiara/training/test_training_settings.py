"""Training settings, and what training refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from training_runs import _changed, _losses

from kiara.checkpoints.checkpoint import list_checkpoints
from kiara.config.load import load_config
from kiara.config.sections import Config
from kiara.data.dataset import Dataset
from kiara.evaluation.evaluate import evaluate_checkpoint
from kiara.training.gradient import Gradient
from kiara.training.optim import schedule
from kiara.training.run import Run
from kiara.training.trainer import train
from kiara_runtime.errors import UserError
from kiara_runtime.verify.scoring import Scorer


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.device=cuda", "training.device: no CUDA"),
        ("training.compile=always", "training.compile: always needs a C++ compiler"),
        (f"training.sample_prompt={'x ' * 600}", "training.sample_prompt: leaves no room in model.context_length"),
        (r'training.sample_prompt="\ud800"', "training.sample_prompt: cannot be encoded"),
    ],
)
def test_impossible_settings_are_refused_before_data_are_prepared(
    setting: str,
    expected: str,
    corpus: Path,
    tmp_path: Path,
    kiara: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("kiara.training.device.shutil.which", lambda name: None)
    options = [f"data.train={corpus}", f"data.prepared_dir={tmp_path / 'data'}", setting]
    result = kiara("train", *(part for one in options for part in ("--set", one)), "--out", tmp_path / "run")
    assert result.exit_code == 1 and expected in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_unwritable_out_is_refused_before_data_are_prepared(
    corpus: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    (tmp_path / "file").write_text("mine", "utf-8")
    options = ("--set", f"data.train={corpus}", "--set", f"data.prepared_dir={tmp_path / 'data'}")
    result = kiara("train", *options, "--out", tmp_path / "file" / "run")
    assert result.exit_code == 1 and "run: cannot be written (" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_records_the_settings_of_its_data_and_resumes_with_them(
    dataset: Dataset, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    sizes = "hidden_size=64 intermediate_size=64 num_hidden_layers=1 num_attention_heads=1 num_key_value_heads=1"
    small = [f"model.{one}" for one in f"{sizes} context_length=64".split()] + ["training.sample_tokens=0"]
    options = [part for one in (*small, f"data.train={dataset.folder}") for part in ("--set", one)]
    steps, out = ("--set", "training.max_steps=1"), ("--out", tmp_path / "run")
    assert kiara("train", *options, *steps, *out).exit_code == 0
    assert load_config(tmp_path / "run" / "config.yaml", environ={}).tokenizer.vocab_size == 512
    more = ("--set", "training.max_steps=2", *out, "--resume")
    for chosen in (options, []):
        assert kiara("train", *chosen, *more).exit_code == 0
        shutil.rmtree(tmp_path / "run" / "checkpoints")  # as if it had been interrupted before the first one
    refused = kiara("train", "--set", "tokenizer.vocab_size=1024", *more)
    assert refused.exit_code == 1 and "tokenizer.vocab_size: is 1024, but" in refused.stderr


def test_diverging_training_says_what_to_lower(
    small_config: Config, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = Gradient.add
    monkeypatch.setattr(Gradient, "add", lambda self, step: float("nan") if step == 3 else gradient(self, step))
    config = _changed(small_config, checkpoint_every=2, eval_every=2)
    with pytest.raises(UserError, match=r"training.learning_rate: 0.01 made the loss nan at step 4; lower it") as told:
        train(Run(tmp_path / "r", config, resume=False), dataset)
    kept = list_checkpoints(tmp_path / "r")[-1]
    assert kept.step == 2 and f"continue from {kept.folder} with --resume" in told.value.remedy
    monkeypatch.setattr(Gradient, "add", lambda self, step: float("inf"))
    with pytest.raises(UserError, match=r"made the loss inf at step 1; lower it and start again"):
        train(Run(tmp_path / "other", config, resume=False), dataset)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.slow
def test_compiled_training_follows_the_eager_curve(
    run: Path, small_config: Config, dataset: Dataset, tmp_path: Path
) -> None:
    assert train(Run(tmp_path / "r", _changed(small_config, max_steps=40, compile="always"), resume=False), dataset)
    compiled, eager = ([r["loss"] for r in _losses(folder) if "loss" in r] for folder in (tmp_path / "r", run))
    assert compiled[:10] == pytest.approx(eager[:10], rel=0.02)  # bfloat16 sums in another order
    assert compiled[-1] == pytest.approx(eager[-1], rel=0.1)


def test_a_split_too_short_for_a_window_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    config = load_config(assignments=["model.context_length=1000000"], environ={})
    with pytest.raises(UserError, match=r"too few for a sequence of 1000000"):
        train(Run(tmp_path / "r", config, resume=False), dataset)


def test_learning_rate_rises_then_falls_to_nearly_zero(small_config: Config) -> None:
    config = small_config.training
    rates = [schedule(config, step) for step in range(config.max_steps)]
    top = rates.index(max(rates))
    assert 0 < top <= config.warmup_steps
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 0.05 < 0.9 < rates[top] <= 1


def test_metrics_match_their_definitions(dataset: Dataset) -> None:
    logits = torch.randn(2, 5, dataset.tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[65, 66, 300, 511, 256], [400, 401, 10, 32, 97]])
    scorer = Scorer(dataset.tokenizer)
    for row, following in zip(logits.numpy(), targets.numpy(), strict=True):
        scorer.add(row, following)
    found = scorer.metrics()
    nats = -torch.log_softmax(logits, -1).gather(-1, targets[..., None]).double().sum().item()
    written = len(dataset.tokenizer.decode(targets[0].tolist() + targets[1].tolist()).encode())
    assert found.loss == pytest.approx(nats / 10, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / 0.6931471805599453 / written, rel=1e-5)
    assert found.perplexity == pytest.approx(2.718281828459045 ** (nats / 10), rel=1e-4)


def test_evaluate_reads_the_validation_split_or_given_text(
    run: Path, corpus: Path, kiara: Callable[..., Result]
) -> None:
    final = next(record for record in _losses(run) if "final_val_loss" in record)
    result = kiara("evaluate", run, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["loss"] == pytest.approx(final["final_val_loss"], rel=0.02)  # computed in bfloat16
    assert evaluate_checkpoint(run, str(corpus / "bisect.py")).tokens > 0
    result = kiara("evaluate", run, "--text", corpus / "missing.py")
    assert result.exit_code == 1 and "there is no such file" in result.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.slow
def test_compiled_training_repeats_bit_for_bit(corpus: Path, dataset: Dataset, tmp_path: Path) -> None:
    """At the default width, where compiled code would split the embedding gradient among threads."""
    settings = ("max_steps=6", "compile=always", "eval_tokens=1", "sample_tokens=0", "warmup_steps=1")
    config = load_config(
        assignments=["model.num_hidden_layers=1", "model.context_length=256", *(f"training.{s}" for s in settings)],
        environ={},
    )
    for name in ("first", "second"):
        assert train(Run(tmp_path / name, config, resume=False), dataset)
    first, second = (list_checkpoints(tmp_path / name)[-1].folder for name in ("first", "second"))
    assert _losses(tmp_path / "first") == _losses(tmp_path / "second")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(
    run: Path, small_config: Config, dataset: Dataset, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    first, last = list_checkpoints(copy)
    weights = last.folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    result = kiara("evaluate", copy, "--text", __file__, "--json")
    assert result.exit_code == 0 and f"{last.folder}: skipped ({weights}: damaged" in result.stderr
    direct = kiara("evaluate", last.folder)
    assert direct.exit_code == 1 and "name the run, or another of its checkpoints" in direct.stderr
    opened = Run(copy, small_config, resume=True)
    assert opened.last == first
    assert train(opened, dataset)
    assert [checkpoint.step for checkpoint in list_checkpoints(copy)] == [20, 40]
    assert (copy / "checkpoints" / f"damaged-{last.folder.name}").is_dir()  # nothing is lost
    for checkpoint in list_checkpoints(copy):
        (checkpoint.folder / "trainer_state.json").write_text("{")
    broken = kiara("evaluate", copy)
    assert broken.exit_code == 1 and "the run has no undamaged checkpoint" in broken.stderr.splitlines()[-1]
    assert "there is no such folder" in kiara("evaluate", tmp_path / "none").stderr
