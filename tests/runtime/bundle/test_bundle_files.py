"""Graph files, their embedding tables, and bundles of earlier releases."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
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
from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.engine.session import Session
from kiara_runtime.loading import load
from kiara_runtime.system.files import hash_file
from kiara_runtime.verify.kernels import verify_deep


def test_a_protobuf_tag_of_more_than_32_bits_is_refused(tmp_path: Path) -> None:
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


def test_the_largest_field_number_is_skipped(tmp_path: Path) -> None:
    """It fits the 32 bits of a tag: an unknown field of a valid file."""
    tag, length = b"\xfa\xff\xff\xff\x0f", b"\x01"  # field 2^29 - 1, length-delimited
    (tmp_path / "model.onnx").write_bytes(tag + length + b"x")
    assert external_files(tmp_path / "model.onnx") == set()


def test_external_files_are_found_wherever_a_tensor_can_be(tmp_path: Path) -> None:
    """In every field of onnx.proto that leads to a tensor, a name of its own."""
    import onnx

    names: list[str] = []

    def tensor() -> onnx.TensorProto:
        names.append(f"file{len(names)}")
        made = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        made.external_data.add(key="offset", value="0")
        made.external_data.add(key="location", value=names[-1])
        return made

    def sparse() -> onnx.SparseTensorProto:
        return onnx.SparseTensorProto(values=tensor(), indices=tensor())

    def graph() -> onnx.GraphProto:
        return onnx.GraphProto(initializer=[tensor()], sparse_initializer=[sparse()], node=[onnx.NodeProto()])

    def attribute() -> onnx.AttributeProto:
        return onnx.AttributeProto(
            t=tensor(),
            g=graph(),
            tensors=[tensor()],
            graphs=[graph()],
            sparse_tensor=sparse(),
            sparse_tensors=[sparse()],
        )

    model = onnx.ModelProto(graph=graph())
    model.graph.node.append(onnx.NodeProto(attribute=[attribute()]))
    model.training_info.add(initialization=graph(), algorithm=graph())
    model.functions.add(node=[onnx.NodeProto(attribute=[attribute()])], attribute_proto=[attribute()])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert len(names) > 30 and external_files(tmp_path / "model.onnx") == set(names)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_raise_value_error(data: bytes) -> None:
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


def test_embedding_tables_are_found_with_their_byte_range(bundle: Path) -> None:
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


def test_unusable_tables_are_left_out() -> None:
    import onnx

    def tensor(name: str, dims: list[int], raw: bytes = b"", **more: Any) -> onnx.TensorProto:
        return onnx.TensorProto(name=name, data_type=2, dims=dims, raw_data=raw or None, **more)

    made = [
        tensor("whole", [2, 3], b"abcdef"),
        tensor("cut", [2, 3], b"abcde"),
        tensor("vast", [2**62, 2**62], b"abcdef"),
        tensor("deep", [2**62] * 100_000, b"abcdef"),  # whose product takes too long to compute
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
    packed = plain.replace(b"\x08\x02\x08\x03", b"\x0a\x02\x02\x03")  # dims [2, 3], field 1, in packed form
    assert packed != plain
    for data in (plain, packed):
        with _mapped(data) as mapped:
            found = gathered_tables(mapped, (2, 3), 1)
        assert [(name, kind, shape) for name, (kind, shape, *_) in found.items()] == [("whole", 2, (2, 3))]
        assert data[slice(*found["whole"][2:])] == b"abcdef"


def test_a_memory_mapped_table_gives_the_same_logits(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_paths_without_a_bundle_are_refused(command: str, tmp_path: Path, kiara_run: Callable[..., Result]) -> None:
    options = ("-p", "x") if command == "generate" else ()
    for path, expected in ((tmp_path / "none", "there is no such folder"), (tmp_path, "kiara.json: missing")):
        result = kiara_run(command, path, *options)
        assert result.exit_code == 1
        assert expected in result.stderr and result.stderr.count("\n") == 1


def test_info_and_verify_of_a_good_bundle(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    shown = kiara_run("info", bundle).stdout
    assert "int8:" in shown and "fp32:" in shown and "context 96 tokens" in shown
    assert json.loads(kiara_run("info", bundle, "--json").stdout)["format_version"] == "1.1"
    result = kiara_run("verify", bundle)
    assert result.exit_code == 0 and "all as recorded" in result.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_reported(copy: Path, kiara_run: Callable[..., Result]) -> None:
    (copy / "tokenizer.json").chmod(0)
    result = kiara_run("verify", copy)
    assert result.exit_code == 1 and "Permission denied" in result.stderr


FROZEN = Path(__file__).parents[2] / "fixtures/bundle-1.0"


@pytest.mark.parametrize("variant", ["int8", "int4"])
def test_the_bundle_of_an_earlier_release_still_gives_its_tokens(variant: str) -> None:
    """Exported once, by the release that introduced format 1.0; every later release must open it."""
    expected = json.loads((FROZEN.parent / "bundle-1.0.json").read_text("utf-8"))
    found = load(FROZEN, variant).generate(expected["prompt"], max_tokens=16, temperature=0.0, token_healing=False)
    assert found.tokens == expected["tokens"][variant]


def test_the_bundle_of_an_earlier_release_still_passes_deep_verification() -> None:
    opened = Bundle.open(FROZEN)
    opened.check()
    assert [found.variant for found in verify_deep(opened)] == ["int8", "int4"]


def test_each_file_of_a_bundle_is_hashed_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = list[str]()
    monkeypatch.setattr(
        "kiara_runtime.bundle.manifest.hash_file", lambda path: hashed.append(path.name) or hash_file(path)
    )
    opened = Bundle.open(bundle)
    with load(opened, "int8"):
        opened.check(["receipt.json"])
    assert sorted(hashed) == sorted({Path(name).name for name in opened.files_of("int8")})
