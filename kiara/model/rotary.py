"""Rotary positions (Su et al. 2021): the one place that says how fast each pair of a head's halves turns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kiara.config.model import ModelConfig


def frequencies(config: ModelConfig) -> NDArray[np.float64]:
    """Radians a position, float64 (E / 2,)."""
    return config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
