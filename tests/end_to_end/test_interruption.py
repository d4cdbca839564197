"""Ctrl-C in every command: one line, a non-zero exit code, no partial output."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kiara.checkpoints.checkpoint import list_checkpoints
from kiara.data.dataset import Dataset

BIN = Path(sys.executable).parent
MODEL = (
    "model.hidden_size=64", "model.num_hidden_layers=2", "model.head_dim=16", "model.intermediate_size=128",
    "model.context_length=96", "training.batch_size=8", "training.eval_tokens=100", "training.sample_tokens=0",
    "training.compile=never",
)  # fmt: skip


def _interrupt(command: Sequence[object], until: str, cwd: Path, number: int = signal.SIGINT) -> tuple[int, str, str]:
    """Send the signal once the command has printed `until`. Returns exit code, all output, and output after `until`."""
    words = [str(part) for part in command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(words, cwd=cwd, **pipes, preexec_fn=_accept_interrupts) as process:
        assert process.stdout is not None
        seen = b""
        while until.encode() not in seen:
            byte = process.stdout.read(1)
            assert byte, f"ended before {until!r}: {seen.decode()}"
            seen += byte
        time.sleep(0.5)  # until printing is over: Python drops an interrupt that comes during a finaliser
        process.send_signal(number)
        rest = process.stdout.read()
        return process.wait(60), (seen + rest).decode(), rest.decode()


def _accept_interrupts() -> None:
    """Undo that background jobs of a shell, and so their children, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_interrupted_training_saves_and_says_how_to_resume(dataset: Dataset, tmp_path: Path) -> None:
    settings = [part for value in (*MODEL, "training.max_steps=100000") for part in ("--set", value)]
    command = [BIN / "kiara", "train", "--set", f"data.train={dataset.folder}", *settings, "--out", "run"]
    code, output, _ = _interrupt([*command, "--set", "training.eval_every=5"], "step 5/", tmp_path)
    assert code == 130
    assert "Traceback" not in output and "To continue: kiara train --resume --out run" in output
    (saved,) = list_checkpoints(tmp_path / "run")
    assert saved.step >= 5
    assert not list((tmp_path / "run/checkpoints").glob(".*"))


def test_interrupted_generate_prints_one_line(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    slow = (
        "import time\n"
        "from kiara_runtime.commands.main import main\n"
        "from kiara_runtime.engine.session import Cache\n"
        "run = Cache.run\n"
        "def slow(*arguments):\n"
        "    time.sleep(0.2)\n"
        "    return run(*arguments)\n"
        "Cache.run = slow\n"
        "main()\n"
    )
    options = ("generate", copy, "-p", "def", "--echo", "--ignore-eos", "--max-tokens", "90")
    code, output, rest = _interrupt([sys.executable, "-c", slow, *options], "def", tmp_path)
    assert code == 130
    assert "Interrupted" in rest and "Traceback" not in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.parametrize("what", ["prepare", "export"])
def test_interrupted_prepare_and_export_leave_only_pieces(what: str, run: Path, corpus: Path, tmp_path: Path) -> None:
    """Interrupted as soon as their temporary folder exists. Only `kiara prepare` has pieces to go on with."""
    source = corpus if what == "prepare" else run
    slow = "kiara.data.prepare.train_tokenizer" if what == "prepare" else "kiara_export.candidates.makers.trace"
    module, _, name = slow.rpartition(".")
    script = (
        f"import sys, time, {module} as m\n"
        "def wait(*arguments):\n"
        "    print('working', flush=True)\n"
        "    time.sleep(60)\n"
        f"m.{name} = wait\n"
        "from kiara.commands.main import main\n"
        "main()\n"
    )
    started = time.monotonic()
    code, _, rest = _interrupt([sys.executable, "-c", script, what, source, "--out", "out"], "working", tmp_path)
    assert code == 130 and time.monotonic() - started < 50
    assert rest.strip().splitlines()[-1] == "Interrupted; run the same command again."
    assert [path.name for path in tmp_path.iterdir()] == ([".out.pieces"] if what == "prepare" else [])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("work", ["time.sleep(600)", "hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**9)"])
def test_signals_end_sleeping_and_native_code(number: signal.Signals, code: int, work: str, tmp_path: Path) -> None:
    """The second kind of work is a native call of several minutes, during which Python handles no signal."""
    script = (
        "import hashlib, time; from pathlib import Path\n"
        "from kiara.commands.main import main; from kiara.files import new_folder\n"
        "@main.command()\n"
        "def work():\n"
        "    with new_folder(Path('out'), 'bundle') as folder:\n"
        f"        (folder / 'half').touch(); print('working', flush=True); {work}\n"
        "main()\n"
    )
    ended, _, rest = _interrupt([sys.executable, "-c", script, "work"], "working", tmp_path, number)
    assert ended == code and rest.count("\n") == 2 and rest.endswith("; run the same command again.\n")
    assert [path.name for path in tmp_path.iterdir()] in ([], [".out.lock"])


@pytest.mark.slow
def test_a_command_that_saves_on_interrupt_is_given_time(tmp_path: Path) -> None:
    """Saving may take longer than a native call may: training has already answered the signal."""
    script = (
        "import time; from kiara.commands.main import main; from kiara.training.stop_request import stop_request\n"
        "@main.command()\n"
        "def work():\n"
        "    with stop_request() as stopping:\n"
        "        print('working', flush=True)\n"
        "        while not stopping(): time.sleep(0.001)\n"
        "        time.sleep(2); print('saved', flush=True)\n"
        "main()\n"
    )
    for _ in range(3):
        code, _, rest = _interrupt([sys.executable, "-c", script, "work"], "working", tmp_path)
        assert (code, rest.strip()) == (0, "saved")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killing_bench_ends_its_child_process(number: signal.Signals, bundle: Path, tmp_path: Path) -> None:
    """The child is the process that measures; a stand-in writes its process id to a file and sleeps."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if 'kiara_runtime.verify.bench' in sys.orig_argv:\n"
        "    import threading; import kiara_runtime.verify.bench as bench\n"
        "    threading.Thread(target=bench._end_with_parent, daemon=True).start()\n"
        "    os.write(2, b'')\n"
        "    open('child', 'w').write(str(os.getpid())); time.sleep(600)\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "kiara_runtime.commands.main", "bench", str(bundle)]
    with subprocess.Popen(command, cwd=tmp_path, env=environ, preexec_fn=_accept_interrupts) as process:
        child = tmp_path / "child"
        while not (child.exists() and child.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
    pid, end = int(child.read_text()), time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end, "the child goes on"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_tokenizer_training_ends_at_once(number: int, tmp_path: Path) -> None:
    """Interrupted inside the library, which handles no signals. Its process keeps the output open until it ends."""
    source = tmp_path / "source"
    source.mkdir()
    letters = random.Random(1).choices("ACGT", k=1_500_000)
    (source / "letters.txt").write_text("".join(letters), "utf-8")
    script = (
        "import kiara.data.prepare as m\n"
        "learn = m.train_tokenizer\n"
        "def told(seconds): print('working', flush=True)\n"
        "m.train_tokenizer = lambda texts, size, waiting: learn(texts, size, told)\n"
        "from kiara.commands.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "prepare", source, "--out", "out", "--set", "tokenizer.vocab_size=32768"]
    code, output, rest = _interrupt(command, "working", tmp_path, number)
    assert code in (130, 128 + number) and "Traceback" not in output
    assert rest.strip().splitlines()[-1].endswith("; run the same command again.")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.pieces", "source"]
