"""What is imported when, that nothing leaves the machine, and what a minimal install needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

REPOSITORY = Path(__file__).parents[2]
MAX_INSTALL_BYTES = 170 << 20  # all packages except pip and its helpers, compiled bytecode included
INSTALLERS = ("pip", "setuptools", "pkg_resources", "_distutils_hack")

# Runs a bundle under an audit hook; prints files opened for writing, socket events and imported modules.
WATCHED = """
import json, sys
events = []
def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        events.append(event)
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        events.append(f"write {arguments[0]}")
sys.addaudithook(watch)
sys.dont_write_bytecode = True
import os
import kiara_runtime
model = kiara_runtime.load(sys.argv[1])
tokens = model.generate("def main(", max_tokens=8, temperature=0.0).tokens
print(json.dumps({"events": events, "modules": sorted(sys.modules), "tokens": tokens,
                  "telemetry": os.environ["ORT_DISABLE_TELEMETRY"]}))
"""


def _python(*arguments: object, python: str = sys.executable, **environ: str) -> str:
    command = [python, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **environ}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_loaded_bundle_opens_no_socket_writes_no_file_and_imports_nothing_heavy(bundle: Path) -> None:
    seen = json.loads(_python("-c", WATCHED, bundle, ORT_DISABLE_TELEMETRY="0"))
    assert seen["events"] == []
    assert seen["telemetry"] == "1"
    heavy = {"torch", "onnx", "kiara", "kiara_export", "flask", "requests", "tokenizers", "pydantic", "transformers"}
    assert not heavy & set(seen["modules"])


@pytest.mark.parametrize("module", ["kiara.commands.main", "kiara_runtime.commands.main"])
def test_help_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module} as cli\ntry: cli.main(['--help'])\nfinally: print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    for heavy in ("torch", "onnxruntime", "tiktoken", "pydantic", "matplotlib", "kiara_export"):
        assert f"'{heavy}'" not in done.stdout
    assert "Usage:" in done.stdout


def test_importing_the_trainer_does_not_import_the_export() -> None:
    out = _python("-c", "import sys, kiara.training.trainer; print('kiara_export' in sys.modules)")
    assert out.strip() == "False"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with only the runtime package and its dependencies."""
    folder = tmp_path_factory.mktemp("alone") / "venv"
    venv.create(folder, with_pip=True)
    constraints = REPOSITORY / "constraints.txt"
    _python("-m", "pip", "install", "-q", "-c", constraints, REPOSITORY / "runtime", python=str(folder / "bin/python"))
    return folder


@pytest.mark.slow
def test_a_runtime_only_install_runs_the_bundle_and_is_small(alone: Path, bundle: Path) -> None:
    options = ("-p", "def main(", "--max-tokens", "8", "--temperature", "0", "--json")
    done = subprocess.run(
        [alone / "bin/kiara-run", "generate", bundle, *options], capture_output=True, text=True, check=True
    )
    seen = json.loads(_python("-c", WATCHED, bundle))
    assert json.loads(done.stdout)["tokens"] == seen["tokens"]
    site = next((alone / "lib").glob("python*/site-packages"))
    packages = [path for path in site.iterdir() if not path.name.startswith(INSTALLERS)]
    files = {file.stat().st_ino: file.stat() for path in packages for file in [path, *path.rglob("*")]}
    on_disk = sum(status.st_blocks * 512 for status in files.values())
    assert on_disk <= MAX_INSTALL_BYTES, f"{on_disk / 2**20:.0f} MiB"
    assert not [path for path in packages if path.name in ("torch", "onnx", "kiara", "flask")]


def test_serve_without_flask_names_the_package_to_install(alone: Path, bundle: Path) -> None:
    done = subprocess.run([alone / "bin/kiara-run", "serve", bundle], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "Error: serve: needs the package flask; pip install 'kiara-runtime[server]'\n"


@pytest.mark.parametrize("command", ["kiara", "kiara_runtime"])
def test_ctrl_c_during_imports_prints_one_line(command: str) -> None:
    """The import of click sends the signal, as if Ctrl-C had been pressed then."""
    program = (
        "import os, signal, sys, importlib.abc\n"
        "class Pressed(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'click': os.kill(os.getpid(), signal.SIGINT)\n"
        f"import {command}.__main__ as entry\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "entry.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "Interrupted; run the same command again.\n")


def test_waitress_has_an_upper_version_bound() -> None:
    """server/http.py subclasses waitress classes that are not public."""
    [needed] = [line for line in metadata.requires("kiara-runtime") or () if line.startswith("waitress")]
    assert SpecifierSet(needed.partition(";")[0].removeprefix("waitress")).contains(metadata.version("waitress"))
    assert "<" in needed
