"""How is a model run by OpenVINO? Its own runtime reads ONNX itself; here it looks like any other provider.

OpenVINO's processor plugin would compute in bfloat16 where a processor has it; answers are compared with those of
float32, so the precision is fixed to that. A model is run with the ports that its ONNX file declares.
"""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from onnxcomp.errors import EnvironmentLacksError, ModelError
from onnxcomp.runtime.acceleration import Acceleration
from onnxcomp.runtime.providers import OPENVINO, OPENVINO_REMEDY, Placement, Usability
from onnxcomp.runtime.session import Array, Model, Session, clean

DEVICE = "CPU"
_WITHIN_ORT = {"float32": "float", "float64": "double", "object": "string"}


class OpenVINOSession(Session):
    """A model opened by OpenVINO.

    Attributes:
        raw: stands for ONNX Runtime's session as far as `Session` asks it.
        compiled: the `openvino.CompiledModel`.
    """

    def __init__(self, compiled: Any, model: Model, *, threads: int, where: str, acceleration: Acceleration) -> None:
        self.compiled = compiled
        super().__init__(
            _Raw(compiled, model), provider=OPENVINO, threads=threads, where=where, acceleration=acceleration
        )

    def placement(self) -> Placement:
        """All of the nodes that OpenVINO makes of a model are its own; counted as it runs them."""
        count = sum(kernels(self.compiled).values())
        return Placement(OPENVINO, count, Counter(), Counter({OPENVINO: count}))


class _Raw:
    """What `Session` asks of ONNX Runtime's session, answered by OpenVINO."""

    def __init__(self, compiled: Any, model: Model) -> None:
        self._request = compiled.create_infer_request()
        self._inputs, self._outputs = _ports(model)
        # an input that nothing reads is none of OpenVINO's, and it orders outputs as the file does
        self._taken = {name for port in compiled.inputs for name in port.names}
        self._index = {port.name: index for index, port in enumerate(self._outputs)}

    def get_inputs(self) -> list[Any]:
        return self._inputs

    def get_outputs(self) -> list[Any]:
        return self._outputs

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Array], options: Any = None) -> list[Array]:
        del options
        taken = {name: np.ascontiguousarray(array) for name, array in feeds.items() if name in self._taken}
        found = self._request.infer(taken, share_inputs=True)
        values = [np.array(found[index]) for index in range(len(self._outputs))]
        return values if names is None else [values[self._index[name]] for name in names]


def open_model(model: Model, *, threads: int, acceleration: Acceleration, where: str) -> OpenVINOSession:
    """Open a model for running.

    Args:
        model: a file, its external data beside it, or the bytes of a model.
        threads: of one inference.

    Raises:
        EnvironmentLacksError: OpenVINO is not installed.
        ModelError: it does not take the model.
    """
    if not (found := usability()).usable:
        raise EnvironmentLacksError(
            f"OpenVINO cannot run here: {found.reason}", where="--provider openvino", do=OPENVINO_REMEDY
        )
    core = _core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        **acceleration.pairs,
    }
    try:
        read = core.read_model(io.BytesIO(model) if isinstance(model, bytes) else str(model))
        compiled = core.compile_model(read, DEVICE, settings)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"OpenVINO refuses the model: {_reason(error)}",
            where=where,
            do="leave out what is no standard ONNX operator; OpenVINO's list of supported operators tells which",
        ) from error
    return OpenVINOSession(compiled, model, threads=threads, where=where, acceleration=acceleration)


@functools.cache
def usability() -> Usability:
    """Whether OpenVINO is installed and its processor plugin runs here; kept for the process."""
    try:
        devices = _core().available_devices
    except ImportError as error:
        return Usability(OPENVINO, False, str(error), OPENVINO_REMEDY)
    except RuntimeError as error:
        return Usability(OPENVINO, False, _reason(error), OPENVINO_REMEDY)
    there = any(device.startswith(DEVICE) for device in devices)
    return Usability(OPENVINO, there, "" if there else "it has no plugin for this processor", OPENVINO_REMEDY)


def kernels(compiled: Any) -> Counter[tuple[str, str]]:
    """What a compiled model really runs: kind of layer and the precision it computes in, counted.

    Constants, and what only hands data in and out, are not counted.
    """
    found = Counter[tuple[str, str]]()
    for node in compiled.get_runtime_model().get_ops():
        told = {key: str(value.astype(str)) for key, value in node.get_rt_info().items() if hasattr(value, "astype")}
        kind = told.get("layerType", node.get_type_name())
        if kind not in ("Const", "Constant", "Input", "Parameter", "Output", "Result"):
            found[kind, told.get("runtimePrecision", "")] += 1
    return found


@functools.cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _ports(model: Model) -> tuple[list[Any], list[Any]]:
    """The ports that the ONNX file declares, as ONNX Runtime would tell them."""
    import onnx

    from onnxcomp.graph.io import read_proto

    proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else read_proto(Path(model))
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    return [_port(value) for value in inputs], [_port(value) for value in proto.graph.output]


def _port(value: Any) -> Any:
    import onnx

    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    shape = [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim]
    return SimpleNamespace(name=value.name, shape=shape, type=f"tensor({_WITHIN_ORT.get(dtype, dtype)})")


def _reason(error: Exception) -> str:
    """The last words of OpenVINO's message, which begins with places in its own source."""
    lines = [line.strip() for line in clean(str(error)).splitlines() if line.strip()]
    return lines[-1][-300:] if lines else type(error).__name__
