from __future__ import annotations

import numpy as np
import torch

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
