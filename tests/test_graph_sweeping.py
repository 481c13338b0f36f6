"""Do rules see every node that is still there, in order, and does what they replace leave wherever it stands?"""

from __future__ import annotations

import builders
import numpy as np

from onnxcomp.graph.clone import clone, extract
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Node, Variable
from onnxcomp.graph.sweeping import Here, sweep, until_stable


def test_a_rule_meets_each_node_of_each_scope_once_and_not_what_it_replaced() -> None:
    graph = decode(builders.if_model())
    for backwards in (False, True):
        met: list[Node] = []

        def rule(node: Node, here: Here, met: list[Node] = met) -> list[Node]:
            assert node in here.scope.nodes
            met.append(node)
            return []

        assert sweep(graph, rule, backwards=backwards) == 0
        assert met == [node for scope in graph.scopes() for node in (scope.nodes[::-1] if backwards else scope.nodes)]
    first, *rest = graph.nodes
    seen: list[Node] = []

    def replaces_the_rest(node: Node, here: Here) -> list[Node]:
        seen.append(node)
        return rest if node is first else []

    assert sweep(graph, replaces_the_rest) == len(rest)
    assert graph.nodes == [first] and not set(rest) & set(seen)


def test_what_a_body_replaces_outside_of_it_leaves_the_outer_graph() -> None:
    graph = decode(builders.if_model())
    outer = next(node for node in graph.nodes if not node.bodies)
    sweep(graph, lambda node, here: [outer] if here.scope is not graph else [])
    assert outer not in graph.nodes and not outer.inputs and not outer.outputs


def test_steps_are_taken_until_a_round_changes_nothing() -> None:
    left, rounds = [3, 1], [0, 0]

    def step(index: int) -> int:
        rounds[index] += 1
        found = min(left[index], 1)
        left[index] -= found
        return found

    assert until_stable(lambda: step(0), lambda: step(1)) == 4
    assert rounds == [4, 4]


def test_a_clone_says_what_stands_for_what_in_bodies_too() -> None:
    graph = decode(builders.if_model())
    copied = clone(graph)
    for old, new in copied.nodes.items():
        assert (old.op, old.name) == (new.op, new.name) and old is not new
    assert [copied.nodes[node] for node in graph.walk()] == list(copied.graph.walk())
    assert [copied.tensors[t] for t in graph.outputs] == copied.graph.outputs


def test_every_part_of_a_graph_computes_what_it_computes_there() -> None:
    for name in ("residual_cnn", "depthwise_cnn", "transformer", "if_model", "mlp"):
        proto = getattr(builders, name)()
        graph = decode(proto)
        feeds = builders.feeds_of(proto)
        tensors = graph.tensors()
        inner = [t for node in graph.nodes for t in node.outputs if isinstance(t, Variable) and t.name]
        whole = extract(graph, graph.inputs, inner).graph
        values = dict(zip([t.name for t in inner], builders.run(encode(whole), feeds, optimized=False), strict=True))
        middle = inner[len(inner) // 2]
        part = extract(graph, [*graph.inputs, middle], [middle, inner[-1]])
        assert part.graph.outputs[0].name != middle.name and part.variable(middle) in part.graph.inputs, name
        fed = part.variable(middle)
        fed.dtype, fed.shape = values[middle.name].dtype, values[middle.name].shape
        given = {**feeds, middle.name: values[middle.name]}
        kept = {t.name: given[t.name] for t in part.graph.inputs}
        made, last = builders.run(encode(part.graph), kept, optimized=False)
        assert np.array_equal(made, values[middle.name]) and np.array_equal(last, values[inner[-1].name]), name
        assert tensors.keys() == graph.tensors().keys()
