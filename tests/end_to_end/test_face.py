"""The Python functions do what the commands do, and the public names are those listed here."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import kiara
import kiara_export
import kiara_runtime
from kiara_runtime.bundle.manifest import Bundle

PUBLIC = {
    kiara: ["UserError", "compare", "evaluate", "export", "import_model", "load", "prepare", "train", "trim"],
    kiara_export: [],
    kiara_runtime: [
        "AsyncModel", "Bundle", "BusyError", "Generation", "Model", "Piece", "SamplingParams", "Score", "Stream",
        "TokenLogprob", "Tokenizer", "UserError", "load",
    ],
}  # fmt: skip


def test_public_names() -> None:
    for package, names in PUBLIC.items():
        assert sorted(getattr(package, "__all__", [])) == names
        for name in names:
            assert inspect.getdoc(getattr(package, name)), name


def test_text_to_bundle_from_python(corpus: Path, tmp_path: Path) -> None:
    settings = {"tokenizer.vocab_size": 320, "data.val_fraction": 0.1}
    dataset = kiara.prepare(str(corpus), tmp_path / "data", settings)
    assert dataset.tokenizer.vocab_size == 320
    small = {
        "model.hidden_size": 64, "model.num_hidden_layers": 1, "model.num_attention_heads": 1,
        "model.num_key_value_heads": 1, "model.intermediate_size": 64, "model.context_length": 64,
        "training.max_steps": 2, "training.batch_size": 2, "training.eval_tokens": 64, "training.compile": "never",
        "data.train": str(tmp_path / "data"),
    }  # fmt: skip
    assert kiara.train(tmp_path / "run", small)
    assert 0 < kiara.evaluate(tmp_path / "run").bits_per_byte < 20
    figures = kiara.export(tmp_path / "run", tmp_path / "bundle", ["fp32"])
    assert list(figures) == Bundle.open(tmp_path / "bundle").variants == ["fp32"]
    prompt = dataset.tokenizer.encode("import")
    with kiara_runtime.load(tmp_path / "bundle") as model:
        expected = model.generate(prompt, max_tokens=5, temperature=0.0).tokens
    assert kiara.load(tmp_path / "run").generate(prompt, max_tokens=5, temperature=0.0).tokens == expected
    with pytest.raises(kiara.UserError, match=r"training.max_step: there is no such key; did you mean") as told:
        kiara.train(tmp_path / "other", {"training.max_step": 2})
    assert (told.value.field, told.value.remedy) == ("training.max_step", "did you mean training.max_steps?")
    with pytest.raises(kiara.UserError, match="is not a variant"):
        kiara.export(tmp_path / "run", tmp_path / "bundle", ["int3"])


def test_resuming_from_python_uses_the_settings_of_the_run(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert kiara.train(tmp_path / "run", resume=True)  # finished: nothing to do, and no settings are needed


def test_export_help_says_when_text_is_needed(
    kiara: Callable[..., Result],
) -> None:
    said = " ".join(kiara("export", "--help").stdout.split())
    assert "Required for an imported checkpoint, which has no text of its own" in said


def test_the_readme_activates_the_environment_before_the_first_command() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    assert readme.index(". .venv/bin/activate") < readme.index("\n    kiara ")
