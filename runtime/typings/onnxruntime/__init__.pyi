# The part of ONNX Runtime that kiara_runtime uses; the package ships no types.
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

class SessionOptions:
    log_severity_level: int
    intra_op_num_threads: int
    def add_session_config_entry(self, config_key: str, config_value: str) -> None: ...

class OrtValue:
    @staticmethod
    def ortvalue_from_numpy(numpy_obj: NDArray[Any]) -> OrtValue: ...

class IOBinding:
    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None: ...
    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None: ...

class NodeArg:
    name: str
    type: str
    shape: list[int | str | None]

class InferenceSession:
    def __init__(self, path_or_bytes: str, sess_options: SessionOptions, providers: Sequence[str]) -> None: ...
    def get_inputs(self) -> list[NodeArg]: ...
    def get_outputs(self) -> list[NodeArg]: ...
    def io_binding(self) -> IOBinding: ...
    def run_with_iobinding(self, iobinding: IOBinding) -> None: ...
