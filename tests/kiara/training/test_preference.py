"""Learning preferences: the loss against `transformers`, runs that learn a choice, refusals."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from training_runs import _change_weights, _losses

import kiara as face
from kiara.checkpoints.checkpoint import list_checkpoints, load_model
from kiara.config.load import load_config
from kiara.data.chat_split import PairSplit
from kiara.data.dataset import Dataset
from kiara.evaluation.evaluate import tensors
from kiara.training.preference import Preference

SMALL = {"training.sample_tokens": 0, "training.sequence_length": 64}


@pytest.fixture(scope="module")
def prepared(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("preferences")
    records: list[Any] = [
        {"prompt": f"{i} or {i + 1}?", "chosen": f"{i + 1}, as it is more", "rejected": str(i)} for i in range(30)
    ]
    asked = [{"role": "user", "content": "What?"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("This.", "That")]
    records.append({"chosen": asked + answers[0], "rejected": asked + answers[1]})
    records.append({"prompt": asked, "chosen": answers[0], "rejected": answers[1]})
    source = folder / "pairs.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    settings = {"data.format": "preference", "data.val_fraction": 0.2}
    return face.prepare(str(source), folder / "data", settings, tokenizer=imported)


def _train(out: Path, imported: Path, data: Dataset, **settings: Any) -> None:
    given = {**SMALL, "data.train": str(data.folder), **{name.replace("_", ".", 1): v for name, v in settings.items()}}
    assert face.train(out, given, init_from=imported)


def test_pairs_keep_together(prepared: Dataset) -> None:
    train = prepared.train
    assert isinstance(train, PairSplit)
    splits = prepared.manifest["splits"]
    assert splits["train"]["documents"] + splits["val"]["documents"] == 32
    assert train.sequences(64) == splits["train"]["documents"]
    examples = train.rows([0, 3], 64)
    assert examples.counted == 2
    chosen, rejected = (prepared.tokenizer.decode(examples.ids[row][examples.ids[row] > 0].tolist()) for row in (0, 2))
    assert chosen.split("assistant")[0] == rejected.split("assistant")[0]
    assert chosen != rejected


def test_the_loss_is_that_of_transformers_logits(imported: Path, prepared: Dataset, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _train(tmp_path / "run", imported, prepared, training_max_steps=2, training_learning_rate=0.01)
    folder = list_checkpoints(tmp_path / "run")[-1].folder
    model, before = load_model(folder)[0], load_model(imported)[0]
    assert isinstance(prepared.train, PairSplit)
    examples = prepared.train.rows([0, 1, 2], 64)
    found = Preference(model, before, 0.3)(*tensors(examples, torch.device("cpu"))).item()
    sums: list[list[float]] = []
    for place in (folder, imported):
        theirs = AutoModelForCausalLM.from_pretrained(place)
        sums.append([])
        for ids, targets in zip(examples.ids, examples.targets, strict=True):
            with torch.no_grad():
                each = theirs(torch.tensor(ids)[None]).logits[0].log_softmax(-1)
            sums[-1].append(sum(each[i, t].item() for i, t in enumerate(targets) if t >= 0))
    gains = [after - start for after, start in zip(*sums, strict=True)]
    margins = [0.3 * (gains[i] - gains[i + 3]) for i in range(3)]
    assert found == pytest.approx(sum(math.log1p(math.exp(-margin)) for margin in margins) / 3, abs=1e-4)


@pytest.mark.parametrize("adapt", [{}, {"adapt_rank": 4}], ids=["all-weights", "lora"])
def test_a_choice_is_learned_and_an_interrupted_run_ends_the_same(
    adapt: dict[str, Any], imported: Path, prepared: Dataset, tmp_path: Path
) -> None:
    steps = {"training_max_steps": 8, "training_checkpoint_every": 4, "training_learning_rate": 0.01}
    _train(tmp_path / "run", imported, prepared, **steps, **adapt)
    records = _losses(tmp_path / "run")
    found = {name: value for record in records for name, value in record.items()}
    assert found["initial_val_preference_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert found["final_val_preference_loss"] < 0.6
    assert found["final_val_preference_accuracy"] > 0.8
    first = next(record["loss"] for record in records if record["step"] == 1)
    assert first == pytest.approx(math.log(2), abs=1e-4)

    shutil.copytree(tmp_path / "run", tmp_path / "half")
    shutil.rmtree(list_checkpoints(tmp_path / "half")[-1].folder)
    assert face.train(tmp_path / "half", resume=True)
    ends = [load_model(list_checkpoints(tmp_path / name)[-1].folder)[0].state_dict() for name in ("run", "half")]
    assert all(torch.equal(ends[1][name], weight) for name, weight in ends[0].items())


def test_a_reference_that_has_changed_is_refused(imported: Path, prepared: Dataset, tmp_path: Path) -> None:
    shutil.copytree(imported, tmp_path / "base")
    _train(tmp_path / "run", tmp_path / "base", prepared, training_max_steps=4, training_checkpoint_every=2)
    shutil.rmtree(list_checkpoints(tmp_path / "run")[-1].folder)
    _change_weights(tmp_path / "base")
    with pytest.raises(face.UserError, match="other weights"):
        face.train(tmp_path / "run", resume=True)


def test_the_best_checkpoint_is_that_of_the_preferences(imported: Path, prepared: Dataset, tmp_path: Path) -> None:
    _train(tmp_path / "run", imported, prepared, training_max_steps=2)
    state = list_checkpoints(tmp_path / "run")[-1].state()
    losses = [one["val_preference_loss"] for one in _losses(tmp_path / "run") if "val_preference_loss" in one]
    assert state["selection_loss"] == losses[-1]
    assert load_config(tmp_path / "run" / "config.yaml", environ={}).training.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"prompt": "a", "chosen": "b"}, "has no `chosen` and `rejected`"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "is an empty answer"),
        ({"chosen": "a", "rejected": "b"}, "begins with an answer"),
    ],
)
def test_what_is_no_preference_is_refused_with_its_line(
    record: Any, told: str, imported: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_text(json.dumps(record) + "\n", "utf-8")
    result = kiara(
        "prepare", source, "--tokenizer", imported, "--set", "data.format=preference", "--out", tmp_path / "data"
    )
    assert result.exit_code == 1
    assert f"{source}:1" in result.output
    assert told in result.output
