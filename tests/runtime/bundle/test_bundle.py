"""No file of a bundle is used before it has been checked."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from kiara_runtime.bundle.graph_file import external_files
from kiara_runtime.bundle.manifest import Bundle, write_manifest
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_thousand_flipped_bytes_and_two_hundred_truncations_are_refused_by_name(copy: Path) -> None:
    rng = random.Random(0)
    paths = _files(copy)
    originals = {path: path.read_bytes() for path in paths}

    def refused(path: Path, data: bytes) -> None:
        path.write_bytes(data)
        with pytest.raises(UserError, match=path.name):
            Bundle.open(copy).check()
        path.write_bytes(originals[path])

    for i in range(1000):
        path = paths[i % len(paths)]
        position = {0: 0, 1: len(originals[path]) - 1}.get(i // len(paths), rng.randrange(len(originals[path])))
        flipped = bytearray(originals[path])
        flipped[position] ^= 1 << rng.randrange(8)
        refused(path, flipped)
    for i in range(200):
        path = paths[i % len(paths)]
        refused(path, originals[path][: 0 if i < len(paths) else rng.randrange(len(originals[path]))])
    Bundle.open(copy).check()


def test_any_missing_cut_or_linked_file_is_refused_by_name(copy: Path, tmp_path: Path) -> None:
    for path in _files(copy):
        data = path.read_bytes()
        for change in ("missing", "cut", "empty", "longer", "link"):
            path.unlink(missing_ok=True)
            if change == "link":
                target = tmp_path / "elsewhere"
                target.write_bytes(data)
                path.symlink_to(target)
            elif change != "missing":
                path.write_bytes({"cut": data[:-1], "empty": b"", "longer": data + b"\n"}[change])
            with pytest.raises(UserError, match=path.name):
                Bundle.open(copy).check()
        path.unlink()
        path.write_bytes(data)
    load(copy)


def test_a_symlinked_graph_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "onnx").rename(tmp_path / "onnx")
    (copy / "onnx").symlink_to(tmp_path / "onnx")
    with pytest.raises(UserError, match="symbolic link"):
        load(copy)


def test_a_symlink_to_a_bundle_loads_but_unlisted_files_beside_a_graph_are_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(copy)
    load(tmp_path / "current")
    (copy / "onnx/weights.bin").write_bytes(b"of a graph with external data")
    with pytest.raises(UserError, match=r"weights.bin: not listed"):
        load(copy)


def test_load_checks_the_files_it_uses_and_verify_checks_all(copy: Path, kiara_run: Callable[..., Result]) -> None:
    (copy / "onnx/model.onnx").unlink()
    load(copy)
    with pytest.raises(UserError, match=r"model.onnx: missing"):
        load(copy, variant="fp32")
    result = kiara_run("verify", copy)
    assert result.exit_code == 1 and "model.onnx: missing" in result.stderr


def _rewrite(folder: Path, **changes: object) -> None:
    """Write a manifest with changed contents and a valid hash."""
    values = json.loads((folder / "kiara.json").read_text("utf-8"))
    for key in ("files", "sha256"):
        del values[key]
    write_manifest(folder, {**values, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format_version": "2.0"}, "bundle format 2.0 is newer than this runtime's 1.1"),
        ({"variants": {"int8": {"file": "../outside.onnx"}}}, "not a valid file name in a bundle"),
        ({"variants": {"int8": {"file": "/etc/passwd"}}}, "not a valid file name in a bundle"),
        ({"architecture": {}}, "not a manifest of this format"),
        ({"eos_token_ids": None}, "not a manifest of this format"),
        ({"variants": {}}, "not a manifest of this format"),
        ({"architecture": "x"}, "not a manifest of this format"),
        ({"format_version": "one"}, "not a manifest of this format"),
        ({"tokenizer": {}}, "not a manifest of this format"),
        ({"bos_token_id": 512}, "outside the vocabulary"),
        ({"variants": {"int8": {"file": "onnx/other.onnx"}}}, "is not listed in it"),
        ({"variants": {"int8": {"file": "config.json"}}}, "is not in onnx"),
        ({"tokenizer": {"golden": [{"text": "a", "ids": [1, 2]}]}}, "does not give the recorded ids"),
    ],
)
def test_inconsistent_manifests_are_refused(changes: dict[str, object], expected: str, copy: Path) -> None:
    _rewrite(copy, **changes)
    with pytest.raises(UserError) as error:
        load(copy)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"), [("context_length", 0), ("context_length", 10**13), ("head_dim", 32), ("vocab_size", 600)]
)
def test_an_architecture_that_does_not_match_the_graph_is_refused(field: str, value: int, copy: Path) -> None:
    architecture = json.loads((copy / "kiara.json").read_text("utf-8"))["architecture"]
    _rewrite(copy, architecture={**architecture, field: value})
    with pytest.raises(UserError, match=r"out of bounds|do not match kiara.json"):
        load(copy)


def test_a_newer_minor_format_and_extra_files_are_accepted(copy: Path) -> None:
    _rewrite(copy, format_version="1.7", later_key=1)
    (copy / "notes.txt").write_text("mine", "utf-8")
    load(copy)


def test_an_invalid_graph_file_is_refused(copy: Path) -> None:
    (copy / "onnx/model_quantized.onnx").write_bytes(b"not a graph")
    _rewrite(copy)
    with pytest.raises(UserError, match="not an ONNX graph"):
        load(copy)
    (copy / "onnx/model_quantized.onnx").write_bytes(b"\x08\x07")  # a protobuf without a graph
    _rewrite(copy)
    with pytest.raises(UserError, match="ONNX Runtime cannot open it"):
        load(copy)


@pytest.mark.parametrize(
    "location", ["../outside.bin", "/etc/passwd", "sub/weights.bin", "unlisted.bin", "..", "", "a\\b", "x" * 9000]
)
def test_weights_outside_the_bundle_are_refused(location: str, copy: Path, bundle: Path) -> None:
    import onnx

    path = copy / "onnx/model_quantized.onnx"
    graph = onnx.load(str(path))
    tensor = next(tensor for tensor in graph.graph.initializer if len(tensor.raw_data) > 1000)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(graph.SerializeToString())
    _rewrite(copy)
    with pytest.raises(UserError, match=r"which is not a file of the bundle; do not use"):
        load(copy)


def test_external_data_is_found_wherever_a_tensor_can_be(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    def tensor(name: str) -> onnx.TensorProto:
        made = onnx.TensorProto(name=name, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        made.external_data.add(key="offset", value="0")
        made.external_data.add(key="location", value=name)
        return made

    constant = helper.make_node("Constant", [], ["c"], value=tensor("in-attribute"))
    inner = helper.make_graph([constant], "inner", [], [], [tensor("in-subgraph")])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    listed = helper.make_node("Odd", [], ["z"], domain="own")
    listed.attribute.append(helper.make_attribute("many", [tensor("in-list")]))
    function = helper.make_function(
        "own", "F", [], ["c"], [helper.make_node("Constant", [], ["c"], value=tensor("in-function"))], []
    )
    sparse = onnx.SparseTensorProto(values=tensor("in-sparse"), indices=tensor("in-indices"), dims=[4])
    model = helper.make_model(
        helper.make_graph([branch, listed], "g", [], [], [tensor("in-graph")], sparse_initializer=[sparse]),
        functions=[function],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    places = ("attribute", "subgraph", "list", "function", "sparse", "indices", "graph")
    assert external_files(path) == {f"in-{place}" for place in places}
