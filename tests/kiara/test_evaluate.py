from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from kiara.data import Split
from kiara.evaluate import windows


def test_a_part_of_the_windows_is_spread_over_the_split() -> None:
    split = Split("val", [np.arange(1001, dtype=np.uint16), np.arange(2000, 3001, dtype=np.uint16)])
    everything = torch.cat(list(windows(split, 10)))
    assert everything.shape == (200, 11)
    part = torch.cat(list(windows(split, 10, max_tokens=95, rows=4)))
    assert part[:, 0].tolist() == [0, 220, 440, 660, 880, 2110, 2330, 2550, 2770]
    assert torch.cat(list(windows(split, 10, max_tokens=10**6))).equal(everything)
    assert next(windows(split, 10, max_tokens=3)).shape == (1, 11)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.txt", b"short", "give more text\n"),
        ("a.txt", b"\xef\xbb\xbf\n", "no text at all"),
        ("a.txt", b"x" + b" " * 300_000, "a.txt: text: over 200000 white-space characters on end"),
        (
            "a.jsonl",
            b'{"body": "some"}\n',
            "no text in field 'text' (it has 'body'); rename it, or give a plain text file",
        ),
    ],
)
def test_text_that_cannot_be_judged_is_refused_with_what_this_command_can_mend(
    name: str, data: bytes, expected: str, run: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    (tmp_path / name).write_bytes(data)
    result = kiara("evaluate", run, "--text", tmp_path / name)
    assert result.exit_code == 1 and expected in result.stderr
    assert result.stderr.count("\n") == 1 and "--set" not in result.stderr
