"""`kiara-run chat`: what is kept of a conversation, its commands, a full context, and Ctrl-C in a real terminal."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest
from serving import SLOW

from kiara_runtime.commands.conversation import Conversation
from kiara_runtime.commands.main import main
from kiara_runtime.errors import ContextError, UserError
from kiara_runtime.loading import load
from kiara_runtime.model import Model


@pytest.fixture(scope="module")
def talker(chat_bundle: Path) -> Iterator[Model]:
    with load(chat_bundle, slots=1) as model:
        yield model


def _chat(bundle: Path, typed: str, *options: str) -> click.testing.Result:
    given = ["chat", str(bundle), "--max-tokens", "6", "--seed", "1", *options]
    return click.testing.CliRunner().invoke(main, given, input=typed)


def _answer(conversation: Conversation, question: str) -> str:
    text = conversation.ask(question).generation().text
    conversation.answered(text)
    return text


def _conversation(model: Model, when_full: Any = "stop", **sampling: Any) -> Conversation:
    return Conversation(model, {"max_tokens": 6, "seed": 1, **sampling}, None, when_full)


def test_answers_are_those_of_the_whole_conversation(chat_bundle: Path, talker: Model) -> None:
    messages: list[dict[str, str]] = [{"role": "system", "content": "Be kind."}]
    expected = ""
    for question in ("Hello", "And now?"):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": talker.chat(messages, max_tokens=6, seed=1).text})
        expected += messages[-1]["content"] + "\n"
    result = _chat(chat_bundle, "Hello\nAnd now?\n", "--system", "Be kind.")
    assert (result.exit_code, result.stdout) == (0, expected)


def test_a_conversation_is_saved_loaded_changed_and_reset(chat_bundle: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    _chat(chat_bundle, f"/system Be brief.\nHello\n/set temperature=0\n/save {saved}\n/quit\nnever read\n")
    values = json.loads(saved.read_text("utf-8"))
    assert [message["role"] for message in values["messages"]] == ["system", "user", "assistant"]
    assert values["sampling"] == {"max_tokens": 6, "seed": 1, "temperature": 0}

    again = tmp_path / "again.json"
    result = _chat(chat_bundle, f"/retry\n/save {again}\n/reset\n/system\n/save {again}\n", "--load", str(saved))
    assert result.exit_code == 0
    assert json.loads(again.read_text("utf-8"))["messages"] == []
    assert _chat(chat_bundle, f"/save {saved}\n").stderr.startswith(f"Error: {saved}: exists")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("/sey x=1", "/sey: is not a command; /help lists them"),
        ("/set temperature", "/set: 'temperature' has no ="),
        ("/set temprature=1", "did you mean temperature?"),
        ("/set temperature=-1", "temperature"),
        ("/retry", "nothing was asked yet"),
        ("/save", "names no file"),
        ("/load missing.json", "missing.json"),
        ("/help", "/stats"),
        ("x " * 300, "does not fit into the model's context of 96 tokens"),
    ],
)
def test_what_cannot_be_done_is_told_and_the_conversation_goes_on(chat_bundle: Path, typed: str, told: str) -> None:
    result = _chat(chat_bundle, f"{typed}\nHello\n")
    assert result.exit_code == 0
    assert told in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == _chat(chat_bundle, "Hello\n").stdout


def test_lines_are_joined_and_figures_shown_on_request(chat_bundle: Path) -> None:
    result = _chat(chat_bundle, "a \\\nb\n/stats\nagain\n")
    assert result.stderr.count("tokens/s") <= 1
    assert re.search(
        r"\[\d+ tokens, .*first after .* ms; prompt of \d+ tokens, [1-9]\d* of them cached\]", result.stderr
    )


def test_a_full_context_is_refused_or_the_oldest_turns_are_left_out(talker: Model) -> None:
    stopping, dropping = _conversation(talker), _conversation(talker, "drop")
    dropping.set_system("Kind.")
    with pytest.raises(ContextError, match="--when-full drop"):
        for _ in range(30):
            _answer(stopping, "What is it?")
    kept = len(stopping.messages)
    assert [message["role"] for message in stopping.messages[-2:]] == ["user", "assistant"]
    for _ in range(30):
        _answer(dropping, "What is it?")
    assert dropping.dropped > 0
    assert len(dropping.messages) == 61 > kept
    question = dropping.messages[:1] + dropping.messages[1 + dropping.dropped : -1]
    expected = talker.chat(question, max_tokens=6, seed=1).text
    assert dropping.messages[-1]["content"] == expected


def test_retry_answers_the_same_question_again(talker: Model) -> None:
    talk = _conversation(talker)
    first = _answer(talk, "Hello")
    again = talk.retry().generation().text
    assert again == first
    assert [message["role"] for message in talk.messages] == ["user"]
    talk.answered(again)
    talk.set("seed=2")
    assert talk.retry().generation().text != first


def test_a_bundle_without_a_template_is_refused(bundle: Path) -> None:
    result = _chat(bundle, "Hello\n")
    assert result.exit_code == 1
    assert "has no chat template" in result.output


def test_load_refuses_what_is_no_conversation(chat_bundle: Path, tmp_path: Path, talker: Model) -> None:
    path = tmp_path / "talk.json"
    for values in ({"messages": 3}, {"messages": [{"role": "user", "content": "a"}], "sampling": {"top_k": "x"}}):
        path.write_text(json.dumps(values), "utf-8")
        with pytest.raises(UserError, match=re.escape(str(path))):
            _conversation(talker).load(str(path))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_stops_the_answer_and_not_the_program(chat_bundle: Path, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "chat", chat_bundle, "--max-tokens", "60", "--history", tmp_path / "lines"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    os.close(theirs)
    try:
        _until(ours, "> ")
        os.write(ours, b"Hello\n")
        _until(ours, "Hello\r\n", more=4)
        os.kill(process.pid, signal.SIGINT)
        _until(ours, "[stopped]")
        os.write(ours, b"/save " + str(tmp_path / "talk.json").encode() + b"\n")
        _until(ours, "talk.json]", more=4)
        # At the prompt. Python notices a signal that comes just before readline waits only at the next event.
        _until(ours, "leaves]", more=4, again=lambda: os.kill(process.pid, signal.SIGINT))
        os.write(ours, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert (tmp_path / "lines").read_text("utf-8").splitlines()[0] == "Hello"
    answer = json.loads((tmp_path / "talk.json").read_text("utf-8"))["messages"][1]["content"]
    assert len(answer) > 0


def _until(terminal: int, text: str, more: int = 0, again: Callable[[], None] = lambda: None) -> str:
    """Read until `text` was shown, and so many characters after it. again: done first, and each silent second."""
    shown, end = "", time.monotonic() + 60
    again()
    while text not in shown or len(shown) - shown.index(text) - len(text) < more:
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 4096).decode("utf-8", "replace")
        elif text not in shown:
            again()
    return shown
