"""The examples and the Python code of the READMEs run unchanged."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
from serving import TOOL_TEMPLATE, need, received, served, with_chat

import kiara_runtime

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def _run(*command: object, cwd: Path, **variables: str) -> str:
    environ = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **variables}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=300, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_embed_example(bundle: Path, tmp_path: Path) -> None:
    out = _run(sys.executable, REPOSITORY / "examples/embed.py", bundle, "def main(", cwd=tmp_path)
    assert out.count("def main(") == 2


def test_the_tools_example(bundle: Path, tmp_path: Path) -> None:
    folder = with_chat(bundle, tmp_path / "caller", TOOL_TEMPLATE)
    out = _run(sys.executable, REPOSITORY / "examples/tools.py", folder, "x", cwd=tmp_path)
    assert re.search(r'^calls now\(\{"part": "(date|time)"\}\)$', out, re.MULTILINE) and "\ntool: " in out


@pytest.mark.slow
def test_the_own_text_example(corpus: Path, tmp_path: Path) -> None:
    settings = ("training.max_steps=2", "training.batch_size=2", "model.context_length=64", "model.num_hidden_layers=1")
    options = [part for value in settings for part in ("--set", value)]
    for _ in range(2):  # the second run finds everything already there
        out = _run(REPOSITORY / "examples/own_text.sh", corpus, *options, cwd=tmp_path)
        assert "bundles/own int8:" in out
    assert (tmp_path / "bundles/own/kiara.json").is_file()


def test_readme_python_blocks_run(bundle: Path, tmp_path: Path) -> None:
    for readme in ("README.md", "runtime/README.md", "docs/tutorial.md", "docs/bundle.md"):
        blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / readme).read_text("utf-8"), re.S)
        assert blocks
        for block in blocks:
            code = re.sub(r'"bundles/(demo|mine)"', repr(str(bundle)), block)
            with served(bundle) if "base_url=" in block else nullcontext() as server:
                if server is not None:
                    code = code.replace("http://127.0.0.1:8000", server.url).replace('"demo"', '"small"')
                assert code != block
                assert _run(sys.executable, "-c", code, cwd=tmp_path).strip()


def test_the_llm_plugin(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered as after `pip install ./examples/llm-kiara`."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")  # no installed plugins
    monkeypatch.setenv("KIARA_BUNDLES", str(bundle))
    code = "import llm, llm_kiara; llm.plugins.pm.register(llm_kiara); from llm.cli import cli; cli()"
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "examples/llm-kiara"))
    options = ("-m", f"kiara/{bundle.name}", "-o", "temperature", "0", "-o", "max_tokens", "12")
    expected = kiara_runtime.load(bundle).generate("def main(", max_tokens=12, temperature=0.0).text
    assert _run(sys.executable, "-c", code, "prompt", "def main(", *options, cwd=tmp_path).rstrip() == expected.rstrip()
    schema = '{"enum": ["yes", "no"]}'
    said = _run(sys.executable, "-c", code, "prompt", "x", *options, "--schema", schema, cwd=tmp_path)
    assert json.loads(said) in ("yes", "no")


def test_the_flask_example(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "examples")
    app = __import__("flask_app").create_app(str(bundle)).test_client()
    assert app.post("/complete", data="def main(").text
    refused = app.post("/complete", data="x" * 10_000)
    assert (refused.status_code, refused.get_json()["field"]) == (400, "prompt")


def test_the_desktop_example(bundle: Path, tmp_path: Path) -> None:
    need(shutil.which("Xvfb") is not None, "Xvfb")
    code = """
import sys, tkinter
import desktop, kiara_runtime
root = tkinter.Tk()
window = desktop.Window(root, kiara_runtime.load(sys.argv[1]))
window.text.insert("end", "def main(")
window.button.invoke()
def look():
    if window.stream is not None:
        root.after(20, look)
        return
    print(window.text.get("1.0", "end-1c"))
    window.close()
look()
root.mainloop()
"""
    screen = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-nolisten", "tcp"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert screen.stdout is not None
        environ = {"DISPLAY": f":{screen.stdout.readline().strip()}", "PYTHONPATH": str(REPOSITORY / "examples")}
        out = _run(sys.executable, "-c", code, bundle, cwd=tmp_path, **environ)
        assert out.startswith("def main(") and len(out) > 20
    finally:
        screen.kill()
        screen.communicate()


def test_the_asyncio_example(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "examples/async_service.py"), str(bundle), "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().split()[-1])
        with ExitStack() as opened:
            address = ("127.0.0.1", port)
            clients = [opened.enter_context(socket.create_connection(address, timeout=60)) for _ in range(3)]
            for client in clients:
                client.sendall(b"def main(\n")
            texts = {received(client) for client in clients}
        expected = kiara_runtime.load(bundle).generate("def main(", max_tokens=40, temperature=0.0)
        assert texts == {expected.text.encode()}
    finally:
        server.terminate()
        server.communicate()


def test_the_batch_example_goes_on_where_it_was_interrupted(bundle: Path, tmp_path: Path) -> None:
    prompts = [{"id": i, "prompt": f"def f{i}("} for i in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts), "utf-8")
    command = (sys.executable, REPOSITORY / "examples/batch_job.py", bundle, "in.jsonl", "out.jsonl")
    _run(*command, cwd=tmp_path)
    whole = (tmp_path / "out.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["id"] for line in lines] == list(range(40)) and all(line["text"] for line in lines)
    (tmp_path / "out.jsonl").write_text("".join(line + "\n" for line in whole.splitlines()[:7]), "utf-8")
    _run(*command, cwd=tmp_path)
    assert (tmp_path / "out.jsonl").read_text("utf-8") == whole


def test_the_extraction_example(bundle: Path, tmp_path: Path) -> None:
    text = "Invoice 17 of 3 May 2026"
    out = _run(sys.executable, REPOSITORY / "examples/extract_json.py", bundle, text, cwd=tmp_path)
    found = json.loads(out)
    assert list(found) == ["number", "date", "amount", "paid"] and datetime.date.fromisoformat(found["date"])


def test_the_editor_example(bundle: Path, tmp_path: Path) -> None:
    need(shutil.which("vim") is not None and shutil.which("curl") is not None, "vim or curl")
    (tmp_path / "file.py").write_text("import sys\n\ndef main(", "utf-8")
    with served(bundle) as server:
        lines = [
            f"let g:kiara_url = '{server.url}'",
            f"source {REPOSITORY / 'examples/editor/kiara.vim'}",
            "call cursor(3, 10)",
            'let start = KiaraComplete(1, "")',
            'call writefile([json_encode([start, KiaraComplete(0, "")])], "found.json")',
            "qall!",
        ]
        (tmp_path / "test.vim").write_text("\n".join(lines) + "\n", "utf-8")
        _run("vim", "-es", "-u", "NONE", "-S", "test.vim", "file.py", cwd=tmp_path)
    start, choices = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert start == 8 and choices and all("\n" not in choice for choice in choices)


@pytest.fixture
def greedy(bundle: Path) -> str:
    """What other runtimes must write, too."""
    model = kiara_runtime.load(bundle)
    return model.generate("def main(", max_tokens=32, temperature=0.0, token_healing=False).text


def test_the_examples_of_onnxruntime_genai(bundle: Path, greedy: str, tmp_path: Path) -> None:
    out = _run(sys.executable, REPOSITORY / "examples/genai/generate.py", bundle, "def main(", cwd=tmp_path)
    assert out.rstrip("\n") == greedy.rstrip("\n")
    need(shutil.which("g++") is not None, "g++")
    package = importlib.util.find_spec("onnxruntime_genai")
    runtime = importlib.util.find_spec("onnxruntime")
    assert package and package.origin and runtime and runtime.origin
    folder = Path(package.origin).parent
    library = folder / "libonnxruntime-genai.so"
    source = REPOSITORY / "examples/genai/generate.cpp"
    _run("g++", "-std=c++17", source, "-o", "generate", library, f"-Wl,-rpath,{folder}", cwd=tmp_path)
    (kernels,) = (Path(runtime.origin).parent / "capi").glob("libonnxruntime.so*")
    out = _run(tmp_path / "generate", bundle, "def main(", cwd=tmp_path, ORT_LIB_PATH=str(kernels))
    assert out.rstrip("\n") == greedy.rstrip("\n")


def test_the_node_example(bundle: Path, greedy: str, tmp_path: Path) -> None:
    need((REPOSITORY / "examples/browser/node_modules/@huggingface/transformers").is_dir(), "transformers.js")
    out = _run("node", REPOSITORY / "examples/browser/node.mjs", bundle, "def main(", cwd=tmp_path)
    assert out.rstrip("\n") == greedy.rstrip("\n")


def test_notes_become_conversations(tmp_path: Path) -> None:
    bread = "# Bread\n\nFlour, water, salt: [how](x.md).\n\n```sh\nbake\n\nmore\n```\n"
    notes = f"{bread}\n## Tea\n\nToo short\n\n## Rice\n\nTwo cups of water for one.\n"
    (tmp_path / "notes.md").write_text(notes, "utf-8")
    out = _run(sys.executable, REPOSITORY / "examples/notes_to_chats.py", tmp_path, cwd=tmp_path)
    records = [json.loads(line) for line in out.splitlines()]
    assert {record["completion"] for record in records} == {"Flour, water, salt: how.", "Two cups of water for one."}
    assert records[0]["prompt"] == "Bread?" and len(records) == 6


@pytest.mark.slow
def test_the_slim_runtime_is_small_and_runs(bundle: Path, tmp_path: Path) -> None:
    constraints = {"PIP_CONSTRAINT": str(REPOSITORY / "constraints.txt")}
    slim = (sys.executable, REPOSITORY / "examples/slim_runtime.py", "lib", REPOSITORY / "runtime")
    told = _run(*slim, cwd=tmp_path, **constraints)
    assert int(re.search(r"lib: (\d+) MB", told)[1]) <= 110  # type: ignore[index]
    python = Path(sys.base_prefix) / "bin/python3"  # without the packages of this environment
    environ = {"PYTHONPATH": str(tmp_path / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ("-p", "def main(", "--max-tokens", "12", "--temperature", "0")
    written = _run(python, "-m", "kiara_runtime", "generate", bundle, *options, cwd=tmp_path, **environ)
    expected = kiara_runtime.load(bundle).generate("def main(", max_tokens=12, temperature=0.0)
    assert written.rstrip() == expected.text.rstrip()
    _run(python, "-m", "kiara_runtime", "verify", bundle, "--deep", cwd=tmp_path, **environ)


def test_every_example_is_listed() -> None:
    table = (REPOSITORY / "examples/README.md").read_text("utf-8")
    kept = subprocess.run(["git", "ls-files", "examples"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    names = {Path(name).relative_to("examples").parts[0] for name in kept.stdout.splitlines()} - {"README.md"}
    assert {name for name in names if f"({name}" not in table} == set()
