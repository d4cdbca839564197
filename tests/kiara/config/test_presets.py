"""The presets: each has the size that it says, trains and exports."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from kiara.config.load import load_config
from kiara.config.presets import presets
from kiara.model import sizes
from kiara.model.gpt import GPT

LADDER = ["tiny", "small", "medium", "large", "xl", "xxl"]


def test_the_presets_are_those_that_the_help_names(kiara: Callable[..., Result]) -> None:
    assert set(presets()) == {*LADDER, "default", "gpt2-baseline"}
    assert ", ".join(LADDER) in " ".join(kiara("train", "--help").stdout.split())


@pytest.mark.parametrize("name", LADDER)
def test_a_preset_has_the_parameters_that_it_says(name: str) -> None:
    config = load_config(Path(name), environ={})
    with torch.device("meta"):
        model = GPT(config.model, config.tokenizer.vocab_size)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sizes.parameters(config.model, config.tokenizer.vocab_size)
    said = re.search(r"(\d+)M parameters", presets()[name].read_text("utf-8"))
    assert said and round(count / 1e6) == int(said[1])


def test_presets_grow_and_their_rates_fall() -> None:
    configs = [load_config(Path(name), environ={}) for name in LADDER]
    counts = [sizes.parameters(config.model, config.tokenizer.vocab_size) for config in configs]
    rates = [config.training.learning_rate for config in configs]
    assert counts == sorted(counts) and rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("name", ["tiny", "small", "gpt2-baseline"])  # `make check-presets` does the others
@pytest.mark.slow
def test_a_preset_trains_and_exports(
    name: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara: Callable[..., Result]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ("training.max_steps=2", "training.batch_size=2", "training.sample_tokens=0", f"data.train={corpus}")
    settings = [part for setting in (*few, "training.eval_tokens=512") for part in ("--set", setting)]
    trained = kiara("train", "--config", name, *settings)
    assert trained.exit_code == 0, trained.stderr
    assert kiara("export", f"runs/{name}", "--out", "bundle", "--quantize", "int8").exit_code == 0


def test_an_unknown_preset_is_refused_with_those_there_are(kiara: Callable[..., Result]) -> None:
    result = kiara("train", "--config", "huge")
    assert (
        result.exit_code == 1
        and "--config huge: there is no such file or preset; name a file or one of" in result.stderr
    )


def test_a_file_goes_before_a_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small").write_text("training: {max_steps: 7}\n", "utf-8")
    assert load_config(Path("small"), environ={}).training.max_steps == 7
