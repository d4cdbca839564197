"""What the tests of several files export share."""

from __future__ import annotations

from kiara_runtime.bundle.variants import VARIANTS

INT8, INT4 = VARIANTS[:2]
