"""Which options does a GPU provider get? The fields of one dataclass, from which the flags of the commands come too.

Names of options are those of ONNX Runtime's CUDA and TensorRT providers; the rules that are not theirs: a model with Q
and DQ needs `trt_int8_enable` on TensorRT 10, nodes that TensorRT leaves run on CUDA, and a flag that a provider does
not have is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcomp.errors import UsageError
from onnxcomp.runtime.providers import CUDA, OPENVINO, TENSORRT, short_name
from onnxcomp.settings import setting

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

Model = Path | str | bytes
Chain = list[tuple[str, dict[str, str]]]
BUILDER_LEVELS = range(6)  # of TensorRT: 5 tries most and builds slowest, 3 is its default
QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})


def _option(default: Any, help_text: str, *providers: str, metavar: str = "") -> Any:
    return setting(help_text, default=default, metavar=metavar, group="GPU", providers=providers)


@dataclass(frozen=True)
class Acceleration:
    """What is asked of a GPU provider beyond its name; the defaults ask for nothing.

    Raises:
        UsageError: a value that its option cannot take.
    """

    fp16: bool = _option(False, "TensorRT may compute in half precision.", TENSORRT)
    sparsity: bool = _option(False, "TensorRT may use 2:4 sparse kernels where weights allow them.", TENSORRT)
    cuda_graph: bool = _option(False, "Record the kernels of a run once and replay them.", CUDA, TENSORRT)
    exact_float32: bool = _option(False, "CUDA: float products without TF32, which keeps 10 bits of 23.", CUDA)
    builder_level: int | None = _option(
        None, "TensorRT: how long the builder searches, 0 to 5; its own default is 3.", TENSORRT, metavar="N"
    )
    engine_cache: Path | None = _option(
        None, "TensorRT: folder where engines and kernel timings are kept.", TENSORRT, metavar="DIR"
    )
    profile: tuple[str, ...] = _option(
        (),
        "TensorRT: sizes of an input with free dimensions, each like 1x3x224x224; again for each input.",
        TENSORRT,
        metavar="NAME=MIN:OPT:MAX",
    )
    provider_option: tuple[str, ...] = _option(
        (), "Any further option of the provider, by its own name.", CUDA, TENSORRT, OPENVINO, metavar="KEY=VALUE"
    )

    def __post_init__(self) -> None:
        if self.builder_level is not None and self.builder_level not in BUILDER_LEVELS:
            raise UsageError(
                "--builder-level is 0 to 5", where=f"--builder-level {self.builder_level}", do="see --help"
            )
        if self.engine_cache is not None:
            object.__setattr__(self, "engine_cache", Path(self.engine_cache))
        for name in ("profile", "provider_option"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _profiles(self.profile)
        self.device_id  # noqa: B018 (reads the pairs, and says what is wrong with them)

    @property
    def given(self) -> list[str]:
        """Names of the fields that are not as by default."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]

    @property
    def device_id(self) -> int:
        """Which of several GPUs, as a further option of the provider says; 0 by default."""
        text = _pairs(self.provider_option).get("device_id", "0")
        if not text.isdigit():
            raise UsageError(f"device_id is a number, not {text!r}", where="--provider-option", do="write device_id=1")
        return int(text)

    @property
    def pairs(self) -> Mapping[str, str]:
        """The further options of the provider."""
        return _pairs(self.provider_option)

    def check(self, provider: str) -> None:
        """Raise where a field was set that `provider` (a full name) does not have.

        Raises:
            UsageError: naming the field and the providers that have it.
        """
        fields = {f.name: f for f in dataclasses.fields(self)}
        for name in self.given:
            takers = fields[name].metadata["providers"]
            if provider not in takers:
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{short_name(provider)} has no {flag}",
                    where=f"{flag} --provider {short_name(provider)}",
                    do=f"it is for --provider {' or '.join(map(short_name, takers))}: {fields[name].metadata['help']}",
                )

    def meant_for(self, provider: str) -> Acceleration:
        """Only what `provider` has: for tables over several providers."""
        others: dict[str, Any] = {
            f.name: f.default
            for f in dataclasses.fields(self)
            if provider not in f.metadata["providers"] and f.name in self.given
        }
        return replace(self, **others)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: the fields that are not as by default."""
        return {name: str(v) if isinstance(v := getattr(self, name), Path) else v for name in self.given}


def reference(provider: str) -> Acceleration:
    """Options under which a provider (a full name) computes most exactly: what others are compared with."""
    return replace(PLAIN, exact_float32=provider == CUDA)


def chain(provider: str, acceleration: Acceleration, *, quantized: bool) -> Chain:
    """The providers of a session in order, each with its options; ONNX Runtime adds the CPU by itself.

    Args:
        provider: a full name.
        quantized: the model has Q and DQ.

    Raises:
        UsageError: the provider does not have an option that was set.
    """
    acceleration.check(provider)
    own = {CUDA: _cuda, TENSORRT: _tensorrt}.get(provider)
    options = dict(own(acceleration, quantized)) if own is not None else {}
    options |= acceleration.pairs
    # what TensorRT leaves runs on CUDA; a graph of CUDA's own would capture it twice
    same = {"device_id": str(acceleration.device_id)} if acceleration.device_id else {}
    return [(provider, options), (CUDA, same)] if provider == TENSORRT else [(provider, options)]


def is_quantized(model: Model) -> bool:
    """Whether a model holds Q or DQ nodes, bodies and functions included; weights outside the file are not read."""
    import onnx

    from onnxcomp.graph.io import read_proto  # only now: flags are read from this module before anything is loaded

    proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else read_proto(Path(model))
    nodes = [*_nodes(proto.graph), *(node for function in proto.functions for node in function.node)]
    return any(node.op_type in QUANTIZING for node in nodes)


def gpu(provider: str) -> bool:
    """Whether inputs and outputs of this provider (a full name) are kept on a CUDA device."""
    return provider in (CUDA, TENSORRT)


def _cuda(acceleration: Acceleration, quantized: bool) -> Iterator[tuple[str, str]]:
    del quantized
    if acceleration.cuda_graph:
        yield "enable_cuda_graph", "1"
    if acceleration.exact_float32:
        yield "use_tf32", "0"


def _tensorrt(acceleration: Acceleration, quantized: bool) -> Iterator[tuple[str, str]]:
    switches = {
        "trt_fp16_enable": acceleration.fp16,
        "trt_int8_enable": quantized,
        "trt_sparsity_enable": acceleration.sparsity,
        "trt_cuda_graph_enable": acceleration.cuda_graph,
    }
    yield from ((key, "1") for key, on in switches.items() if on)
    if acceleration.builder_level is not None:
        yield "trt_builder_optimization_level", str(acceleration.builder_level)
    if acceleration.engine_cache is not None:
        folder = str(acceleration.engine_cache.resolve())
        for kind in ("engine", "timing"):
            yield f"trt_{kind}_cache_enable", "1"
            yield f"trt_{kind}_cache_path", folder
    profiles = _profiles(acceleration.profile)
    for index, end in enumerate(("min", "opt", "max")):
        if profiles:
            yield f"trt_profile_{end}_shapes", ",".join(f"{name}:{sizes[index]}" for name, sizes in profiles.items())


def _profiles(texts: tuple[str, ...]) -> dict[str, list[str]]:
    """`NAME=MIN:OPT:MAX` -> {name: [min, opt, max]}; names may hold colons and equal signs."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, separator, sizes = text.rpartition("=")
        parts = [part.lower() for part in sizes.split(":")]
        shapes = [part.split("x") for part in parts]
        fits = len(parts) == 3 and len({len(shape) for shape in shapes}) == 1
        if not separator or not name or not fits or not all(s.isdigit() and int(s) for shape in shapes for s in shape):
            raise UsageError(
                f"{text!r} is no profile", where="--profile", do="write NAME=1x3x224x224:8x3x224x224:32x3x224x224"
            )
        ordered = zip(*([int(size) for size in shape] for shape in shapes), strict=True)
        if any(not low <= best <= high for low, best, high in ordered):
            raise UsageError(f"{text!r}: sizes must not fall", where="--profile", do="give min <= opt <= max")
        found[name] = parts
    return found


def _pairs(texts: tuple[str, ...]) -> Mapping[str, str]:
    pairs = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"{text!r} is no KEY=VALUE", where="--provider-option", do="write e.g. device_id=1")
        pairs[key.strip()] = value.strip()
    return pairs


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


PLAIN = Acceleration()
