from __future__ import annotations

import inspect
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from kiara.checkpoints.checkpoint import find_checkpoint, load_model
from kiara.data.dataset import Dataset
from kiara.data.sequences import Split
from kiara.evaluation.evaluate import held_out_text, windows
from kiara_runtime.engine.session import Decoder


def test_a_subset_of_windows_is_spread_over_the_split() -> None:
    split = Split("val", [np.arange(1001, dtype=np.uint16), np.arange(2000, 3001, dtype=np.uint16)])
    everything = torch.cat(list(windows(split, 10)))
    assert everything.shape == (200, 11)  # no token is left over
    part = torch.cat(list(windows(split, 10, max_tokens=95, rows=4)))
    assert part[:, 0].tolist() == [0, 220, 440, 660, 880, 2110, 2330, 2550, 2770]
    assert torch.cat(list(windows(split, 10, max_tokens=10**6))).equal(everything)
    assert next(windows(split, 10, max_tokens=3)).shape == (1, 11)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.txt", b"\xef\xbb\xbf\n", "holds no text"),
        ("a.txt", b"x" + b" " * 300_000, "a.txt: text: over 200000 white-space characters in a row"),
        (
            "a.jsonl",
            b'{"body": "some"}\n',
            "no text in field 'text' (it has 'body'); rename it, or give a plain text file",
        ),
    ],
)
def test_unusable_text_is_refused_with_a_remedy_for_this_command(
    name: str, data: bytes, expected: str, run: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    (tmp_path / name).write_bytes(data)
    result = kiara("evaluate", run, "--text", tmp_path / name)
    assert result.exit_code == 1 and expected in result.stderr
    assert result.stderr.count("\n") == 1 and "--set" not in result.stderr


def test_a_prepared_folder_stands_for_its_held_out_part(
    run: Path, dataset: Dataset, imported: Path, kiara: Callable[..., Result]
) -> None:
    own, named = (
        json.loads(kiara("evaluate", run, *text, "--json").stdout) for text in ((), ("--text", dataset.folder))
    )
    assert own == named
    training = held_out_text(find_checkpoint(run), dataset.tokenizer, str(dataset.folder), "train")  # to calibrate on
    assert training.sha256 == dataset.train.sha256
    result = kiara("evaluate", imported, "--text", dataset.folder)
    assert result.exit_code == 1
    assert f"was prepared with another tokenizer than that of {imported}; prepare it with --tokenizer" in result.stderr


def test_of_prepared_conversations_the_answers_count(
    imported: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    lines = [json.dumps({"prompt": f"What is {i}?", "completion": f"It is {i}."}) + "\n" for i in range(20)]
    (tmp_path / "chats.jsonl").write_text("".join(lines), "utf-8")
    given = ("--tokenizer", imported, "--set", "data.format=chat", "--set", "data.val_fraction=0.3")
    assert kiara("prepare", tmp_path / "chats.jsonl", "--out", tmp_path / "data", *given).exit_code == 0
    found = json.loads(kiara("evaluate", imported, "--text", tmp_path / "data", "--json").stdout)
    assert found["tokens"] == Dataset.open(tmp_path / "data").manifest["splits"]["val"]["answer_tokens"]


@pytest.mark.parametrize("tokens", [2, 3, 95, 96, 97, 98, 193, 250])
def test_every_token_but_the_first_is_scored_once(
    tokens: int, run: Path, bundle: Path, tmp_path: Path, kiara: Callable[..., Result], kiara_run: Callable[..., Result]
) -> None:
    """By both commands, for text lengths around window boundaries; PyTorch window by window is the oracle."""
    model, tokenizer = load_model(find_checkpoint(run))
    ids = tokenizer.encode(inspect.getsource(inspect))[: tokens - 1]
    (tmp_path / "text.py").write_bytes(text := tokenizer.decode(ids).encode())
    ids = [tokenizer.special_tokens["<|endoftext|>"], *tokenizer.encode(text.decode())]
    nats = 0.0
    for start in range(0, len(ids) - 1, 96):
        part = torch.tensor(ids[start : start + 97])
        with torch.no_grad():
            nats += torch.nn.functional.cross_entropy(model(part[None, :-1])[0][0], part[1:], reduction="sum").item()
    ours = json.loads(kiara("evaluate", run, "--text", tmp_path / "text.py", "--json").stdout)
    theirs = json.loads(kiara_run("evaluate", bundle, tmp_path / "text.py", "--variant", "fp32", "--json").stdout)
    for found in (ours, theirs):
        assert found["tokens"] == len(ids) - 1
        assert found["loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-4)
        assert found["bits_per_byte"] == pytest.approx(nats / 0.6931471805599453 / len(text), rel=1e-4)


def test_a_normaliser_and_another_bos_token_change_no_figure(
    run: Path, tmp_path: Path, kiara: Callable[..., Result], kiara_run: Callable[..., Result]
) -> None:
    """As in imported models. Bytes are counted in the text, not in the decoded tokens, by all three commands."""
    folder = Path(shutil.copytree(find_checkpoint(run), tmp_path / "checkpoint"))
    ids = json.loads((folder / "generation_config.json").read_text("utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    state = json.loads((folder / "trainer_state.json").read_text("utf-8"))
    write = {
        "generation_config.json": {**ids, "bos_token_id": 65},
        "tokenizer.json": {**tokenizer, "normalizer": {"type": "NFC"}},
        "trainer_state.json": {**state, "sha256": {}},
    }
    for name, values in write.items():
        (folder / name).write_text(json.dumps(values), "utf-8")
    text = tmp_path / "text.txt"
    text.write_text("cafe\u0301 = 1  # e\u0301te\u0301\n" * 20, "utf-8")
    assert kiara("export", folder, "--out", tmp_path / "bundle", "--quantize", "none", "--text", text).exit_code == 0
    receipt = json.loads((tmp_path / "bundle/receipt.json").read_text("utf-8"))["float32_reference"]
    ours = json.loads(kiara("evaluate", folder, "--text", text, "--json").stdout)
    theirs = json.loads(kiara_run("evaluate", tmp_path / "bundle", text, "--json").stdout)
    assert ours["bits_per_byte"] == pytest.approx(
        ours["loss"] * ours["tokens"] / math.log(2) / text.stat().st_size, rel=1e-6
    )
    assert ours["tokens"] % 96  # the last window is shorter
    for found in (receipt, theirs):
        assert found == pytest.approx(ours, rel=1e-4)


def test_a_nan_loss_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara_run: Callable[..., Result]
) -> None:
    (tmp_path / "text.txt").write_text("some text")
    monkeypatch.setattr(Decoder, "append", lambda self, ids: np.full((len(ids), 512), np.nan, np.float32))
    result = kiara_run("evaluate", bundle, tmp_path / "text.txt", "--json")
    assert result.exit_code == 1 and "its loss on this text is nan" in result.stderr and not result.stdout
