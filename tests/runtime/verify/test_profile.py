"""The profile of a pass: ONNX Runtime's own times, by kind of node."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
from click.testing import Result

from kiara_runtime.bundle import Bundle
from kiara_runtime.verify.profile import SHOWN, Pass


def test_every_node_of_a_step_is_counted(bundle: Path, kiara_run: Callable[..., Result], tmp_path: Path) -> None:
    """ONNX Runtime folds constants, but keeps every node that this graph's decode step needs."""
    found = json.loads(kiara_run("bench", bundle, "--profile", "--json", "--prompt-tokens", "20").stdout)
    graph = onnx.load(str(Bundle.open(bundle).graph_of("int8"))).graph
    wanted = Counter(node.op_type for node in graph.node)
    for name in ("prompt", "decode"):
        one = found[name]
        counts = {kind: count for kind, (count, _) in one["operators"].items()}
        for kind in ("MatMulNBits", "GroupQueryAttention", "SkipSimplifiedLayerNormalization"):
            assert counts[kind] == wanted[kind]
        assert 0 < sum(milliseconds for _, milliseconds in one["operators"].values()) <= one["milliseconds"] * 1.05
    assert (found["prompt"]["tokens"], found["decode"]["tokens"], found["decode"]["cached"]) == (20, 1, 20)
    assert found["prompt"]["milliseconds"] > found["decode"]["milliseconds"]
    assert found["graph_bytes"] == (bundle / "onnx/model_quantized.onnx").stat().st_size
    assert found["read"] > 1e8 and found["multiplied"] > 1e8


def test_the_table_adds_up(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    lines = kiara_run("bench", bundle, "--profile", "--kv-cache", "int8").stdout.splitlines()
    assert any("GroupQueryAttention" in line for line in lines) and "memory is read at" in lines[1]
    made = Pass(1, 9, 10.0, {"A": (3, 6.0), "B": (2, 3.0), "C": (4, 0.5 * SHOWN * 10)})
    rows = list(made.rows())
    assert [name for name, _, _ in rows] == ["A", "B", "other nodes", "between the nodes"]
    assert sum(milliseconds for _, _, milliseconds in rows) == 10.0 and rows[2][1] == 4
