"""`kiara compare`: answers and reference losses against those of the models alone; the page; refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import kiara as face
from kiara_runtime.loading import load


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    records = [
        {"prompt": "def <b>main</b>(", "completion": "self):"},
        {"messages": [{"role": "user", "content": "import os"}, {"role": "assistant", "content": "import sys"}]},
        {"prompt": "class A"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def test_answers_and_losses_are_those_of_each_model(
    run: Path, bundle: Path, prompts: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    page = tmp_path / "page.html"
    result = kiara("compare", run, bundle, "--prompts", prompts, "--max-tokens", 8, "--out", page, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    texts = ["def <b>main</b>(", "import os", "class A"]
    references = ["self):", "import sys", None]
    for name, model in ((str(run), face.load(run)), (str(bundle), load(bundle))):
        losses: list[float] = []
        for prompt, text, reference in zip(found["prompts"], texts, references, strict=True):
            answer = prompt["answers"][name]
            assert answer["text"] == model.generate(text, max_tokens=8, temperature=0.0).text
            if reference is None:
                assert answer["reference_loss"] is None
                continue
            score = model.score(text, reference)
            losses.append(-score.logprob / len(score.tokens))
            assert answer["reference_loss"] == pytest.approx(losses[-1])
            per_byte = -score.logprob / math.log(2) / len(reference)
            assert answer["reference_bits_per_byte"] == pytest.approx(per_byte)
        assert found["models"][name]["reference_loss"] == pytest.approx(sum(losses) / 2)
    html = page.read_text("utf-8")
    assert "def &lt;b&gt;main&lt;/b&gt;(" in html
    assert "<b>main" not in html
    assert html.count("nats per token") >= 5


def test_models_with_a_chat_template_answer_as_a_chat(chat_bundle: Path, prompts: Path) -> None:
    found = face.compare([chat_bundle], prompts, max_tokens=6)
    with load(chat_bundle) as model:
        expected = model.chat([{"role": "user", "content": "import os"}], max_tokens=6, temperature=0.0)
    assert found.answers[str(chat_bundle)][1].text == expected.text


@pytest.mark.parametrize(
    ("lines", "told"),
    [("", "holds 0 prompts"), ('{"text": "a"}\n', "p.jsonl:1"), ("[\n", "is not valid JSON")],
)
def test_what_is_no_prompt_is_refused(
    lines: str, told: str, bundle: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(lines, "utf-8")
    result = kiara("compare", bundle, "--prompts", path, "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert told in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "page.html").exists()


def test_another_file_is_not_overwritten(
    bundle: Path, prompts: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    (tmp_path / "page.html").write_text("mine", "utf-8")
    given = ["compare", bundle, "--prompts", prompts, "--out", tmp_path / "page.html"]
    assert kiara(*given).exit_code == 1
    assert (tmp_path / "page.html").read_text("utf-8") == "mine"
    assert kiara("compare", bundle, bundle, "--prompts", prompts).exit_code == 1
