"""Nothing of a bundle is used before it is known to be whole."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from kiara_runtime.bundle.graph_file import external_files, gathered_tables
from kiara_runtime.bundle.manifest import Bundle, write_manifest
from kiara_runtime.engine.session import Session
from kiara_runtime.errors import UserError
from kiara_runtime.model import load
from kiara_runtime.system.files import hash_file
from kiara_runtime.verify.kernels import verify_deep


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


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


def test_a_linked_graph_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "onnx").rename(tmp_path / "onnx")
    (copy / "onnx").symlink_to(tmp_path / "onnx")
    with pytest.raises(UserError, match="symbolic link"):
        load(copy)


def test_a_link_to_a_bundle_is_a_bundle_but_files_beside_a_graph_are_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(copy)
    load(tmp_path / "current")
    (copy / "onnx/weights.bin").write_bytes(b"of a graph with external data")
    with pytest.raises(UserError, match=r"weights.bin: not listed"):
        load(copy)


def test_load_checks_what_it_uses_and_verify_checks_all(copy: Path, kiara_run: Callable[..., Result]) -> None:
    (copy / "onnx/model.onnx").unlink()
    load(copy)
    with pytest.raises(UserError, match=r"model.onnx: missing"):
        load(copy, variant="fp32")
    result = kiara_run("verify", copy)
    assert result.exit_code == 1 and "model.onnx: missing" in result.stderr


def _rewrite(folder: Path, **changes: object) -> None:
    """A manifest with a valid hash of its own but other contents."""
    values = json.loads((folder / "kiara.json").read_text("utf-8"))
    for key in ("files", "sha256"):
        del values[key]
    write_manifest(folder, {**values, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format_version": "2.0"}, "bundle format 2.0 is newer than this runtime's 1.0"),
        ({"variants": {"int8": {"file": "../outside.onnx"}}}, "no name of a file inside a bundle"),
        ({"variants": {"int8": {"file": "/etc/passwd"}}}, "no name of a file inside a bundle"),
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
def test_manifests_that_lie_are_refused(changes: dict[str, object], expected: str, copy: Path) -> None:
    _rewrite(copy, **changes)
    with pytest.raises(UserError) as error:
        load(copy)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"), [("context_length", 0), ("context_length", 10**13), ("head_dim", 32), ("vocab_size", 600)]
)
def test_an_architecture_that_is_not_the_graphs_is_refused(field: str, value: int, copy: Path) -> None:
    architecture = json.loads((copy / "kiara.json").read_text("utf-8"))["architecture"]
    _rewrite(copy, architecture={**architecture, field: value})
    with pytest.raises(UserError, match=r"out of bounds|not those that kiara.json describes"):
        load(copy)


def test_an_older_minor_format_and_extra_files_do_no_harm(copy: Path) -> None:
    _rewrite(copy, format_version="1.7", later_key=1)
    (copy / "notes.txt").write_text("mine", "utf-8")
    load(copy)


def test_a_graph_that_is_no_graph_is_one_line(copy: Path) -> None:
    (copy / "onnx/model_quantized.onnx").write_bytes(b"not a graph")
    _rewrite(copy)
    with pytest.raises(UserError, match="no ONNX graph"):
        load(copy)
    (copy / "onnx/model_quantized.onnx").write_bytes(b"\x08\x07")  # a protobuf, but no graph in it
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
    with pytest.raises(UserError, match=r"which is no file of the bundle; refused"):
        load(copy)


def test_external_names_are_found_wherever_a_tensor_can_be(tmp_path: Path) -> None:
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


def test_a_tag_that_parsers_cut_to_32_bits_is_refused(tmp_path: Path) -> None:
    import onnx

    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="elsewhere")
    plain = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    field = onnx.StringStringEntryProto(key="location", value="elsewhere").SerializeToString()
    hidden = plain.replace(b"\x6a" + bytes([len(field)]) + field, b"\xea\x80\x80\x80\x70" + bytes([len(field)]) + field)
    assert hidden != plain
    (tmp_path / "model.onnx").write_bytes(hidden)
    with pytest.raises(ValueError, match=r"tag|longer than"):
        external_files(tmp_path / "model.onnx")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_graph_or_a_value_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            assert isinstance(external_files(path), set)
        with contextlib.suppress(ValueError), _mapped(data or b"\0") as mapped:
            assert isinstance(gathered_tables(mapped, (2, 3), 1), dict)


@contextlib.contextmanager
def _mapped(data: bytes) -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, len(data)) as mapped:
        mapped[:] = data
        yield mapped


def test_tables_are_found_where_their_bytes_lie(bundle: Path) -> None:
    import onnx

    path = Bundle.open(bundle).graph_of(None)
    data, graph = path.read_bytes(), onnx.load(str(path)).graph
    read = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    with _mapped(data) as mapped:
        found = gathered_tables(mapped, (2, 3), 1)
        assert not gathered_tables(mapped, (2, 3), 1 << 30)
    expected = {t.name: t for t in graph.initializer if t.name in read and t.data_type in (2, 3)}
    assert expected and found.keys() == expected.keys()
    for name, tensor in expected.items():
        kind, shape, first, last = found[name]
        assert (kind, shape, data[first:last]) == (tensor.data_type, tuple(tensor.dims), tensor.raw_data)


def test_tables_that_are_not_whole_are_left_out() -> None:
    import onnx

    def tensor(name: str, dims: list[int], raw: bytes = b"", **more: Any) -> onnx.TensorProto:
        return onnx.TensorProto(name=name, data_type=2, dims=dims, raw_data=raw or None, **more)

    made = [
        tensor("whole", [2, 3], b"abcdef"),
        tensor("cut", [2, 3], b"abcde"),
        tensor("vast", [2**62, 2**62], b"abcdef"),
        tensor("deep", [2**62] * 100_000, b"abcdef"),  # whose product nobody should wait for
        tensor("both", [2, 3], b"abcdef", data_location=onnx.TensorProto.EXTERNAL),
        tensor("twice", [2, 3], b"abcdef"),
        tensor("twice", [2, 3], b"abcde"),
        tensor("elsewhere", [2, 3], data_location=onnx.TensorProto.EXTERNAL),
        tensor("numbers", [2], int32_data=[1, 2]),
        tensor("text", [2, 3], b"abcdef"),
        tensor("unread", [2, 3], b"abcdef"),
    ]
    made[-2].data_type = 8
    nodes = [onnx.helper.make_node("Gather", [t.name, "ids"], [f"{t.name}-rows"]) for t in made[:-1]]
    nodes.append(onnx.helper.make_node("Identity", ["unread"], ["same"]))
    plain = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], made)).SerializeToString()
    packed = plain.replace(b"\x08\x02\x08\x03", b"\x0a\x02\x02\x03")  # of [2, 3], field 1
    assert packed != plain
    for data in (plain, packed):
        with _mapped(data) as mapped:
            found = gathered_tables(mapped, (2, 3), 1)
        assert [(name, kind, shape) for name, (kind, shape, *_) in found.items()] == [("whole", 2, (2, 3))]
        assert data[slice(*found["whole"][2:])] == b"abcdef"


def test_a_table_read_in_its_file_gives_the_same_logits(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, added = Bundle.open(bundle), list[str]()
    monkeypatch.setattr("kiara_runtime.engine.tables.LEAST_BYTES", 1)
    add = ort.SessionOptions.add_initializer
    monkeypatch.setattr(
        ort.SessionOptions, "add_initializer", lambda self, name, value: added.append(name) or add(self, name, value)
    )
    ids = np.arange(40)
    found = Session(opened.graph_of(None), opened.architecture).decoder().append(ids)
    assert added
    monkeypatch.setattr("kiara_runtime.engine.tables.LEAST_BYTES", 1 << 40)
    expected = Session(opened.graph_of(None), opened.architecture).decoder().append(ids)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("command", ["info", "verify", "generate"])
def test_paths_that_are_no_bundle_are_refused(command: str, tmp_path: Path, kiara_run: Callable[..., Result]) -> None:
    options = ("-p", "x") if command == "generate" else ()
    for path, expected in ((tmp_path / "none", "there is no such folder"), (tmp_path, "kiara.json: missing")):
        result = kiara_run(command, path, *options)
        assert result.exit_code == 1
        assert expected in result.stderr and result.stderr.count("\n") == 1


def test_info_and_verify_of_a_good_bundle(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    shown = kiara_run("info", bundle).stdout
    assert "int8:" in shown and "fp32:" in shown and "context 96 tokens" in shown
    assert json.loads(kiara_run("info", bundle, "--json").stdout)["format_version"] == "1.0"
    result = kiara_run("verify", bundle)
    assert result.exit_code == 0 and "all as recorded" in result.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_one_line(copy: Path, kiara_run: Callable[..., Result]) -> None:
    (copy / "tokenizer.json").chmod(0)
    result = kiara_run("verify", copy)
    assert result.exit_code == 1 and "Permission denied" in result.stderr


FROZEN = Path(__file__).parents[2] / "fixtures/bundle-1.0"


@pytest.mark.parametrize("variant", ["int8", "int4"])
def test_the_bundle_of_an_earlier_release_still_gives_its_tokens(variant: str) -> None:
    """Exported once, by the release that brought format 1.0; whatever comes later must open it."""
    expected = json.loads((FROZEN.parent / "bundle-1.0.json").read_text("utf-8"))
    found = load(FROZEN, variant).generate(expected["prompt"], max_tokens=16, temperature=0.0, token_healing=False)
    assert found.tokens == expected["tokens"][variant]


def test_the_bundle_of_an_earlier_release_still_computes_what_it_recorded() -> None:
    opened = Bundle.open(FROZEN)
    opened.check()
    assert [found.variant for found in verify_deep(opened)] == ["int8", "int4"]


def test_a_bundle_is_opened_and_hashed_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = list[str]()
    monkeypatch.setattr(
        "kiara_runtime.bundle.manifest.hash_file", lambda path: hashed.append(path.name) or hash_file(path)
    )
    opened = Bundle.open(bundle)
    with load(opened, "int8"):
        opened.check(["receipt.json"])
    assert sorted(hashed) == sorted({Path(name).name for name in opened.files_of("int8")})
