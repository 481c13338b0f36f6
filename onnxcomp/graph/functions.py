"""How do local functions become part of the graph that calls them, and how large does it get?"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import inliner

from onnxcomp.errors import ModelError
from onnxcomp.graph.codec import bodies_of, decode, encode_light
from onnxcomp.graph.ir import Graph, Variable, is_onnx

MOST_NODES = 500_000  # of a model whose functions are inlined: the largest known ones have some 50,000
FEW_NODES = 6000  # a file of any size may come to these: each costs about a millisecond
MOST_TIMES = 200  # as many nodes as are written; a network of 100 layers, each one call, comes to some 50

_Key = tuple[str, str, str]


def inline_functions(graph: Graph) -> list[str]:
    """Put the nodes of local functions in the place of their calls, in place; weights and the interface stay.

    Returns:
        What was done, in a sentence; nothing where the model has no functions.

    Raises:
        ModelError: functions call each other in a circle, the result would pass the ceiling of `check_expansion`, or a
            function is written for an opset in which its operators mean something else.
    """
    graph = graph.root
    count = len(graph.functions)
    if not count:
        return []
    light = encode_light(graph, 0)
    check_expansion(light)
    _write_defaults(light)
    _restamp(light)
    try:
        inlined = decode(inliner.inline_local_functions(light))
    except RuntimeError as error:  # an assertion of the inliner's, with the line of its source in front
        raise ModelError(
            "a call of a local function does not fit it: " + str(error).rpartition("failed: ")[2].strip(),
            where=f"local functions {', '.join(f.name for f in light.functions[:3])}",
            do="export the model again",
        ) from error
    if inlined.functions:
        raise _mismatch(inlined.functions[0].name)
    _transplant(inlined, graph)
    some = ", ".join(dict.fromkeys(f.name for f in light.functions[:3])) + (", …" if count > 3 else "")
    return [f"{count} local functions inlined ({some})"]


def without_functions(graph: Graph) -> Graph:
    """The graph, or a copy of it in which the nodes of local functions stand in the place of their calls.

    Where functions cannot be inlined it is the graph as it is: whoever has to change something in them says why not.
    """
    if not graph.root.functions:
        return graph
    copy = graph.clone()
    try:
        inline_functions(copy)
    except ModelError:
        return graph
    return copy


def check_expansion(model: onnx.ModelProto) -> None:
    """Count the nodes that a model has with its functions inlined, without inlining them.

    Raises:
        ModelError: functions call each other in a circle, or there would be more than `MOST_NODES` nodes, or than
            `MOST_TIMES` as many as are written: a few lines are not to cost hours.
    """
    if not model.functions:
        return
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes: dict[_Key, int] = {}
    for key in _callees_first(functions):
        sizes[key] = _size(functions[key].node, sizes)
    total = _size(model.graph.node, sizes)
    written = sum(1 for nodes in (model.graph.node, *(f.node for f in model.functions)) for _ in _walk(nodes))
    most = min(MOST_NODES, max(FEW_NODES, MOST_TIMES * written))
    if total > most:
        raise ModelError(
            f"its local functions come to {total:,} nodes when they are inlined, and at most {most:,} are taken of the "
            f"{written:,} that are written",
            where="the model's functions",
            do="export the model with fewer levels of functions that call each other",
        )


def _size(nodes: Iterable[onnx.NodeProto], sizes: dict[_Key, int]) -> int:
    return sum(sizes.get((node.domain, node.op_type, node.overload), 1) for node in _walk(nodes))


def _walk(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    for node in nodes:
        yield node
        for body in bodies_of(node):
            yield from _walk(body.node)


def _callees_first(functions: dict[_Key, onnx.FunctionProto]) -> list[_Key]:
    """Functions after all that they call; iterative, so that depth does not matter."""
    calls = {
        key: [k for n in _walk(function.node) if (k := (n.domain, n.op_type, n.overload)) in functions]
        for key, function in functions.items()
    }
    done: dict[_Key, None] = {}
    path: dict[_Key, None] = {}
    waiting = list(functions)
    while waiting:
        key = waiting[-1]
        open_ = [] if key in done else [k for k in dict.fromkeys(calls[key]) if k not in done]
        if not open_:
            waiting.pop()
            path.pop(key, None)
            done.setdefault(key)
            continue
        path.setdefault(key)
        if any(k in path for k in open_):
            raise ModelError(
                "local functions call each other in a circle",
                where=f"function {key[1]} of {key[0] or 'the default domain'}",
                do="export the model again: a function may not call itself",
            )
        waiting.extend(open_)
    return list(done)


def _write_defaults(model: onnx.ModelProto) -> None:
    """Give each call of a function the default values of the attributes that it leaves out: the inliner drops them."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in _walk(nodes):
            called = functions.get((node.domain, node.op_type, node.overload))
            if called is not None:
                given = {attribute.name for attribute in node.attribute}
                node.attribute.extend(each for each in called.attribute_proto if each.name not in given)


def _restamp(model: onnx.ModelProto) -> None:
    """Let functions import the model's own operator sets where each of their operators has the same form in both."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for function in model.functions:
        for entry in function.opset_import:
            version = versions.get(entry.domain, entry.version)
            if is_onnx(entry.domain) and version != entry.version:
                for node in _walk(function.node):
                    if is_onnx(node.domain) and _since(node, version) != _since(node, entry.version):
                        raise _mismatch(function.name, f" with {node.op_type} of opset {entry.version}")
            entry.version = version


def _since(node: onnx.NodeProto, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(node.op_type, version, "").since_version)
    except onnx.defs.SchemaError:
        return 0


def _mismatch(name: str, what: str = "") -> ModelError:
    return ModelError(
        f"local function {name} is written{what or ' for another opset'}, and the model is not",
        where=f"function {name}",
        do="export the model and its functions with one opset",
    )


def _transplant(new: Graph, graph: Graph) -> None:
    """Move what a decoded model holds into the graph that it was encoded from, which keeps its initializers."""
    constants = {c.name: c for c in (*graph.constants(), *graph.unused) if c.scope is None}
    for scope in new.scopes():
        scope.outputs = [constants.get(t.name, t) if isinstance(t, Variable) else t for t in scope.outputs]
        for node in scope.nodes:
            for port, tensor in enumerate(node.inputs):
                if isinstance(tensor, Variable) and tensor.name in constants:
                    node.inputs[port] = constants[tensor.name]
    for node in graph.walk():
        node.inputs.clear()
        node.outputs.clear()
    graph.inputs = [t for t in new.inputs if t.name not in constants]
    graph.nodes, graph.outputs = new.nodes, new.outputs
    for node in graph.nodes:
        for body in node.bodies:
            body.parent = graph
    graph._bodies, graph._names, graph._counts = new._bodies, None, {}
    del graph.model.functions[:]
    graph.model.opset_import.extend(
        e for e in new.model.opset_import if e.domain not in {o.domain for o in graph.model.opset_import}
    )
