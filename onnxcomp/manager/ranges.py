"""Ranges of activations as files that other tools write and read: AIMET's encodings, ONNX Runtime's calibration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.errors import DataError
from onnxcomp.files import json_of
from onnxcomp.graph.ir import Constant, Graph, Node, Tensor

CHECK = "give AIMET encodings (0.6.1 or 1.0.0), or the calibration that ONNX Runtime saved"


@dataclass(frozen=True)
class Encoding:
    """The grid of a tensor: integers of `bits` bits stand for (q + offset) * scale, q counted from 0.

    Attributes:
        scales, offsets: one, or one a channel.
        symmetric: zero stands in the middle, and integers are signed.
    """

    bits: int
    scales: tuple[float, ...]
    offsets: tuple[int, ...]
    symmetric: bool

    @property
    def low(self) -> float:
        """Lowest number on the grid."""
        return min(offset * scale for scale, offset in zip(self.scales, self.offsets, strict=True))

    @property
    def high(self) -> float:
        """Highest number on the grid."""
        top = (1 << self.bits) - 1
        return max((top + offset) * scale for scale, offset in zip(self.scales, self.offsets, strict=True))


@dataclass
class Ranges:
    """What a quantized model's activations and weights are rounded to, by tensor name."""

    activations: dict[str, Encoding] = field(default_factory=dict)
    weights: dict[str, Encoding] = field(default_factory=dict)

    def to_aimet(self) -> str:
        """AIMET encodings, version 1.0.0."""
        content = {
            "version": "1.0.0",
            "activation_encodings": [_aimet(name, found) for name, found in self.activations.items()],
            "param_encodings": [_aimet(name, found) for name, found in self.weights.items()],
            "excluded_layers": [],
        }
        return json.dumps(content, indent=4) + "\n"

    def to_onnxruntime(self) -> str:
        """What ONNX Runtime's `load_tensors_data` reads: lowest and highest value of each activation."""
        data = {
            name: {"lowest": _array(found.low), "highest": _array(found.high), "CLS": "TensorData"}
            for name, found in self.activations.items()
        }
        method = {"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"}
        content = {"CLS": "TensorsData", "data": data, "calibration_method": method}
        return json.dumps(content, indent=1) + "\n"


def _aimet(name: str, found: Encoding) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": "INT",
        "bw": found.bits,
        "enc_type": "PER_TENSOR" if len(found.scales) == 1 else "PER_CHANNEL",
        "is_sym": found.symmetric,
        "scale": list(found.scales),
        "offset": list(found.offsets),
    }


def _array(value: float) -> dict[str, Any]:
    return {"CLS": "numpy.array", "data": float(np.float32(value)), "dtype": "float32"}


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each activation, from a file of either kind.

    Raises:
        DataError: there is no such file, it is of no kind that is known, or a range is no range.
    """
    path = Path(path)
    data = json_of(path, DataError, CHECK, "file of ranges")
    found = dict(_aimet_ranges(data, path) if "activation_encodings" in _table(data, path) else _stored(data, path))
    for name, (low, high) in found.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise DataError(f"{low} to {high} is no range", where=f"file {path}, tensor {name}", do=CHECK)
    return found


def _table(data: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise DataError("this is no file of ranges", where=f"file {path}", do=CHECK)
    return data


def _aimet_ranges(data: Mapping[str, Any], path: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    """Of version 1.0.0 a list of tables with a name; of 0.6.1 a table of lists by name."""
    listed = data["activation_encodings"]
    if isinstance(listed, dict):
        entries: Iterable[tuple[Any, Any]] = [
            (name, found[0] if isinstance(found, list) and found else found) for name, found in listed.items()
        ]
    elif isinstance(listed, list):
        entries = [(entry.get("name") if isinstance(entry, dict) else None, entry) for entry in listed]
    else:
        raise DataError("activation_encodings is neither a list nor a table", where=f"file {path}", do=CHECK)
    for name, entry in entries:
        if not isinstance(name, str) or not isinstance(entry, dict):
            raise DataError("an encoding without a name", where=f"file {path}", do=CHECK)
        if str(entry.get("dtype", "int")).lower() != "int":
            continue  # kept in floating point
        try:
            bits = int(entry["bw"] if "bw" in entry else entry["bitwidth"])
            scale, offset = _first(entry["scale"]), _first(entry["offset"])
            if not (1 <= bits <= 32 and scale > 0):
                raise ValueError
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise DataError(
                "an encoding without bits, scale and offset", where=f"file {path}, {name}", do=CHECK
            ) from error
        yield name, (offset * scale, (2**bits - 1 + offset) * scale)


def _stored(data: Mapping[str, Any], path: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    inner = data.get("data", data)
    for name, entry in _table(inner, path).items():
        try:
            yield name, (_first(entry["lowest"]), _first(entry["highest"]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                "a tensor without lowest and highest value", where=f"file {path}, {name}", do=CHECK
            ) from error


def _first(value: Any) -> float:
    """A number, alone or in a list or in what ONNX Runtime writes for an array."""
    while isinstance(value, list | dict):
        value = value["data"] if isinstance(value, dict) else value[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


# -- taking them from a model ------------------------------------------------------------------------------------------


def of_model(graph: Graph, original: Graph | None = None) -> Ranges:
    """What stands in the Q and DQ nodes of a model, whoever wrote them.

    Args:
        original: the float model; only tensors that it has are told then, and weights under the names that it has.
    """
    found = Ranges()
    known = None if original is None else {name for name in original.tensors() if name}
    layers = {} if original is None else {node.name: node for node in original.walk()}
    for node in graph.walk():
        if node.op == "QuantizeLinear" and not isinstance(node.inputs[0], Constant):
            encoding = _encoding(node)
            names = [node.inputs[0].name, *(t.name for r in node.outputs[0].outputs for t in r.outputs)]
            for name in dict.fromkeys(names):
                if encoding is not None and name and (name in known if known is not None else name == names[0]):
                    found.activations[name] = encoding
        if node.op == "DequantizeLinear" and isinstance(node.inputs[0], Constant):
            encoding = _encoding(node)
            if encoding is not None:
                found.weights |= dict.fromkeys(_weight_names(node, layers), encoding)
    return found


def _weight_names(node: Node, layers: Mapping[str, Node]) -> list[str]:
    """The names of the float weights in the place of which a DequantizeLinear stands; its integers' without a model."""
    if not layers:
        return [node.inputs[0].name]
    places = [(r, port) for r in node.outputs[0].outputs for port, t in enumerate(r.inputs) if t is node.outputs[0]]
    known = [layers[r.name].constant(port) for r, port in places if r.name in layers]
    return [constant.name for constant in known if constant is not None]


def _encoding(node: Node) -> Encoding | None:
    """The grid of a Q or DQ whose scale and zero point are constants; None for floating-point ones and blocks."""
    scale, zero = node.constant(1), node.constant(2)
    if scale is None or (node.input(2) is not None and zero is None) or int(node.attrs.get("block_size", 0)):
        return None
    stored: Tensor = zero if zero is not None else node.inputs[0]
    dtype = stored.dtype if node.op == "DequantizeLinear" or zero is not None else np.dtype(np.uint8)
    if dtype is None or dtype.name not in ("int8", "uint8", "int16", "uint16", "int4", "uint4"):
        return None
    bits, signed = int(dtype.name.removeprefix("u").removeprefix("int")), not dtype.name.startswith("u")
    scales = np.asarray(scale.values, np.float64).reshape(-1)
    zeros = np.zeros(len(scales), np.int64)
    if zero is not None:
        zeros = np.broadcast_to(np.asarray(zero.values).astype(np.int64).reshape(-1), scales.shape)
    shift = 2 ** (bits - 1) if signed else 0
    offsets = tuple(int(-z - shift) for z in zeros)
    return Encoding(bits, tuple(float(s) for s in scales), offsets, signed and not zeros.any())
