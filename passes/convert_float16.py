"""Half precision where it holds what the model computes: float16 nodes, float32 at the interface, few casts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import onnx

from onnxcomp.errors import ModelError
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.port_types import HALF, Port, built_of_others, made_from_attributes, ports, takes_half
from onnxcomp.graph.positions import positional
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, Stage, option
from onnxcomp.manager.raising import raise_opset
from onnxcomp.ops.record import no_macs
from onnxcomp.runtime.activations import Activation, collect
from onnxcomp.runtime.types import learn_types
from onnxcomp.targets.base import Target

SINGLE, HALF_DTYPE = np.dtype(np.float32), np.dtype(np.float16)
LARGEST = 65504.0
LEAST = 2.0**-12  # a tensor that stays below it keeps fewer than 12 bits: the smallest numbers lie 2**-24 apart
WEIGHT_LOSS = 2.0**-10  # rounding alone costs about 2^-12 of a weight's norm; more means that small values vanish
UNSEEN = "no calibration data: nothing is known of activations beyond 65504"
HOST = (
    "ONNX Runtime's CPU provider computes chains of half-precision nodes in float32: a GPU, which rounds after each "
    "node, differs a little more than figures taken here"
)
QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
RESERVED = "InsertedPrecisionFreeCast_"  # ONNX Runtime's own casts around half-precision nodes are called so, unasked
HALF_SCALES_OPSET = 19  # before it, scales of Q and DQ are float32, and so is what DQ gives


@dataclass(frozen=True)
class ConvertFloat16(Pass):
    """Nodes compute in float16 where the operator has it and the calibration data shows that the numbers fit.

    Inputs and outputs of the model keep their types. A node stays float32 when a tensor that it reads or writes comes
    within `headroom` of 65,504 on the calibration data, or lies so low that half precision has no digits for it; when
    its weights do not fit; when it works on positions or phases, which grow with length or size; when it holds a body
    (If, Loop, Scan) or is no operator of the standard; and when it stands apart from every product, where casts cost
    more than they save. Which ports may be float16 comes from the ONNX schema (the scales of Resize may not). One Cast
    serves all readers of a tensor, and no two stand in a row.

    P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, on the range and its ends.
    """

    name: ClassVar[str] = "convert-float16"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY
    stage: ClassVar[Stage] = Stage.STORED

    headroom: float = option(
        4.0, "a tensor stays float32 when this times its largest value on the calibration data exceeds 65504", minimum=1
    )
    constants: Literal["keep", "saturate"] = option(
        "keep",
        "a constant beyond 65504: keep its nodes float32, or saturate it well inside (masks of -3.4e38)",
        search=("keep", "saturate"),
    )

    @classmethod
    def suits(cls, target: Target) -> bool:  # noqa: D102 (as in Pass)
        return target.half

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Convert in place.

        Raises:
            UsageError: a glob matches nothing.
            ModelError: ONNX Runtime cannot run the model on the calibration data.
        """
        return _Converter(self, graph, context).run()


@dataclass
class _Plan:
    """Which ports of which nodes become half. `why`: nodes that stay float32."""

    half: dict[Node, list[Port]] = field(default_factory=dict)
    why: dict[Node, str] = field(default_factory=dict)

    def leave(self, node: Node, why: str) -> None:
        """Let a node stay float32, for the first reason that was found."""
        if self.half.pop(node, None) is not None:
            self.why[node] = why


class _Converter:
    """One run of the pass."""

    def __init__(self, options: ConvertFloat16, graph: Graph, context: PassContext) -> None:
        self.options, self.graph, self.context = options, graph, context
        self.outcome = Outcome()
        self.wanted = options.selects(graph)
        self.shapes: Shapes = Shapes({})
        self.casts = 0

    def run(self) -> Outcome:
        if self.options.constants == "saturate":
            self._saturate()
        plan = self._plan()
        if plan.half and any(node.op in QUANTIZING for node in self.graph.nodes):
            raised = raise_opset(self.graph, HALF_SCALES_OPSET, self.context)
            for line in raised:
                self.outcome.change("opset", line)
            if raised:
                self.outcome.notes = [note for note in self.outcome.notes if note != UNSEEN] + raised
                plan = self._plan()
        self._rewrite(plan)
        self._report(plan)
        return self.outcome

    def _plan(self) -> _Plan:
        given = shape_tools.one_sample(self.graph, self.context.sample_shapes)
        self.shapes = shape_tools.infer(self.graph, given)
        self._learn_types()
        plan = self._possible()
        self._keep_counting(plan)
        for node, why in positional(self.graph, self.shapes, self.context.operators).items():
            plan.leave(node, why)
        self._fit_constants(plan)
        self._fit_activations(plan)
        self._drop_islands(plan)
        return plan

    def _learn_types(self) -> None:
        """Ask ONNX Runtime for types that onnx does not infer, behind its own operators."""
        try:
            learn_types(self.graph, self.shapes, self.context.threads)
        except ModelError as error:
            self.outcome.notes.append(f"types behind operators that onnx does not know stay unknown: {error.what}")

    # -- which nodes -------------------------------------------------------------------------------------------

    def _possible(self) -> _Plan:
        """Nodes that have a half form by the standard."""
        plan = _Plan()
        inner = {tensor for node in self.graph.nodes for body in node.bodies for tensor in body.outputs}
        for node in self.graph.nodes:
            floats = [t for t in (*node.inputs, *node.outputs) if t.name and self._single(t)]
            if not floats:
                continue
            found = ports(node, self.graph.opset, self.context.operators)
            half = self._half_ports(node, found or [])
            if node.bodies:
                plan.why[node] = f"{node.op} holds a body, which stays float32"
            elif self.graph.is_function(node):
                plan.why[node] = "it calls a local function, which stays as it is"
            elif found is None:
                plan.why[node] = f"the ONNX standard does not describe {node.op} of {node.domain or 'this opset'}"
            elif not half or not takes_half(node, self.graph.opset, self.shapes):
                plan.why[node] = f"{node.op} has no half-precision form in opset {self.graph.opset}"
            elif not self.context.operators.facts(node).half_kernel(node):
                plan.why[node] = f"{node.op} has no half-precision form with these attributes in ONNX Runtime"
            elif not self.wanted(node):
                plan.why[node] = "not selected by include and exclude"
            elif any(tensor in inner for tensor in node.outputs):
                plan.why[node] = "a body gives what it computes"
            else:
                plan.half[node] = half
        return plan

    def _half_ports(self, node: Node, found: list[Port]) -> list[Port]:
        """The float32 ports that may be float16; all ports of a type variable, or none.

        Where the standard builds the operator of others, all that could be: its type variables meet inside, and strict
        inference does not see where (the product of Attention's weights and its values, say).
        """
        if not all(port.takes_tensors for port in found):
            return []  # a sequence holds tensors of the type that its makers and readers agreed on
        own = {port: _variable(node, port) for port in found}
        fixed = {own[port] for port in found if HALF not in port.allowed}
        fixed |= {own[port] for port in found if (t := port.tensor(node)) is not None and not self._single(t)}
        if not _casts_from_float(node):
            fixed |= made_from_attributes([replace(port, variable=own[port]) for port in found])
        there = [p for p in found if p.tensor(node) is not None and own[p]]
        half = [p for p in there if own[p] not in fixed]
        if built_of_others(node, self.graph.opset) and any(HALF in p.allowed for p in there if p not in half):
            return []
        return half

    def _single(self, tensor: Tensor) -> bool:
        return self.shapes.dtype(tensor) == SINGLE

    def _keep_counting(self, plan: _Plan) -> None:
        """Leave float32 what integers are made of, back to the product it comes from: positions must stay exact."""
        waiting = [node for node in plan.half if node.op == "Cast" and self._counts(node.outputs[0])]
        while waiting:
            node = waiting.pop()
            if node in plan.half:
                plan.leave(node, "integers are made of it, and half precision has none beyond 2048")
                makers = [t.producer for t in node.inputs if t.producer is not None]
                waiting += [] if self._multiplies(node) else makers

    def _counts(self, tensor: Tensor) -> bool:
        dtype = self.shapes.dtype(tensor)
        return dtype is not None and dtype.kind in "iu"

    def _fit_constants(self, plan: _Plan) -> None:
        checked: dict[tuple[Constant, bool], str] = {}
        for node, half in list(plan.half.items()):
            scales = node.op in QUANTIZING
            for port in half:
                tensor = port.tensor(node)
                if not isinstance(tensor, Constant):
                    continue
                key = (tensor, scales)
                if key not in checked:
                    kept = tensor in self.graph.kept_inputs
                    checked[key] = "is an input of the model as well" if kept else unfit(tensor.values, each=scales)
                if checked[key]:
                    plan.leave(node, f"its constant {tensor.name} {checked[key]}")

    def _fit_activations(self, plan: _Plan) -> None:
        """Keep nodes float32 whose tensors do not fit on the calibration data."""
        samples = self.context.calibration
        if samples is None or not len(samples):
            self.outcome.notes.append(UNSEEN)
            return
        touched: dict[Variable, list[Node]] = defaultdict(list)
        for node, half in plan.half.items():
            for port in half:
                tensor = port.tensor(node)
                if isinstance(tensor, Variable):
                    touched[tensor].append(node)
        seen = collect(
            self.graph,
            [tensor.name for tensor in touched],
            samples,
            threads=self.context.threads,
            progress=self.context.progress,
        )
        for tensor, nodes in touched.items():
            why = self._unfit_range(seen[tensor.name])
            for node in nodes if why else ():
                side = "its output" if tensor in node.outputs else "its input"
                plan.leave(node, f"{side} {tensor.name} {why}")

    def _unfit_range(self, seen: Activation) -> str:
        largest = max(abs(seen.minimum), abs(seen.maximum))
        if largest * self.options.headroom > LARGEST:
            return f"reaches {largest:.3g}; half precision ends at 65504"
        if 0 < largest < LEAST:
            return f"stays below {largest:.1g}, where half precision has no digits left"
        return ""

    def _drop_islands(self, plan: _Plan) -> None:
        """Leave groups of nodes float32 that hold no product: a cast to and fro costs more than they save."""
        group: dict[Node, Node] = {node: node for node in plan.half}

        def root(node: Node) -> Node:
            while group[node] is not node:
                group[node] = group[group[node]]
                node = group[node]
            return node

        for node, half in plan.half.items():
            for port in half:
                tensor = port.tensor(node)
                maker = tensor.producer if isinstance(tensor, Variable) and not port.output else None
                if maker in group:
                    group[root(node)] = root(maker)
        working = {root(node) for node in plan.half if self._multiplies(node)}
        for node in [node for node in plan.half if root(node) not in working]:
            plan.leave(node, "no product in half precision stands beside it: casts would cost more than it saves")

    def _multiplies(self, node: Node) -> bool:
        return self.context.operators.facts(node).macs is not no_macs

    # -- rewriting ---------------------------------------------------------------------------------------------

    def _saturate(self) -> None:
        """Bring constants beyond the range so far inside it that sums with others keep the headroom."""
        level = np.float32(2.0 ** math.floor(math.log2(LARGEST / (2 * self.options.headroom))))
        for constant in self.graph.constants():
            if constant.dtype != SINGLE or constant in self.graph.kept_inputs:
                continue
            values = constant.values
            beyond = np.abs(values) > LARGEST
            if beyond.any():
                count = int(beyond.sum())
                constant.values = np.where(beyond, np.copysign(level, values), values)
                what = f"{count} of {values.size} values beyond 65504 saturated at {level:g}"
                self.outcome.change(constant, what)
                self.outcome.notes.append(f"{constant.name}: {what}")

    def _rewrite(self, plan: _Plan) -> None:
        made: dict[Tensor, None] = {}
        places: dict[Tensor, list[tuple[Node, int]]] = defaultdict(list)
        for node, half in plan.half.items():
            for port in half:
                tensor = port.tensor(node)
                assert tensor is not None
                if port.output:
                    made[tensor] = None
                else:
                    places[tensor].append((node, port.index))
        for tensor, ends in places.items():
            if isinstance(tensor, Constant):
                self._half_constant(tensor, ends)
            elif tensor not in made:
                self._cast_down(tensor, ends)
        for tensor in made:
            assert isinstance(tensor, Variable)
            self._cast_up(tensor, places.get(tensor, []))
        for node, half in plan.half.items():
            if node.op == "Cast" and any(port.output for port in half):
                node.attrs["to"] = int(onnx.TensorProto.FLOAT16)
        if plan.half:
            self._free_names()

    def _free_names(self) -> None:
        """Rename what a model that ONNX Runtime wrote calls as its new casts will be, which it would not load."""
        for tensor in (t for node in self.graph.walk() for t in node.outputs):
            if tensor.name.startswith(RESERVED) and not self.graph.is_output(tensor):
                tensor.name = self.graph.unique_name(f"cast_{tensor.name.removeprefix(RESERVED)}")

    def _half_constant(self, constant: Constant, ends: list[tuple[Node, int]]) -> None:
        values = constant.values.astype(HALF_DTYPE)
        if len(constant.outputs) == len(ends) and not self.graph.is_output(constant):
            constant.values = values
            return
        copy = self.graph.add_constant(f"{constant.name}_half", values)
        for node, port in ends:
            node.inputs[port] = copy

    def _cast_down(self, tensor: Variable, ends: list[tuple[Node, int]]) -> None:
        """One Cast to half for all readers that want it."""
        cast = self._cast(tensor, onnx.TensorProto.FLOAT16, 1)
        cast.outputs[0].dtype, cast.outputs[0].shape = HALF_DTYPE, tensor.shape
        for node, port in ends:
            node.inputs[port] = cast.outputs[0]

    def _cast_up(self, tensor: Variable, ends: list[tuple[Node, int]]) -> None:
        """A half tensor takes its readers along; one Cast gives the old one back where float32 is still read."""
        maker = tensor.producer
        assert maker is not None
        if len(tensor.outputs) == len(ends) and not self.graph.is_output(tensor):
            tensor.dtype = HALF_DTYPE
            return
        half = Variable(self.graph.unique_name(f"{tensor.name}_half"), HALF_DTYPE, tensor.shape)
        maker.outputs[maker.outputs.index(tensor)] = half
        for node, port in ends:
            node.inputs[port] = half
        self._cast(half, onnx.TensorProto.FLOAT, [tensor])

    def _cast(self, tensor: Variable, to: int, outputs: list[Variable] | int) -> Node:
        self.casts += 1
        return self.graph.add_node("Cast", [tensor], name=f"{tensor.name}_cast", attrs={"to": int(to)}, outputs=outputs)

    def _report(self, plan: _Plan) -> None:
        for node in self.graph.nodes:
            if node in plan.half:
                self.outcome.change(node, "float32 to float16")
            elif node in plan.why:
                self.outcome.skip(node, plan.why[node])
        total = len(plan.half) + len(plan.why)
        self.outcome.summary = f"{len(plan.half)} of {total} float32 nodes in half precision"
        if plan.half:
            self.outcome.notes.append(HOST)
            self.outcome.summary += f", {self.casts} casts added"
        kinds = Counter(_kind(why) for why in plan.why.values())
        if kinds:
            words = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            self.outcome.summary += f"; kept float32: {words}"


def unfit(values: Array, *, each: bool = False) -> str:
    """Why a constant does not go into half precision, in words; empty when it does.

    Args:
        each: every value has to keep its digits, as scales must; else the array as a whole.
    """
    exact = np.asarray(values, np.float64)
    finite = exact[np.isfinite(exact) & (exact != 0)]
    if not finite.size:
        return ""
    largest = float(np.abs(finite).max())
    if largest > LARGEST:
        return f"reaches {largest:.3g}; half precision ends at 65504"
    lost = np.abs(finite - finite.astype(HALF_DTYPE).astype(np.float64))
    share = float((lost / np.abs(finite)).max() if each else np.linalg.norm(lost) / np.linalg.norm(finite))
    if share > WEIGHT_LOSS:
        return f"holds values as small as {float(np.abs(finite).min()):.1g}, where half precision has no digits left"
    return ""


def _variable(node: Node, port: Port) -> str:
    """The type variable of a port. What DequantizeLinear gives has its scale's type, though newer schemas hide it."""
    if node.op == "DequantizeLinear" and port.output and port.variable and "output_dtype" not in node.attrs:
        found = ports(node, 19) or []
        return next((p.variable for p in found if not p.output and p.index == 1), port.variable)
    return port.variable


def _casts_from_float(node: Node) -> bool:
    """Whether a node is a Cast to float32: its type can be chosen anew."""
    return node.op == "Cast" and bool(node.attrs.get("to") == onnx.TensorProto.FLOAT)


def _kind(why: str) -> str:
    """A reason without names and numbers, for the summary."""
    marks: Iterable[tuple[str, str]] = (
        ("half precision ends", "beyond 65504"),
        ("digits", "too small for its digits"),
        ("body", "with bodies"),
        ("positions", "of positions"),
        ("phase", "of phases"),
        ("no product", "apart from products"),
        ("no half-precision form", "without a half form"),
        ("standard", "not of the standard"),
    )
    return next((kind for mark, kind in marks if mark in why), "left alone")
