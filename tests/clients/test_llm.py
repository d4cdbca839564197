"""The command-line tool `llm` with the server as one of its OpenAI-compatible models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from serving import served

from kiara_runtime.loading import load
from kiara_runtime.model import Model

LIMITS = ("-o", "temperature", "0", "-o", "max_tokens", "12")


@pytest.fixture(scope="module")
def model(chat_bundle: Path) -> Iterator[Model]:
    with load(chat_bundle) as model:
        yield model


@pytest.fixture(scope="module")
def home(chat_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user folder for `llm` in which the server is configured as a model."""
    folder = tmp_path_factory.mktemp("llm")
    with served(chat_bundle) as server:
        shared = {"model_name": "small", "api_base": f"{server.url}/v1"}
        models = [
            {"model_id": "kiara", "supports_schema": True, **shared},
            {"model_id": "kiara-text", "completion": True, **shared},
        ]
        (folder / "extra-openai-models.yaml").write_text(yaml.safe_dump(models))
        yield folder


def _llm(home: Path, *words: str) -> str:
    environ = {**os.environ, "LLM_USER_PATH": str(home), "LLM_LOAD_PLUGINS": "", "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-m", "llm", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


@pytest.mark.parametrize("stream", [(), ("--no-stream",)])
def test_completions(home: Path, model: Model, stream: tuple[str, ...]) -> None:
    found = _llm(home, "prompt", "def main(", "-m", "kiara-text", *LIMITS, *stream)
    assert found == model.generate("def main(", max_tokens=12, temperature=0.0).text


@pytest.mark.parametrize("stream", [(), ("--no-stream",)])
def test_chat_and_continue_match_the_model(home: Path, model: Model, stream: tuple[str, ...]) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "class Reader:"}]
    first = _llm(home, "prompt", "class Reader:", "-s", "Be brief.", "-m", "kiara", *LIMITS, *stream)
    expected = model.chat(turns, max_tokens=12, temperature=0.0)
    assert first == expected.text
    [logged] = json.loads(_llm(home, "logs", "--json", "-n", "1"))
    assert (logged["input_tokens"], logged["output_tokens"]) == (expected.prompt_tokens, len(expected.tokens))
    turns += [{"role": "assistant", "content": expected.text}, {"role": "user", "content": "import os"}]
    second = _llm(home, "prompt", "import os", "--continue", *LIMITS, *stream)
    assert second == model.chat(turns, max_tokens=12, temperature=0.0).text


def test_a_schema_constrains_the_answer(home: Path) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema |= {"additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}
    found = _llm(home, "prompt", "x", "-m", "kiara", "--schema", json.dumps(schema), *LIMITS)
    assert list(json.loads(found)) == ["ok"]
