"""The profile of a pass: ONNX Runtime's own times, by kind of node."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
from click.testing import Result

from kiara_runtime.bundle import Bundle
from kiara_runtime.verify.profile import SHOWN, Pass, _medians, _runs


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
        assert one["milliseconds"] > 0 and all(milliseconds >= 0 for _, milliseconds in one["operators"].values())
    assert (found["prompt"]["tokens"], found["decode"]["tokens"], found["decode"]["cached"]) == (20, 1, 20)
    assert found["graph_bytes"] == (bundle / "onnx/model_quantized.onnx").stat().st_size
    assert found["read"] > 1e8 and found["multiplied"] > 1e8


def test_nodes_belong_to_the_pass_that_they_ran_in(tmp_path: Path) -> None:
    """In ONNX Runtime's file, whose times are microseconds; medians over the passes, summed by kind."""

    def node(kind: str, ts: int, dur: int, name: str = "n_kernel_time") -> dict[str, object]:
        return {"cat": "Node", "name": name, "ts": ts, "dur": dur, "args": {"op_name": kind}}

    def run(ts: int, dur: int) -> dict[str, object]:
        return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur}

    events = [
        {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 50},
        *(node("A", 100, 2000), node("A", 2200, 1000), node("B", 3300, 500), node("A", 3900, 9, "n_fence_before")),
        *(run(90, 4000), node("A", 5000, 1000), node("A", 6000, 1000), node("B", 7000, 700), run(4990, 3000)),
    ]
    (tmp_path / "nodes.json").write_text(json.dumps(events), "utf-8")
    first, second = runs = list(_runs(tmp_path / "nodes.json"))
    assert first == (4.0, [("A", 2.0), ("A", 1.0), ("B", 0.5)]) and second == (
        3.0,
        [("A", 1.0), ("A", 1.0), ("B", 0.7)],
    )
    assert _medians(runs, 1, 9) == Pass(1, 9, 3.5, {"A": (2, 2.5), "B": (1, 0.6)})


def test_the_table_adds_up(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    lines = kiara_run("bench", bundle, "--profile", "--kv-cache", "int8").stdout.splitlines()
    assert any("GroupQueryAttention" in line for line in lines) and "memory is read at" in lines[1]
    made = Pass(1, 9, 10.0, {"A": (3, 6.0), "B": (2, 3.0), "C": (4, 0.5 * SHOWN * 10)})
    rows = list(made.rows())
    assert [name for name, _, _ in rows] == ["A", "B", "other nodes", "between the nodes"]
    assert sum(milliseconds for _, _, milliseconds in rows) == 10.0 and rows[2][1] == 4
