"""Does the manager hold passes to what they promise, and say who broke what?"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import builders
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcomp.errors import DataError, EnvironmentLacksError, GuaranteeError, ModelError, UsageError
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext, option
from onnxcomp.manager.guarantee import coarsest_step, relative_error
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.testing import ContractError, check_pass

FLOAT = builders.FLOAT


@dataclass(frozen=True)
class Edit(Pass):
    """Does what a test asks for; `promise` is what it promises."""

    name: ClassVar[str] = "edit"
    what: str = option("nothing", "the edit to make")
    promise: str = option("exact", "the guarantee")
    need: str = option("", "what it needs")

    def promises(self) -> Guarantee:
        return Guarantee(self.promise)

    def required(self) -> frozenset[Need]:
        return frozenset({Need[self.need]} if self.need else ())

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        outcome = Outcome()
        EDITS[self.what](graph)
        if self.what != "nothing":
            outcome.change(graph.nodes[0], self.what)
        return outcome


def scale(factor: float) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        weight = graph.own_constant(graph.nodes[0], 1)
        assert weight is not None
        weight.values = weight.values * np.float32(factor)

    return edit


def absent(graph: Graph) -> None:
    graph.nosuch  # type: ignore[attr-defined] # noqa: B018


def plus_zero(graph: Graph) -> None:
    last = graph.nodes[-1]
    output = last.outputs[0]
    node = graph.add_node("Add", [graph.add_constant("zero", np.float32(0))], outputs=1)
    fresh = node.outputs[0]
    node.outputs[0] = output
    last.outputs[0] = fresh
    node.inputs.append(fresh)


def break_type(graph: Graph) -> None:
    graph.nodes[0].inputs[1] = graph.add_constant("wrong", np.zeros((3, 3), np.int64))


def make_cycle(graph: Graph) -> None:
    graph.nodes[0].inputs[0] = graph.nodes[-1].outputs[0]


def rename_output(graph: Graph) -> None:
    graph.outputs[0].name = "other"


def resize_input(graph: Graph) -> None:
    graph.inputs[0].shape = (4, 16)


EDITS: dict[str, Callable[[Graph], None]] = {
    "nothing": lambda graph: None,
    "absent": absent,
    "double": scale(2.0),
    "a little": scale(1 + 1e-5),
    "to infinity": scale(np.inf),
    "plus zero": plus_zero,
    "type": break_type,
    "cycle": make_cycle,
    "output": rename_output,
    "input": resize_input,
}


def run(what: str, proto: onnx.ModelProto | None = None, promise: str = "exact", **manager: object) -> object:
    item = Edit(what=what, promise=promise)
    return PassManager(Pipeline((item,)), **manager).run(decode(proto or builders.mlp()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "promise", "words"),
    [
        ("double", "exact", "broke it: relative error"),
        ("double", "close", "relative error 0.9"),
        ("a little", "exact", "relative error"),
        ("to infinity", "close", "relative error inf"),
        ("type", "lossy", "invalid graph"),
        ("cycle", "lossy", "cycle"),
        ("output", "lossy", "inputs or outputs"),
        ("input", "lossy", "inputs or outputs"),
    ],
)
def test_broken_promises_are_named(what: str, promise: str, words: str) -> None:
    with pytest.raises(GuaranteeError) as caught:
        run(what, promise=promise)
    assert "edit" in caught.value.what
    assert words in caught.value.what
    assert caught.value.do


@pytest.mark.parametrize(
    ("what", "promise"), [("nothing", "exact"), ("a little", "close"), ("double", "lossy"), ("to infinity", "lossy")]
)
def test_kept_promises_pass(what: str, promise: str) -> None:
    result = run(what, promise=promise)
    assert result.changes == (what != "nothing")  # type: ignore[attr-defined]


def test_a_zero_that_changes_its_sign_is_not_exact() -> None:
    """-0 == 0, so only the bits tell."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Neg", ["r"], ["y"])]
    ports = [builders.value("x", FLOAT, [8, 8])], [builders.value("y", FLOAT, [8, 8])]
    proto = builders.model(nodes, *ports)
    with pytest.raises(GuaranteeError, match="relative error 0"):
        run("plus zero", proto)
    run("plus zero", proto, promise="close")


@pytest.mark.parametrize("on_failure", ["raise", "rollback"])
def test_what_an_installed_pass_raises_is_told_of_that_pass(on_failure: str) -> None:
    """The file and line are those of the pass, though graphsurgeon raised it; onnxcomp is not at fault."""
    manager = PassManager(Pipeline((Edit(what="absent"),)), on_failure=on_failure)  # type: ignore[arg-type]
    graph = decode(builders.mlp())
    if on_failure == "rollback":
        result = manager.run(graph, PassContext())
        assert "edit raised AttributeError" in result.records[0].rolled_back
        assert len(result.graph.nodes) == len(graph.nodes)
        return
    with pytest.raises(GuaranteeError, match=r"edit raised AttributeError: .*nosuch") as caught:
        manager.run(graph, PassContext())
    assert caught.value.where.startswith(__file__) and "line" in caught.value.where
    assert "its author" in caught.value.do


def test_rollback_keeps_the_model_and_the_reason() -> None:
    pipeline = Pipeline((Edit(what="double"), Edit(what="a little", promise="close")))
    graph = decode(builders.mlp())
    result = PassManager(pipeline, on_failure="rollback").run(graph)
    first, second = result.records
    assert "promises exact outputs and broke it" in first.rolled_back
    assert (first.changes, second.changes, result.changes) == (0, 1, 1)
    assert first.operators_before == first.operators_after
    assert not second.rolled_back


def test_without_verification_the_structure_is_still_checked() -> None:
    run("double", verify=False)
    with pytest.raises(GuaranteeError):
        run("type", verify=False)


def test_the_graph_given_is_never_changed_and_never_returned() -> None:
    graph = decode(builders.mlp())
    before = io.to_bytes(graph)
    for what in ("nothing", "a little"):
        result = PassManager(Pipeline((Edit(what=what, promise="close"),))).run(graph)
        assert result.graph is not graph
        assert not {id(n) for n in result.graph.walk()} & {id(n) for n in graph.walk()}
        assert io.to_bytes(graph) == before
    assert PassManager(Pipeline()).run(graph).graph is not graph


@pytest.mark.parametrize(
    "spec", ["prune-weights{ratio=0.5}", "quantize-weights{bits=8}", "clip-weights{method=percentile}"]
)
def test_weights_that_constant_nodes_hold_are_weights(spec: str) -> None:
    model = builders.mlp((64, 48, 32))
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    nodes = [helper.make_node("Constant", [], [w.name], f"holds {w.name}", value=w) for w in weights]
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    graph = decode(model)
    result = PassManager(Pipeline.parse(spec)).run(graph)
    (record,) = result.records
    assert record.changes
    assert any("Constant nodes held" in note for note in record.notes)
    assert {w.name for w in weights} & {c.name for c in result.graph.constants()}
    assert len(graph.constants()) == 0, "the graph given stays"


def test_a_pass_that_says_nothing_changed_changes_nothing() -> None:
    """What a pass does and does not tell is dropped; the contract test calls it a defect."""

    @dataclass(frozen=True)
    class Silent(Pass):
        """Changes a weight and does not say so."""

        name: ClassVar[str] = "silent"

        def run(self, graph: Graph, context: PassContext) -> Outcome:
            scale(2.0)(graph)
            return Outcome()

    graph = decode(builders.mlp())
    result = PassManager(Pipeline((Silent(),))).run(graph)
    assert io.to_bytes(result.graph) == io.to_bytes(graph)
    assert result.records[0].summary == "nothing to do"
    with pytest.raises(ContractError, match=r"did not say so: call outcome\.change for each change"):
        check_pass(Silent(), builders.mlp())


def test_needs_are_checked_before_any_work() -> None:
    ran = []

    @dataclass(frozen=True)
    class Noted(Edit):
        """Notes that it ran."""

        def run(self, graph: Graph, context: PassContext) -> Outcome:
            ran.append(self.name)
            return Outcome()

    for need, error in (("DATA", DataError), ("LABELS", DataError), ("TRAINING", EnvironmentLacksError)):
        with pytest.raises(error, match="edit"):
            PassManager(Pipeline((Noted(), Edit(need=need)))).run(decode(builders.mlp()))
    assert ran == []


def test_a_model_that_draws_random_numbers_is_not_compared_and_that_is_noted() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "mm"),
        helper.make_node("RandomNormalLike", ["h"], ["r"], "noise"),
        helper.make_node("Add", ["h", "r"], ["y"], "add"),
    ]
    ports = [builders.value("x", FLOAT, [2, 2])], [builders.value("y", FLOAT, [2, 2])]
    proto = builders.model(nodes, *ports, {"w": np.eye(2, dtype=np.float32)})
    (record,) = run("double", proto).records  # type: ignore[attr-defined]
    assert any("random" in note for note in record.notes)


def test_a_model_with_an_unknown_operator_is_not_compared_and_that_is_noted() -> None:
    proto = builders.mlp()
    proto.graph.node[1].domain = "my"
    proto.opset_import.append(helper.make_opsetid("my", 1))
    (record,) = run("double", proto).records  # type: ignore[attr-defined]
    assert any("not checked" in note for note in record.notes)


def test_dropout_outside_of_training_does_not_stop_the_comparison() -> None:
    proto = builders.mlp()
    proto.graph.node[1].op_type = "Dropout"
    with pytest.raises(GuaranteeError):
        run("double", proto)


def test_an_invalid_model_is_refused_before_the_first_pass() -> None:
    graph = decode(builders.mlp())
    graph.nodes[0].attrs["no such attribute"] = 3
    with pytest.raises(ModelError, match="not valid ONNX"):
        PassManager(Pipeline((Edit(),))).run(graph)


def test_records_count_bytes_operators_and_time() -> None:
    proto = builders.conv_bn_relu()
    result = PassManager(Pipeline.parse("fuse-batchnorm,cleanup")).run(decode(proto))
    fused, cleaned = result.records
    assert fused.bytes_before > fused.bytes_after == cleaned.bytes_before == cleaned.bytes_after
    assert fused.operators_before == {"BatchNormalization": 1, "Conv": 1, "Relu": 1}
    assert fused.operators_after == cleaned.operators_after == {"Conv": 1, "Relu": 1}
    assert (fused.guarantee, cleaned.guarantee) == ("close", "exact")
    assert fused.seconds >= 0
    assert cleaned.summary == "nothing to do"


def test_relative_error_and_the_step_of_half_precision() -> None:
    assert relative_error(np.float32([1, 2]), np.float32([1, 2.5])) == pytest.approx(0.25)
    assert relative_error(np.float32([1, np.nan]), np.float32([1, np.nan])) == 0
    assert relative_error(np.float32([1, np.inf]), np.float32([1, -np.inf])) == float("inf")
    assert relative_error(np.float32([0]), np.float32([1e-7])) == pytest.approx(1e-7)
    assert relative_error(np.float32([]), np.float32([])) == 0
    assert relative_error(np.array([True]), np.array([False])) == 1
    assert coarsest_step(decode(builders.mlp())) == 0
    half = builders.model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [builders.value("x", onnx.TensorProto.FLOAT16, [1])],
        [builders.value("y", onnx.TensorProto.FLOAT16, [1])],
    )
    assert coarsest_step(decode(half)) == 2.0**-10


def test_check_pass_finds_every_breach() -> None:
    with pytest.raises(GuaranteeError):
        check_pass(Edit(what="double"), builders.mlp())
    with pytest.raises(ContractError, match="finds more to do"):
        check_pass(Edit(what="double", promise="exact"), constant_output())
    with pytest.raises(ContractError, match="raised no UsageError"):
        check_pass(Edit(), builders.mlp())

    calls = itertools.count(1)

    @dataclass(frozen=True)
    class Shaky(Edit):
        """Does something else each time."""

        def run(self, graph: Graph, context: PassContext) -> Outcome:
            outcome = super().run(graph, context)
            scale(1 + 1e-6 * next(calls))(graph)
            outcome.change(graph.nodes[0], "shaken")
            return outcome

    with pytest.raises(ContractError, match="other bytes"):
        check_pass(Shaky(promise="close"), builders.mlp())

    class Loose(Edit):
        """Not a dataclass of its own."""

    with pytest.raises(ContractError, match="frozen"):
        check_pass(Loose())


def constant_output() -> onnx.ModelProto:
    """The weight does not matter: it is multiplied by zero."""
    nodes = [
        helper.make_node("Mul", ["zero", "w"], ["h"], "mul"),
        helper.make_node("Add", ["x", "h"], ["y"], "add"),
    ]
    ports = [builders.value("x", FLOAT, [2])], [builders.value("y", FLOAT, [2])]
    return builders.model(nodes, *ports, {"zero": np.float32([0, 0]), "w": np.float32([1, 2])})


def test_globs() -> None:
    graph = decode(builders.mlp())
    wanted = Edit(include=("fc*",), exclude=("fc2",)).selects(graph)
    assert [node.name for node in graph.nodes if wanted(node)] == ["fc1"]
    wanted = Edit(include=("*.weight",)).selects(graph)
    assert [node.name for node in graph.nodes if wanted(node)] == ["fc1", "fc2"]
    with pytest.raises(UsageError) as caught:
        Edit(exclude=("fc9",)).selects(graph)
    assert "'fc9' matches no node" in caught.value.what
    assert "fc1" in caught.value.do
