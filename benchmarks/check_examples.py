"""The examples that need large packages: one file by PyInstaller, with its server, and OpenVINO. `make check-examples`.

python benchmarks/check_examples.py BUNDLE ENVIRONMENT
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import kiara_runtime

EXAMPLES = Path(__file__).parents[1] / "examples"
PROMPT = "def main("


def frozen(bundle: Path, environment: Path, folder: Path) -> None:
    """Freeze the program with its bundle; generate, then serve the page and an answer that follows a schema."""
    build = [environment / "bin/pyinstaller", "--onefile", "--name", "app", "--add-data", f"{bundle}:bundle"]
    subprocess.run([*build, EXAMPLES / "frozen/app.py"], cwd=folder, check=True, capture_output=True)
    app = folder / "dist/app"
    print(f"frozen: {app.stat().st_size / 1e6:.0f} MB, of which the model {_size(bundle) / 1e6:.2f}")
    options = ["-p", PROMPT, "--max-tokens", "12", "--temperature", "0"]
    written = subprocess.run([app, "generate", *options], check=True, capture_output=True, text=True).stdout
    expected = kiara_runtime.load(bundle).generate(PROMPT, max_tokens=12, temperature=0.0).text
    assert written.rstrip() == expected.rstrip(), (written, expected)
    with subprocess.Popen([app, "serve", "--port", "0"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = ""
        while "is loaded" not in (line := server.stderr.readline()):
            assert line, "the server ended"
            url = (re.findall(r"on (http://\S+)", line) or [url])[0]
        page = urllib.request.urlopen(f"{url}/").read()
        assert b"<main>" in page and urllib.request.urlopen(f"{url}/page.js").status == 200
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}
        body = json.dumps({"prompt": PROMPT, "max_tokens": 16, "response_format": schema}).encode()
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(request))["choices"][0]["text"]
        assert json.loads(answer) in ("yes", "no")
        server.terminate()
    print(f"frozen: generates as the runtime does, serves its page, and answers {answer}")


def openvino(bundle: Path, environment: Path) -> None:
    program = [environment / "bin/python", EXAMPLES / "openvino_generate.py", bundle, PROMPT]
    written = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    model = kiara_runtime.load(bundle, "int8")
    expected = model.generate(PROMPT, max_tokens=32, temperature=0.0, token_healing=False)
    alike = 0
    while alike < len(expected.text) and written[alike : alike + 1] == expected.text[alike]:
        alike += 1
    print(f"OpenVINO: the same {alike} of {len(expected.text)} characters as the runtime")
    assert alike, "not one character is the same"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(bundle: str, environment: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        openvino(Path(bundle).resolve(), Path(environment).absolute())
        frozen(Path(bundle).resolve(), Path(environment).absolute(), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
