"""examples/clients: both programs print what the model generates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from openai_clients import EXAMPLES, need_node
from serving import served, with_chat

from kiara_runtime.loading import load

PROMPT = "class Reader:\n    def "


def _run(program: str, *words: str, key: str = "none") -> subprocess.CompletedProcess[str]:
    runner = sys.executable if program.endswith(".py") else need_node()
    command = [runner, str(EXAMPLES / program), *words]
    environ = {**os.environ, "KIARA_API_KEY": key}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environ)


@pytest.mark.parametrize("program", ["openai_client.py", "openai_client.mjs"])
def test_client_examples_print_the_model_output(program: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-long-key\n")
    talker = with_chat(bundle, tmp_path / "talker")
    with load(talker) as model, served(talker, "--api-key-file", tmp_path / "keys") as server:
        greedy = model.generate(PROMPT, max_tokens=24, temperature=0.0, stop="\n\n")
        sampled = model.generate(PROMPT, max_tokens=24, temperature=0.8, seed=1)
        said = model.chat([{"role": "user", "content": PROMPT}], max_tokens=24, temperature=0.0)
        refused = _run(program, f"{server.url}/v1", PROMPT)
        assert refused.returncode == 1 and refused.stderr.startswith("AuthenticationError: ")
        done = _run(program, f"{server.url}/v1", PROMPT, key="a-long-key")
    assert done.stderr == ""
    assert done.stdout == (
        "small: 96 tokens of context\n"
        f"\ngreedy, ended by {greedy.finish_reason}:\n{PROMPT}{greedy.text}\n"
        f"\nsampled, as it comes:\n{PROMPT}{sampled.text}\n({len(sampled.tokens)} tokens)\n"
        f"\nchat: {said.text}\n"
    )
