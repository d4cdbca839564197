"""The commands of docs/finetuning.md, in order, on a small model, notes and conversations."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from families import make_folder

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"
COMMAND = re.compile(r"^    ((?:kiara|kiara-run) .+?)(?:\s+#.*)?$", re.MULTILINE)


def _lines(path: str, records: list[Any]) -> None:
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def _prepare_place(corpus: Path) -> None:
    """What the page takes for granted, in the working folder."""
    texts = [path.read_text("utf-8") for path in sorted(corpus.glob("[a-c]*.py"))]
    make_folder("llama", Path("path/to/SmolLM2"), texts)
    shutil.copytree(corpus, "notes")
    asked = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(150)]
    _lines("chats.jsonl", asked)
    _lines("held-out.jsonl", asked[:2])
    _lines("pairs.jsonl", [{"prompt": one["prompt"], "chosen": one["completion"], "rejected": "No."} for one in asked])


@pytest.mark.slow
def test_the_commands_of_the_page_work_in_order(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara: Callable[..., Result]
) -> None:
    from kiara_runtime.commands.main import main as kiara_run

    monkeypatch.chdir(tmp_path)
    for name, value in {"MAX_STEPS": "2", "SEQUENCE_LENGTH": "48", "BATCH_SIZE": "2", "SAMPLE_TOKENS": "4"}.items():
        monkeypatch.setenv(f"KIARA_TRAINING__{name}", value)
    _prepare_place(corpus)
    commands = COMMAND.findall(PAGE.read_text("utf-8"))
    assert len(commands) >= 11
    for command in commands:
        program, *words = shlex.split(command)
        if program == "kiara":
            result = kiara(*words)
        else:
            result = CliRunner().invoke(kiara_run, words, input="What is 3?\n/quit\n")
        assert result.exit_code == 0, f"{command}\n{result.output}"
    page = Path("compare.html").read_text("utf-8")
    assert "What is 0?" in page
