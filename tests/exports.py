"""Constants shared by the export tests."""

from __future__ import annotations

from kiara_runtime.bundle.variants import VARIANTS

INT8, INT4 = VARIANTS[:2]
