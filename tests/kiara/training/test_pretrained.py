"""Runs that start from a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from training_runs import _change_weights, _losses

import kiara
from kiara.checkpoints.checkpoint import find_checkpoint, list_checkpoints, load_model
from kiara.checkpoints.json_files import read_json
from kiara.data.dataset import Dataset
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.tokenizer import Tokenizer

FEW = {"training.max_steps": 4, "training.batch_size": 4, "training.sample_tokens": 0, "training.checkpoint_every": 2}


@pytest.fixture(scope="module")
def prepared(imported: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    kiara.prepare(str(corpus), folder, {"training.sequence_length": 64}, tokenizer=imported)
    return folder


def _train(out: Path, imported: Path, prepared: Path, resume: bool = False, **settings: Any) -> bool:
    given = {
        **FEW,
        "data.train": str(prepared),
        **{name.replace("_", ".", 1): value for name, value in settings.items()},
    }
    return kiara.train(out, given, init_from=imported, resume=resume)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(list_checkpoints(run)[-1].folder)[0].state_dict())


def test_text_is_prepared_with_the_checkpoint_s_tokenizer(imported: Path, corpus: Path, tmp_path: Path) -> None:
    settings = {"data.val": str(corpus / "bisect.py"), "training.sequence_length": 64}
    dataset = kiara.prepare(str(corpus), tmp_path / "data", settings, tokenizer=imported)
    tokenizer = Tokenizer.load(imported)
    assert dataset.tokenizer.definition == tokenizer.definition
    begin, ends = tokenizer.first_token(dataset.token_ids.bos), dataset.token_ids.eos
    documents: list[list[int]] = []
    for token in dataset.train.shards[0].tolist():
        if token == begin:
            documents.append([])
        elif token not in ends:
            documents[-1].append(token)
    originals = [tokenizer.encode(path.read_text("utf-8")) for path in corpus.iterdir()]
    assert sorted(documents) == sorted(originals)


@pytest.mark.parametrize("adapt", [{}, {"adapt_rank": 4, "adapt_dropout": 0.1}], ids=["all-weights", "lora"])
def test_a_checkpoint_is_taught_and_an_interrupted_run_ends_the_same(
    adapt: dict[str, Any], imported: Path, prepared: Path, tmp_path: Path
) -> None:
    assert _train(tmp_path / "run", imported, prepared, **adapt)
    losses = _losses(tmp_path / "run")
    before = next(one["initial_val_loss"] for one in losses if "initial_val_loss" in one)
    after = next(one["final_val_loss"] for one in losses if "final_val_loss" in one)
    assert after < before
    assert read_json(find_checkpoint(tmp_path / "run") / "generation_config.json") == read_json(
        imported / "generation_config.json"
    )

    if not adapt:  # its weights are needed only once
        settings = (tmp_path / "run" / "config.yaml").read_text("utf-8")
        (tmp_path / "run" / "config.yaml").write_text(settings.replace(str(imported), str(tmp_path / "gone")), "utf-8")
    shutil.copytree(tmp_path / "run", tmp_path / "half")
    first, last = list_checkpoints(tmp_path / "half")
    shutil.rmtree(last.folder)
    assert first.step == 2
    assert kiara.train(tmp_path / "half", resume=True)
    expected, again = _weights(tmp_path / "run"), _weights(tmp_path / "half")
    assert all(torch.equal(again[name], weight) for name, weight in expected.items())


def test_a_run_starts_from_the_weights_of_the_checkpoint(imported: Path, prepared: Path, tmp_path: Path) -> None:
    _train(tmp_path / "run", imported, prepared, training_learning_rate=1e-30, training_embedding_learning_rate=1e-30)
    expected = dict(load_model(imported)[0].state_dict())
    for name, weight in _weights(tmp_path / "run").items():
        torch.testing.assert_close(weight, expected[name], atol=1e-9, rtol=0)


def test_adapters_lie_beside_the_merged_weights(imported: Path, prepared: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _train(tmp_path / "run", imported, prepared, adapt_rank=4)
    folder = find_checkpoint(tmp_path / "run")
    model, _ = load_model(folder)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(imported), folder / "adapter")
        torch.testing.assert_close(theirs(ids).logits, model(ids)[0], atol=1e-4, rtol=1e-4)
        plain = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(plain(ids).logits, model(ids)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_epochs_are_turned_into_steps_with_validations_between(imported: Path, prepared: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(prepared)
    batch = dataset.train.windows(64) // 4
    settings = {
        "data.train": str(prepared),
        "training.batch_size": batch,
        "training.epochs": 2,
        "training.sample_tokens": 0,
    }
    assert kiara.train(tmp_path / "run", settings, init_from=imported)
    steps = [one["step"] for one in _losses(tmp_path / "run") if "loss" in one]
    assert steps[-1] == -(-2 * dataset.train.windows(64) // batch)
    validated = [one["step"] for one in _losses(tmp_path / "run") if "val_loss" in one]
    assert len(validated) >= 4


def test_data_of_another_tokenizer_are_refused(imported: Path, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"another tokenizer.*--tokenizer"):
        _train(tmp_path / "run", imported, dataset.folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["model.hidden_size=128"], "model.hidden_size: 128 differs from 64 in"),
        (["tokenizer.vocab_size=512"], "tokenizer.vocab_size: 512 differs from that of"),
        (["training.sequence_length=128"], "training.sequence_length: 128 is above"),
        (["adapt.rank=4", "training.quantize=int4"], "training.quantize: 'int4' cannot be combined with adapt.rank"),
    ],
)
def test_settings_without_effect_are_refused(
    settings: list[str], told: str, imported: Path, corpus: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    given = [word for setting in settings for word in ("--set", setting)]
    place = ["--set", f"data.train={corpus}", "--set", f"data.prepared_dir={tmp_path / 'data'}"]
    result = kiara("train", "--init-from", imported, "--out", tmp_path / "run", *place, *given)
    assert result.exit_code == 1
    assert told in result.output
    assert "Traceback" not in result.output


def test_adapters_without_a_checkpoint_are_refused(corpus: Path, tmp_path: Path, kiara: Callable[..., Result]) -> None:
    result = kiara("train", "--out", tmp_path / "run", "--set", f"data.train={corpus}", "--set", "adapt.rank=4")
    assert result.exit_code == 1
    assert "--init-from" in result.output


def test_changed_weights_under_an_adapter_are_refused(imported: Path, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(imported, tmp_path / "base")
    _train(tmp_path / "run", tmp_path / "base", prepared, adapt_rank=4)
    shutil.rmtree(list_checkpoints(tmp_path / "run")[-1].folder)
    _change_weights(tmp_path / "base")
    with pytest.raises(UserError, match="other weights"):
        kiara.train(tmp_path / "run", resume=True)
