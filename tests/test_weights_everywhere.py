"""Do passes that edit weights edit those weights, everywhere, and nothing else? ONNX operators are the oracle.

What clip-weights and prune-weights do to a weight can be written as operators in front of the port that reads it. A
model with those operators and the model that the pass wrote must give the same outputs: with weights that several nodes
share, weights in bodies of If, Loop and Scan, weights that come through Transpose, Reshape, Identity and Constant,
weights that something else than a layer reads too, and functions, whose nodes stand in the place of their calls.
"""

from __future__ import annotations

from collections.abc import Callable

import builders
import numpy as np
import onnx
import pytest
import random_models
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.graph.functions import inline_functions
from onnxcomp.graph.ir import Constant, Graph, Node, Variable
from onnxcomp.graph.literals import is_weight, lift
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.manager.raising import raise_opset
from onnxcomp.ops.facts import load_operators
from onnxcomp.testing import hostile_models

CLIP, PRUNE = 0.2, 0.15
Edit = Callable[[Graph, Constant, Node], list[Node]]
MODELS = hostile_models() | {
    name: getattr(builders, name)()
    for name in (
        "function_model",
        "if_model",
        "indirect_weights",
        "loop_model",
        "residual_cnn",
        "shared_weight",
        "transformer",
    )
}


def clipped(graph: Graph, weight: Constant, reader: Node) -> list[Node]:
    bounds = [graph.add_constant("bound", np.array(v, weight.dtype)) for v in (-CLIP, CLIP)]
    return [Node("Clip", graph.unique_name("clip"), {}, [weight, *bounds], [Variable(graph.unique_name("w"))])]


def pruned(graph: Graph, weight: Constant, reader: Node) -> list[Node]:
    """w * (|w| >= t)."""
    if len(weight.shape) < 2:
        return []
    names = [graph.unique_name("step") for _ in range(4)]
    size, kept, mask, product = (Variable(name) for name in names)
    bound = graph.add_constant("bound", np.array(PRUNE, weight.dtype))
    return [
        Node("Abs", f"{names[0]}.n", {}, [weight], [size]),
        Node("GreaterOrEqual", f"{names[1]}.n", {}, [size, bound], [kept]),
        Node("CastLike", f"{names[2]}.n", {}, [kept, weight], [mask]),
        Node("Mul", f"{names[3]}.n", {}, [weight, mask], [product]),
    ]


PASSES: dict[str, tuple[str, Edit]] = {
    "clip-weights": (f"clip-weights{{method=absolute,threshold={CLIP}}}", clipped),
    "prune-weights": (f"prune-weights{{threshold={PRUNE},compensate=false}}", pruned),
}


def oracle(graph: Graph, edit: Edit, *, whole: bool) -> onnx.ModelProto:
    """The model with operators in front of every weight that is an initializer, or that a Constant node holds.

    Args:
        whole: leave a weight alone that is read as something else too: it cannot change without changing that.
    """
    copy = graph.clone()
    inline_functions(copy)
    lift(copy, is_weight)
    raise_opset(copy, 16)
    operators, owners = load_operators(), copy.owners()
    uses = [(node, w.port, node.constant(w.port)) for node in copy.walk() for w in operators.facts(node).weights(node)]
    found = [(node, port, weight) for node, port, weight in uses if weight is not None and weight.dtype.kind == "f"]
    readers = {weight: len(weight.consumers) for _, _, weight in found}
    layers = {weight: sum(1 for _, _, other in found if other is weight) for _, _, weight in found}
    for node, port, weight in found:
        if whole and (readers[weight] > layers[weight] or copy.is_output(weight)):
            continue
        steps = edit(copy, weight, node)
        if steps:
            nodes = owners[node].nodes
            at = nodes.index(node)
            nodes[at:at] = steps
            node.inputs[port] = steps[-1].outputs[0]
    return onnx.load_from_string(io.to_bytes(copy))


def check(proto: onnx.ModelProto, name: str) -> int:
    """Run the pass and the oracle on a model; returns the number of changes."""
    spec, edit = PASSES[name]
    graph = decode(proto)
    before = io.to_bytes(graph)
    result = PassManager(Pipeline.parse(spec), verify=False).run(graph)
    feeds = builders.feeds_of(proto)
    wanted = random_models.outputs(oracle(graph, edit, whole=name == "prune-weights"), feeds)
    found = random_models.outputs(onnx.load_from_string(io.to_bytes(result.graph)), feeds)
    assert (wanted is None) == (found is None)
    for a, b in zip(wanted or (), found or (), strict=True):
        # kernels add up in another order where a weight is known ahead
        largest = float(np.abs(a).max(initial=0.0)) if a.dtype.kind == "f" else 0.0
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * largest)
    assert io.to_bytes(graph) == before
    return result.changes


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_the_weights_that_layers_read_change_and_nothing_else(model: str, name: str) -> None:
    check(MODELS[model], name)


@pytest.mark.parametrize("name", PASSES)
def test_the_oracle_sees_changes(name: str) -> None:
    """Without this the test above could hold for passes that do nothing."""
    assert sum(check(MODELS[model], name) > 0 for model in MODELS) > len(MODELS) // 2


@pytest.mark.parametrize("name", PASSES)
@given(seed=st.integers(0, 2**16))
def test_random_models(name: str, seed: int) -> None:
    check(random_models.random_model(seed), name)
