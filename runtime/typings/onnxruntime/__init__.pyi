# The part of ONNX Runtime that kiara_runtime uses; the package ships no types.
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

__version__: str

def get_available_providers() -> list[str]: ...

class GraphOptimizationLevel:
    ORT_ENABLE_BASIC: GraphOptimizationLevel

class SessionOptions:
    graph_optimization_level: GraphOptimizationLevel
    log_severity_level: int
    intra_op_num_threads: int
    def add_session_config_entry(self, config_key: str, config_value: str) -> None: ...
    def add_initializer(self, name: str, value: OrtValue) -> None: ...

class OrtValue:
    @staticmethod
    def ortvalue_from_shape_and_type(
        shape: Sequence[int], element_type: Any, device_type: str, device_id: int
    ) -> OrtValue: ...
    @staticmethod
    def ortvalue_from_numpy(numpy_obj: NDArray[Any]) -> OrtValue: ...
    def data_ptr(self) -> int: ...

class IOBinding:
    def bind_cpu_input(self, name: str, arr_on_cpu: NDArray[Any]) -> None: ...
    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None: ...
    def bind_output(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None: ...

class NodeArg:
    name: str
    type: str
    shape: list[int | str | None]

class InferenceSession:
    def __init__(self, path_or_bytes: str, sess_options: SessionOptions, providers: Sequence[str]) -> None: ...
    def get_providers(self) -> list[str]: ...
    def get_inputs(self) -> list[NodeArg]: ...
    def get_outputs(self) -> list[NodeArg]: ...
    def io_binding(self) -> IOBinding: ...
    def run_with_iobinding(self, iobinding: IOBinding) -> None: ...
