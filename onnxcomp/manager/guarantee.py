"""Does a rewritten model still give what its pass promised? Runs both on a few feeds and compares."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.errors import DataError, GuaranteeError, ModelError
from onnxcomp.graph.ir import Array, Graph
from onnxcomp.graph.noops import draws
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext

ROUNDINGS = 16  # how many of a coarse type's rounding steps an equal computation may differ by
_STEPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}  # finer types stay far below any tolerance
SYNTHETIC_SAMPLES = 2  # drawn at random only to compare two graphs with each other, never to calibrate


def interface_of(graph: Graph) -> tuple[tuple[tuple[str, str, Any], ...], ...]:
    """Names, types and shapes of inputs and outputs."""
    return tuple(
        tuple((t.name, str(t.dtype), tuple(t.shape) if t.shape is not None else None) for t in tensors)
        for tensors in (graph.inputs, graph.outputs)
    )


class Probe:
    """Compares graphs on the same few feeds: of the calibration data where there is any, else synthetic ones."""

    def __init__(self, context: PassContext, *, enabled: bool = True) -> None:
        self.context = context
        self.enabled = enabled
        self._feeds: list[dict[str, Array]] | None = None
        self._last: tuple[Graph, list[dict[str, Array]]] | None = None
        self._rounded: tuple[Graph, list[dict[str, Array]]] | None = None

    def compare(self, item: Pass, before: Graph, after: Graph, outcome: Outcome) -> None:
        """Hold a pass to EXACT or CLOSE.

        ONNX Runtime computes chains of half-precision nodes in float32 and rounds where a chain ends, so that taking a
        node out of one moves a rounding. A model with such types is held to a few of its rounding steps.

        A model that ONNX Runtime cannot run, or that draws random numbers, cannot be compared; that is noted.

        Raises:
            GuaranteeError: names the output that differs and by how much.
        """
        if not self.enabled:
            return
        if any(draws(node, self.context.operators, before.opset) for node in before.walk()):
            outcome.notes.append("guarantee not checked: the model draws random numbers")
            return
        try:
            expected = self.outputs(before)
        except (ModelError, DataError) as error:
            outcome.notes.append(f"guarantee not checked: {error.what}")
            return
        try:
            actual = self.outputs(after)
        except (ModelError, DataError) as error:
            raise GuaranteeError(
                f"after {item.name} the model no longer runs: {error.what}", where=error.where, do="report this"
            ) from error
        step = ROUNDINGS * coarsest_step(before)
        close = item.tolerance if item.promises() is Guarantee.CLOSE else 0.0
        for wanted, got in zip(expected, actual, strict=True):
            for name in wanted:
                how = difference(wanted[name], got[name], max(close, step))
                if how and not (close and self._is_rounding(before, name, wanted[name], got[name])):
                    raise _broken(item, name, how)

    def outputs(self, graph: Graph) -> list[dict[str, Array]]:
        """What a graph gives on each feed; kept for the graph asked last.

        Raises:
            ModelError, DataError: ONNX Runtime does not run it.
        """
        if self._last is not None and self._last[0] is graph:
            return self._last[1]
        outputs = self._run(graph)
        self._last = (graph, outputs)
        return outputs

    def _run(self, graph: Graph) -> list[dict[str, Array]]:
        from onnxcomp.runtime.session import open_graph

        feeds = self._probe_feeds(graph)
        # repacked weights round differently, and only initializers are repacked: that is not the graph's doing
        session = open_graph(graph, threads=self.context.threads, optimize=False, lean=True)
        return [session.run(feed) for feed in feeds]

    def _is_rounding(self, before: Graph, name: str, wanted: Array, got: Array) -> bool:
        """Whether an output moves as far when each use of each weight is rounded anew, as where large values cancel."""
        if not (isinstance(wanted, np.ndarray) and isinstance(got, np.ndarray)) or wanted.shape != got.shape:
            return False
        if not np.isfinite(wanted).all() or not np.isfinite(got).all():
            return False
        if self._rounded is None or self._rounded[0] is not before:
            try:
                self._rounded = (before, self._run(rounded_anew(before, self.context.seed)))
            except (ModelError, DataError):
                return False
        outputs = [outputs[name].astype(np.float64) for outputs in self.outputs(before)]
        moved = [np.abs(a - b[name]).max(initial=0.0) for a, b in zip(outputs, self._rounded[1], strict=True)]
        error = np.abs(wanted.astype(np.float64) - got).max(initial=0.0)
        return bool(error <= ROUNDINGS * max(moved, default=0.0))

    def _probe_feeds(self, graph: Graph) -> list[dict[str, Array]]:
        if self._feeds is None:
            if self.context.calibration is not None:
                self._feeds = [next(iter(self.context.calibration.batches(2)))]
            else:
                from onnxcomp.data.inputs import interface_of as ports_of
                from onnxcomp.data.open import random_data

                inputs = ports_of(graph).inputs
                data = random_data(inputs, SYNTHETIC_SAMPLES, self.context.seed, self.context.sample_shapes)
                self._feeds = list(data.samples().batches(SYNTHETIC_SAMPLES))
        return self._feeds


def difference(wanted: Any, got: Any, allowed: float) -> str:
    """How an output differs, in words; empty where by no more than `allowed`, relative to its largest value."""
    if not isinstance(wanted, np.ndarray):
        return "" if repr(wanted) == repr(got) else "its value changed"
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return f"{wanted.dtype}{wanted.shape} became {got.dtype}{got.shape}"
    if wanted.tobytes() == got.tobytes() if wanted.dtype != object else np.array_equal(wanted, got):
        return ""
    if wanted.dtype == object:
        return "its value changed"
    error = relative_error(wanted, got)
    return "" if allowed and error <= allowed else f"relative error {error:.3g}"


def rounded_anew(graph: Graph, seed: int) -> Graph:
    """A copy in which each use of each float32 weight is moved by up to one rounding step, on its own, at random."""
    generator = np.random.default_rng(seed)
    copy = graph.clone()
    for node in list(copy.walk()):
        for port in range(len(node.inputs)):
            constant = node.constant(port)
            if constant is None or constant.dtype != np.float32 or constant in copy.kept_inputs:
                continue
            own = copy.own_constant(node, port)
            assert own is not None
            steps = generator.integers(-1, 2, own.shape).astype(np.float32) * np.float32(2.0**-23)
            own.values = np.asarray(own.values * (1 + steps), np.float32)
    return copy


def coarsest_step(graph: Graph) -> float:
    """Relative step of the coarsest floating-point type that the graph computes in: 2^-10 for float16."""
    names = {t.dtype.name for t in graph.tensors().values() if t.dtype is not None}
    return max((step for name, step in _STEPS.items() if name in names), default=0.0)


def relative_error(wanted: Array, got: Array) -> float:
    """Largest absolute difference over the largest magnitude of `wanted`; infinite where only one is finite."""
    a, b = np.asarray(wanted, np.float64), np.asarray(got, np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(a[finite]).max())
    return float(np.abs(a[finite] - b[finite]).max()) / (scale or 1.0)


def _broken(item: Pass, output: str, how: str) -> GuaranteeError:
    return GuaranteeError(
        f"{item.name} promises {item.promises().value} outputs and broke it: {how}",
        where=f"output {output}",
        do="report this pass to its author; run without it meanwhile",
    )
