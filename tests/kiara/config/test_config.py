from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kiara.config.load import config_yaml, load_config
from kiara.config.sections import Config
from kiara.model import sizes
from kiara.model.gpt import GPT
from kiara_runtime.errors import UserError

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_have_the_estimated_parameter_count(path: Path) -> None:
    config = load_config(path, environ={})
    with torch.device("meta"):
        model = GPT(config.model, config.tokenizer.vocab_size)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert sizes.parameters(config.model, config.tokenizer.vocab_size) == counted


def test_default_yaml_matches_the_defaults() -> None:
    path = next(path for path in CONFIGS if path.stem == "default")
    assert path.read_text("utf-8") == config_yaml(Config())  # written by `kiara config`


def test_printed_configuration_round_trips(tmp_path: Path) -> None:
    config = load_config(assignments=["training.sample_prompt='x: [1'", "data.val=other.txt"], environ={})
    path = tmp_path / "c.yaml"
    path.write_text(config_yaml(config), "utf-8")
    assert load_config(path, environ={}) == config


def test_later_sources_override_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("MAX_STEPS", "SEED", "BATCH_SIZE")
    Path(".env").write_text("".join(f"KIARA_TRAINING__{name}=1\n" for name in names), "utf-8")
    monkeypatch.setenv("KIARA_TRAINING__SEED", "2")
    monkeypatch.setenv("KIARA_TRAINING__BATCH_SIZE", "2")
    path = tmp_path / "c.yaml"
    path.write_text("training:\n  batch_size: 3\n  learning_rate: 2e-3\ndata:\n", "utf-8")
    config = load_config(path, ["training.eval_every=4"]).training
    assert (config.max_steps, config.seed, config.batch_size, config.eval_every) == (1, 2, 3, 4)
    assert config.learning_rate == 2e-3


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.max_step=3", "training.max_step: there is no such key; did you mean training.max_steps?"),
        ("trainig.max_steps=3", "did you mean training?"),
        ("max_steps=3", "did you mean training.max_steps?"),
        ("training.max_steps", "write section.key=value"),
        ("training.max_steps=many", "training.max_steps: 'many' cannot be used"),
        ("training.max_steps=true", "training.max_steps: True cannot be used"),
        ("training.max_steps=0", "training.max_steps: 0 cannot be used"),
        ("training.learning_rate=.nan", "training.learning_rate: nan cannot be used"),
        ("training.compile=sometimes", "training.compile: 'sometimes' cannot be used"),
        ("model.hidden_size=100", "model.hidden_size: 100 cannot be used"),
        ("model.num_key_value_heads=3", "model.num_key_value_heads: 3 does not divide num_attention_heads (4)"),
        ("data.train=[a", "is not valid YAML"),
        ("data.train=2024-13-45", "is not valid YAML"),
        ("training=[1]", "is not of the form section.key"),
        ("model.head_dim=24", "model.head_dim: 24 cannot be used; give a multiple of 16"),
    ],
)
def test_errors_name_key_value_and_remedy(assignment: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(assignments=[assignment], environ={})
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("KIARA_TRAINING_MAX_STEPS", "did you mean KIARA_TRAINING__MAX_STEPS?"),
        ("KIARA_TRAINING__MAX_STEP", "did you mean KIARA_TRAINING__MAX_STEPS?"),
        ("KIARA_MAX_STEPS", "did you mean KIARA_TRAINING__MAX_STEPS?"),
        ("KIARA_TOKENIZER.VOCAB_SIZE", "did you mean KIARA_TOKENIZER__VOCAB_SIZE?"),
        ("KIARA_ZZZZZZ", "remove it"),
    ],
)
def test_an_unknown_environment_variable_is_refused(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=f"{name}: is not a setting") as error:
        load_config(environ={"PATH": "/", "KIARA_API_KEY": "x", "KIARA_BUNDLES": "y", name: "3"})
    assert expected in str(error.value)


def test_environment_variables_may_be_lower_case() -> None:
    assert load_config(environ={"KIARA_training__max_steps": "3", "KIARA_API_KEY": "x"}).training.max_steps == 3


@pytest.mark.parametrize("text", ["KIARA_TRAINING__SEED 3\n", "\udcff=1"])
def test_a_malformed_dotenv_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"^\.env:"):
        load_config()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "training: {seed: 1, seed: 2}",
        "data: {train: 2024-13-45}",
        "- a list",
        "training: [",
        "training: 3",
        "!!python/object:os.system {}",
        "\x00",
    ],
)
def test_malformed_configuration_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError):
        load_config(path, environ={})
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "missing.yaml", environ={})
