"""How is a model run? A thin wrapper around an ONNX Runtime session whose every failure is an error to act on."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import DataError, ModelError
from onnxcomp.graph.codec import encode
from onnxcomp.graph.io import EXTERNAL_TENSOR_BYTES, runnable, small_inside, to_bytes, total_bytes
from onnxcomp.graph.ir import Constant, Graph, tensor_proto
from onnxcomp.runtime import providers
from onnxcomp.runtime.acceleration import PLAIN, Acceleration, chain, is_quantized
from onnxcomp.runtime.machine import usable_cores

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Model = Path | str | bytes

AS_WRITTEN = {"session.disable_quant_qdq": "1"}  # a float weight between Q and DQ stays float
LARGE_BYTES = 256 << 20  # a graph with more weights is never copied in memory
PREPACKING_OFF = "session.disable_prepacking"
EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"

_NUMPY = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "string": "object",
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}  # fmt: skip
# ONNX Runtime hands these out as raw bytes or not at all; ml_dtypes names the values
_EXOTIC = {
    "bfloat16": "bfloat16", "float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2", "float8e5m2fnuz": "float8_e5m2fnuz",
    "int4": "int4", "uint4": "uint4", "int2": "int2", "uint2": "uint2",
}  # fmt: skip
_PACKED_BITS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}


@dataclass(frozen=True)
class Port:
    """One input or output of a model. `shape` holds sizes, names of symbolic sizes, or None for unnamed ones."""

    name: str
    shape: tuple[int | str | None, ...]
    type: str

    @property
    def element(self) -> str:
        """ONNX Runtime's name of the element type: `float`, `int64`, `bfloat16`; empty when this is no tensor."""
        found = re.fullmatch(r"tensor\((\w+)\)", self.type)
        return found.group(1) if found else ""

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The numpy dtype (ml_dtypes for the small ones, object for strings); None for a sequence, map or optional."""
        if self.element in _NUMPY:
            return np.dtype(_NUMPY[self.element])
        if self.element in _EXOTIC:
            import ml_dtypes

            small: type[Any] = getattr(ml_dtypes, _EXOTIC[self.element])
            return np.dtype(small)
        return None

    @property
    def exotic(self) -> bool:
        """Whether numpy alone cannot hold the values."""
        return self.element in _EXOTIC

    @property
    def shape_text(self) -> str:
        """The shape in words: `[batch, 3, ?, 32]`."""
        return "[" + ", ".join("?" if size is None else str(size) for size in self.shape) + "]"

    def agrees(self, other: Port) -> bool:
        """Whether one array can fit both: equal types, and no sizes that exclude each other."""
        return self.type == other.type and self.agrees_in_shape(other)

    def agrees_in_shape(self, other: Port) -> bool:
        """Whether one array can have both shapes; a shape without sizes may be an unknown one."""
        sizes = zip(self.shape, other.shape, strict=False)
        clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes)
        return len({len(self.shape), len(other.shape)} - {0}) < 2 and not clash


class Session:
    """An open model.

    Attributes:
        raw: the `onnxruntime.InferenceSession`.
        inputs, outputs: the ports, in the model's order.
        provider: the full name of the execution provider that was asked for, and that is really there.
        threads: threads inside one operator.
        where: the file, for messages.
        acceleration: what was asked of the provider.
    """

    def __init__(
        self, raw: Any, *, provider: str, threads: int, where: str, acceleration: Acceleration = PLAIN
    ) -> None:
        self.raw = raw
        self.acceleration = acceleration
        self.provider = provider
        self.threads = threads
        self.where = where
        self.inputs = tuple(_port(node) for node in raw.get_inputs())
        self.outputs = tuple(_port(node) for node in raw.get_outputs())
        self._exotic = any(port.exotic for port in (*self.inputs, *self.outputs))

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once.

        Args:
            feeds: one array for each input, of its dtype and shape; ml_dtypes arrays for bfloat16 and float8.
            outputs: names of the outputs wanted; all by default. Where there are none, nothing runs.

        Raises:
            DataError: a feed is missing, unknown, of the wrong dtype or shape, or holds values the model refuses.
            ModelError: an operator failed although the feeds fit.
        """
        names = [port.name for port in self.outputs] if outputs is None else list(outputs)
        if not names:
            return {}
        try:
            values = (
                self._run_values(feeds, names) if self._exotic else self.raw.run(names, dict(feeds), self._options())
            )
        except providers.ort_errors() as error:
            raise self._run_error(feeds, error) from error
        return dict(zip(names, values, strict=True))

    def _options(self) -> Any:
        """Options of a single run: one that is not bound to fixed memory must not be recorded as a CUDA graph."""
        if not self.acceleration.cuda_graph:
            return None
        import onnxruntime as ort

        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", "-1")
        return options

    def placement(self) -> providers.Placement:
        """Where ONNX Runtime put the nodes, before it fuses them."""
        return providers.placement(self.raw, self.provider)

    def _run_values(self, feeds: Feeds, names: list[str]) -> list[Any]:
        by_name = {port.name: port for port in self.inputs}
        values = {name: _to_value(array, by_name.get(name)) for name, array in feeds.items()}
        found = self.raw.run_with_ort_values(names, values, self._options())
        ports = {port.name: port for port in self.outputs}
        return [_from_value(value, ports[name]) for name, value in zip(names, found, strict=True)]

    def _run_error(self, feeds: Feeds, error: Exception) -> DataError | ModelError:
        text = clean(str(error))
        if wrong := self.mismatch(feeds):
            return DataError(wrong, where=self.where, do=f"the model takes {self.signature()}")
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        if _code(error) == "INVALID_ARGUMENT":
            return DataError(
                f"the model refuses these values: {text}",
                where=f"{self.where}, {shapes}",
                do="check the values with onnxcomp data check: an index or id beyond a table's end does this",
            )
        return ModelError(
            f"the model fails while it runs: {text}",
            where=f"{self.where}, {shapes}",
            do="check that the model takes these sizes (a Reshape may fix the batch size), or give others with --shape",
        )

    def mismatch(self, feeds: Feeds) -> str:
        """How `feeds` differ from what the model takes, in words; empty when they fit."""
        ports = {port.name: port for port in self.inputs}
        if missing := [name for name in ports if name not in feeds]:
            return f"no data for the input {missing[0]!r}"
        if unknown := [name for name in feeds if name not in ports]:
            return f"the model has no input {unknown[0]!r}"
        for name, array in feeds.items():
            port = ports[name]
            if port.dtype is not None and not _same_dtype(array.dtype, port.dtype):
                return f"the input {name!r} takes {port.dtype}, the data is {array.dtype}"
            if not _fits(array.shape, port.shape):
                return f"the input {name!r} takes the shape {port.shape_text}, the data has {list(array.shape)}"
        return ""

    def signature(self) -> str:
        """The inputs in words: `x float32 [batch, 3, 32, 32]`."""
        return ", ".join(f"{port.name} {port.dtype or port.type} {port.shape_text}" for port in self.inputs)


def open_session(
    model: Path | str | bytes,
    *,
    provider: str = "cpu",
    threads: int = 1,
    optimize: bool = True,
    lean: bool = False,
    arena: bool = True,
    config: Mapping[str, str] | None = None,
    acceleration: Acceleration = PLAIN,
    save_optimized: Path | None = None,
    profile_prefix: Path | None = None,
) -> Session:
    """Open a model for running.

    Args:
        model: a file (its external data is found beside it) or the bytes of a model.
        provider: `cpu`, `cuda`, `tensorrt`, `openvino` or ONNX Runtime's full name; never replaced by another one.
        threads: threads inside one operator; 0 means every usable core. Operators run one after another.
        optimize: ONNX Runtime's graph optimizations, all or none.
        lean: take little memory rather than time: weights stay mapped from their file and are not repacked, those
            stored in few bits are decoded when they are needed and not all at load, and what a run allocated is given
            back.
        arena: keep what a run allocated for the next one; without it several sessions never hold it at once.
        config: further session configuration entries, such as `session.x64quantprecision`.
        acceleration: what is asked of a GPU provider beyond its name.
        save_optimized: where ONNX Runtime writes the graph it really runs.
        profile_prefix: record every kernel's time in a file whose name begins so; `raw.end_profiling()` names it.

    Raises:
        ModelError: no such file, no valid model, an operator without a kernel.
        EnvironmentLacksError: the provider does not run on this machine.
        UsageError: ONNX Runtime knows no such provider, or it does not have an option that was set.
    """
    import onnxruntime as ort

    full = providers.full_name(provider)
    acceleration.check(full)
    providers.require(provider)
    threads = threads or usable_cores()
    where = "the model in memory" if isinstance(model, bytes) else str(model)
    source = model if isinstance(model, bytes) else _existing(Path(model))
    if full == providers.OPENVINO:
        from onnxcomp.runtime import openvino

        return openvino.open_model(model, threads=threads, acceleration=acceleration, where=where)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said by the errors raised here
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    entries = {"session.intra_op.allow_spinning": "0", providers.RECORD_ASSIGNMENT: "1", **(config or {})}
    if lean:
        entries[PREPACKING_OFF] = "1"
    if lean or not arena:
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    if save_optimized is not None:
        options.optimized_model_filepath = str(save_optimized)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    chosen = chain(full, acceleration, quantized=full == providers.TENSORRT and is_quantized(model))
    try:
        with providers.quiet_loading(full):
            raw = _opened(source, options, chosen, without=["ConstantFolding"] if lean else [])
    except providers.ort_errors() as error:
        raise _load_error(error, where) from error
    if full not in raw.get_providers():
        raise providers.lacks(full, "ONNX Runtime fell back to another provider for this model")
    session = Session(raw, provider=full, threads=threads, where=where, acceleration=acceleration)
    if full != providers.CPU and not session.placement().on_provider:
        raise providers.lacks(full, f"it takes none of the nodes of {where}")
    return session


def _opened(source: str | bytes, options: Any, chosen: Any, *, without: list[str]) -> Any:
    """ONNX Runtime's session; where a shape lies in external data, which it does not read there, in another way."""
    import onnxruntime as ort

    def opened(form: str | bytes) -> Any:
        return ort.InferenceSession(form, options, providers=chosen, enable_fallback=0, disabled_optimizers=without)

    try:
        return opened(source)
    except providers.ort_errors() as error:
        if isinstance(source, bytes) or "data from external tensors" not in str(error):
            raise
    options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(Path(source).parent))
    return opened(small_inside(Path(source)))


def open_graph(
    graph: Graph,
    *,
    threads: int = 1,
    optimize: bool = True,
    lean: bool = False,
    arena: bool = True,
    config: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Session:
    """Open a graph for running on the CPU; options as of `open_session`.

    A graph above `LARGE_BYTES` is always opened lean, and weights that still lie in the model's own external data are
    mapped from there.

    Args:
        strict: fail where ONNX Runtime refuses what its own optimizer makes of the graph. Without, for whom only values
            matter, it is then computed as it is written.

    Raises:
        ModelError: as `open_session`.
    """
    if optimize and not strict:
        try:
            return open_graph(graph, threads=threads, lean=lean, arena=arena, config=config)
        except ModelError as error:
            # a kernel that packs few-bit weights ahead gives zeros for scales that are computed, and nothing folds here
            plain = {PREPACKING_OFF: "1", **(config or {})}
            with suppress(ModelError):
                return open_graph(graph, threads=threads, optimize=False, lean=lean, arena=arena, config=plain)
            raise error from None
    if total_bytes(graph) <= LARGE_BYTES:
        return open_session(to_bytes(graph), threads=threads, optimize=optimize, lean=lean, arena=arena, config=config)
    apart = [c for c in dict.fromkeys((*graph.constants(), *graph.unused)) if _lies_apart(c)]
    if graph.source is None or total_bytes(graph) - sum(c.nbytes for c in apart) > LARGE_BYTES:
        with runnable(graph) as model:
            return open_session(model, threads=threads, optimize=optimize, lean=True, config=config)
    placed = set(apart)
    light = encode(graph, lambda c: _renamed(c) if c in placed else tensor_proto(c))
    return open_session(
        light.SerializeToString(),
        threads=threads,
        optimize=optimize,
        lean=True,
        config={EXTERNAL_DATA_FOLDER: str(graph.source.parent), **(config or {})},
    )


def _lies_apart(constant: Constant) -> bool:
    """Whether the value is untouched, in a file beside the model, and no shape that inference reads."""
    stored = constant.stored
    if constant.nbytes < EXTERNAL_TENSOR_BYTES:
        return False
    return stored is not None and not hasattr(stored.proto, "values") and bool(stored.proto.external_data)


def _renamed(constant: Constant) -> onnx.TensorProto:
    """The reference into the model's external data under the name that the initializer bears now."""
    assert constant.stored is not None
    proto = type(constant.stored.proto)()
    proto.CopyFrom(constant.stored.proto)
    proto.name = constant.name
    return proto


def clean(text: str) -> str:
    """ONNX Runtime's message without its prefix, source file names and line ends."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text.strip())
    text = re.sub(r"/\S*onnxruntime_src/\S+:\d+ ?", "", text)
    return re.sub(r"\s+", " ", text).strip()


# (marks in ONNX Runtime's message, what it means, what to do)
_LOAD_ADVICE = (
    (
        ("not a registered function/op", "No Op registered for", "Could not find an implementation"),
        "ONNX Runtime has no kernel for an operator",
        "optimize compresses what stands in front of an operator that it does not know at all; or skip what needs a "
        "run: --no-verify --no-bench, and no data",
    ),
    (
        ("guarantees* support", "is under development", "IR_VERSION", "IR version"),
        "the model is newer than this ONNX Runtime",
        "update onnxruntime, or export the model with an older opset",
    ),
    (("not acyclic",), "the graph has a cycle", "export the model again: no ONNX graph may have one"),
    (
        ("graph capture", "CUDA graph", "cuda graph"),
        "the kernels of this model cannot be recorded as a CUDA graph",
        "leave --cuda-graph out: it needs every node on the provider, and no If, Loop or Scan",
    ),
    (
        ("parsing failed", "No graph was found"),
        "this is no whole ONNX model",
        "check that the file was copied completely",
    ),
    (
        ("xternal data", "xternal_data", "xternal initializer"),
        "the external data cannot be read",
        "put the model's external data file beside it, whole and unrenamed",
    ),
)


def _load_error(error: Exception, where: str) -> ModelError:
    text = clean(str(error))
    for marks, what, do in _LOAD_ADVICE:
        if any(mark in text for mark in marks):
            return ModelError(f"{what}: {text}", where=where, do=do)
    advice = "run onnx.checker on it, or export it again"
    return ModelError(f"ONNX Runtime refuses the model: {text}", where=where, do=advice)


def _existing(path: Path) -> str:
    if not path.is_file():
        raise ModelError(f"there is no model file {path.name}", where=str(path), do="check the path")
    return str(path)


def _code(error: Exception) -> str:
    found = re.match(r"\[ONNXRuntimeError\] : \d+ : (\w+)", str(error))
    return found.group(1) if found else ""


def _port(node: Any) -> Port:
    shape = tuple(size if isinstance(size, int) else (size or None) for size in node.shape or ())
    return Port(node.name, shape, node.type)


def _fits(have: tuple[int, ...], want: tuple[int | str | None, ...]) -> bool:
    if not want:  # a scalar and an unknown rank look the same here: ONNX Runtime's own words tell
        return True
    sizes = zip(have, want, strict=False)
    return len(have) == len(want) and all(not isinstance(fixed, int) or fixed == size for size, fixed in sizes)


def _same_dtype(have: np.dtype[Any], want: np.dtype[Any]) -> bool:
    return have == want or (want.kind == "O" and have.kind in "OUS")


def _to_value(array: Array, port: Port | None) -> Any:
    import onnxruntime as ort
    from onnx import helper

    if port is None or not port.exotic or port.element in _PACKED_BITS:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array) if array.ndim else array)
    if array.dtype != port.dtype:
        raise TypeError(f"{port.name} takes {port.dtype}")  # told apart from other failures by Session.mismatch
    bits: NDArray[Any] = np.ascontiguousarray(array).view(f"uint{array.dtype.itemsize * 8}").reshape(array.shape)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, helper.np_dtype_to_tensor_dtype(array.dtype))


def _from_value(value: Any, port: Port) -> Array:
    if not port.exotic:
        array: Array = value.numpy()
        return array
    dtype, shape = port.dtype or np.dtype(np.uint8), tuple(value.shape())
    count = int(np.prod(shape))
    raw = np.frombuffer(ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()), np.uint8)
    bits = _PACKED_BITS.get(port.element)
    if bits is None:
        return raw.view(dtype).reshape(shape)
    # the first element sits in the lowest bits of its byte
    places = np.arange(0, 8, bits, dtype=np.uint8)
    codes = ((raw[:, None] >> places) & ((1 << bits) - 1)).reshape(-1)[:count].astype(np.int8)
    if not port.element.startswith("u"):
        codes = np.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes)
    return codes.astype(dtype).reshape(shape)
