"""Which execution providers can run here, and where did the nodes of a session really land?

`onnxruntime.get_available_providers()` names what the build contains, not what this machine can run, and a session
that cannot load a provider runs on the CPU without an error. So a provider counts as usable only after a small model
has run on it: fallback off, the provider in `session.get_providers()`, and the node assigned to it by ONNX Runtime's
own record.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxcomp.errors import EnvironmentLacksError, UsageError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINO"  # no provider of ONNX Runtime's: OpenVINO's own runtime, which reads ONNX itself
SUFFIX = "ExecutionProvider"
OPENVINO_REMEDY = 'pip install "onnxcomp[openvino]"'
# the session option without which `get_provider_graph_assignment_info` refuses to answer
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"

_REMEDY = {
    CUDA: 'pip install "onnxruntime-gpu[cuda,cudnn]" on a machine with an NVIDIA GPU and its driver',
    TENSORRT: "install NVIDIA TensorRT 10 and put its libraries (libnvinfer.so.10) on the library path",
}


@dataclass(frozen=True)
class Usability:
    """Whether a provider ran a small model here; if not, why, and what would help."""

    provider: str
    usable: bool
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Placement:
    """How many nodes run on the provider that was asked for, and which operators run elsewhere.

    `counts`: nodes by provider, that one included.
    """

    provider: str
    on_provider: int
    elsewhere: Counter[str]
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def nodes_elsewhere(self) -> int:
        """Nodes that another provider, usually the CPU, runs."""
        return self.elsewhere.total()


def full_name(name: str) -> str:
    """`cpu`, `cuda`, `tensorrt` or any of ONNX Runtime's names, in any case -> ONNX Runtime's full name.

    `openvino` is OpenVINO's own runtime; ONNX Runtime's provider of that name is asked for by its full name.

    Raises:
        UsageError: ONNX Runtime knows no such provider.
    """
    import onnxruntime as ort

    if name.lower() == OPENVINO.lower():
        return OPENVINO
    known: dict[str, str] = {full.removesuffix(SUFFIX).lower(): full for full in ort.get_all_providers()}
    found = known.get(name.lower().removesuffix(SUFFIX.lower()))
    if found is None:
        raise UsageError(
            f"there is no execution provider named {name!r}",
            where="--provider",
            do=f"one of: {', '.join(sorted({*known, OPENVINO.lower()}))}",
        )
    return found


def short_name(provider: str) -> str:
    """`CUDAExecutionProvider` -> `cuda`; ONNX Runtime's own provider for OpenVINO keeps its full name."""
    short = provider.removesuffix(SUFFIX).lower()
    return provider if short == OPENVINO.lower() and provider != OPENVINO else short


def require(name: str) -> str:
    """The full name of a provider that is proven to run here.

    Raises:
        UsageError: ONNX Runtime knows no such provider.
        EnvironmentLacksError: it does not run on this machine; it never falls back to another one.
    """
    provider = full_name(name)
    if provider == CPU:
        return provider
    probe = usability(provider)
    if not probe.usable:
        raise lacks(provider, probe.reason, probe.remedy)
    return provider


def lacks(provider: str, reason: str, remedy: str = "") -> EnvironmentLacksError:
    """The error for a provider that was asked for and cannot be used."""
    return EnvironmentLacksError(
        f"{provider} cannot run here: {reason}",
        where=f"--provider {short_name(provider)}",
        do=remedy or "leave --provider out to run on the CPU; onnxcomp doctor lists what this machine can run",
    )


def built_in() -> list[str]:
    """Full names of the providers that the installed ONNX Runtime was built with, whether or not they run here."""
    import onnxruntime as ort

    found: list[str] = ort.get_available_providers()
    return found


@functools.cache
def usability(provider: str) -> Usability:
    """Run one MatMul on `provider` (a full name) and see where it ran. The answer is kept for the process."""

    if provider == OPENVINO:
        from onnxcomp.runtime import openvino

        return openvino.usability()
    remedy = _REMEDY.get(provider, f"a build of ONNX Runtime that contains {provider}")
    if provider not in built_in():
        return Usability(provider, False, "this build of ONNX Runtime does not contain it", remedy)
    try:
        with quiet_loading(provider):
            session = _probe_session(provider)
    except ort_errors() as error:
        reason = missing_library(provider) or str(error).splitlines()[0]
        return Usability(provider, False, reason, remedy)
    if provider not in session.get_providers():
        reason = missing_library(provider) or "its libraries load, but no usable device or driver was found"
        return Usability(provider, False, reason, remedy)
    if not placement(session, provider).on_provider:
        return Usability(provider, False, "it loads, but takes no MatMul", remedy)
    return Usability(provider, True)


def placement(session: Any, provider: str) -> Placement:
    """Where the nodes of an `onnxruntime.InferenceSession`, opened with RECORD_ASSIGNMENT, run."""
    counts, elsewhere = Counter[str](), Counter[str]()
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        counts[part.ep_name] += len(nodes)
        if part.ep_name != provider:
            elsewhere.update(node.op_type for node in nodes)
    return Placement(provider, counts[provider], elsewhere, +counts)


@contextlib.contextmanager
def quiet_loading(provider: str) -> Iterator[None]:
    """Load a provider without its log lines on the terminal: a failure is told by an error of ours."""
    import onnxruntime as ort

    if provider == CPU:
        yield
        return
    fatal, error = 4, 3
    ort.set_default_logger_severity(fatal)
    try:
        if provider in (CUDA, TENSORRT) and hasattr(ort, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                ort.preload_dlls()
        yield
    finally:
        ort.set_default_logger_severity(error)


def missing_library(provider: str) -> str:
    """What the dynamic loader says about a provider's library; empty when it loads or there is none."""
    from onnxruntime import capi

    folder = Path(next(iter(capi.__path__)))
    shared = next(folder.glob("*onnxruntime_providers_shared.*"), None)
    library = next(folder.glob(f"*onnxruntime_providers_{short_name(provider)}.*"), None)
    if library is None:
        return ""
    try:
        if shared is not None:
            ctypes.CDLL(str(shared), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return ""


def ort_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own classes, which share no base below Exception, and those of its Python layer."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = (value for value in vars(state).values() if isinstance(value, type))
    own = tuple(value for value in found if issubclass(value, Exception))
    return (RuntimeError, ValueError, TypeError, *own)


def _probe_session(provider: str) -> Any:
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    size = 16
    value = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=[size, size])
    weight = numpy_helper.from_array(np.eye(size, dtype=np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="probe")
    graph = helper.make_graph([node], "probe", [value("x")], [value("y")], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=[provider], enable_fallback=0)
    session.run(None, {"x": np.ones((size, size), np.float32)})
    return session
