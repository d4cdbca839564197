"""A small training run and its bundle, made once per session by the real pipeline, and the commands as fixtures."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

import click.testing
import pytest
from serving import TOOL_TEMPLATE, with_chat

from kiara.config.load import load_config
from kiara.config.sections import Config
from kiara.data.dataset import Dataset
from kiara.data.prepare import prepare_folder
from kiara_runtime.system.machine import machine

REPOSITORY = Path(__file__).parent.parent
STDLIB_FILES = ("argparse", "ast", "bisect", "calendar", "cmd", "csv", "difflib", "heapq", "inspect", "shlex", "typing")
# CPU features that change the arithmetic of PyTorch or ONNX Runtime; x86 first, then Arm.
FEATURES = "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16 asimddp i8mm sve".split()
SMALL = (
    "model.hidden_size=64",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
    "model.num_key_value_heads=2",
    "model.head_dim=16",
    "model.intermediate_size=128",
    "model.context_length=96",
    "tokenizer.vocab_size=512",
    "training.max_steps=40",
    "training.batch_size=8",
    "training.learning_rate=0.01",
    "training.warmup_steps=4",
    "training.eval_every=20",
    "training.eval_tokens=2048",
    "training.checkpoint_every=20",
    "training.sample_tokens=4",
    f"training.seed={os.environ.get('TEST_MODEL_SEED', '1337')}",  # `make test-seeds` trains with other seeds
)


def pytest_report_header() -> str:
    """Name the processor: arithmetic, and so the output of a small model, differs between processors."""
    import torch

    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.is_file() else set()
    seen = [name for name in FEATURES if name in words]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"processor: {machine()['cpu']}; {' '.join(seen) or 'no feature known'}; PyTorch uses {capability}"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real source files."""
    folder = tmp_path_factory.mktemp("corpus")
    for name in STDLIB_FILES:
        source = Path(sysconfig.get_path("stdlib"), f"{name}.py")
        (folder / source.name).write_text(source.read_text("utf-8"), "utf-8")
    return folder


@pytest.fixture(scope="session")
def small_config(corpus: Path) -> Config:
    return load_config(assignments=(*SMALL, f"data.train={corpus}"), environ={})


@pytest.fixture(scope="session")
def dataset(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare_folder(small_config, tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="session")
def run(small_config: Config, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run."""
    from kiara.training.run import Run
    from kiara.training.trainer import train

    folder = tmp_path_factory.mktemp("runs") / "small"
    assert train(Run(folder, small_config, resume=False), dataset)
    return folder


@pytest.fixture(scope="session")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `run`, with the int8 and fp32 variants."""
    from kiara_export.pipeline import Request, export

    folder = tmp_path_factory.mktemp("bundles") / "small"
    export(run, folder, Request(("int8", "fp32")))
    return folder


@pytest.fixture(scope="session")
def embedding_bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `run` that can embed texts."""
    from kiara_export.pipeline import Request, export

    folder = tmp_path_factory.mktemp("embeddings") / "embedder"
    export(run, folder, Request(("int8", "fp32", "fp16"), embeddings=True))
    return folder


@pytest.fixture(scope="session")
def chat_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `bundle` with a chat template."""
    return with_chat(bundle, tmp_path_factory.mktemp("chat") / "talker")


@pytest.fixture(scope="session")
def tool_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `bundle` with a chat template that shows tools."""
    return with_chat(bundle, tmp_path_factory.mktemp("tools") / "caller", TOOL_TEMPLATE)


@pytest.fixture
def kiara() -> Callable[..., click.testing.Result]:
    """Call `kiara` with arguments, in this process."""
    from kiara.commands.main import main

    return lambda *arguments: _invoke(main, arguments)


@pytest.fixture
def kiara_run() -> Callable[..., click.testing.Result]:
    """Call `kiara-run` with arguments, in this process."""
    from kiara_runtime.commands.main import main

    return lambda *arguments: _invoke(main, arguments)


def _invoke(command: click.Command, arguments: tuple[object, ...]) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # no command may show a traceback
    return result
