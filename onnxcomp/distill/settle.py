"""How does a graph come to static shapes and to weights that are plain initializers, before it is rewritten?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxcomp.errors import ModelError
from onnxcomp.graph.evaluate import evaluate, propagate
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor
from onnxcomp.graph.opset import raise_opset
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.types import Shapes

RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
LEAST_OPSET, MOST_OPSET, MOST_IR = 17, 21, 10  # what rewrites are written for; what the training runtime takes


def modern(graph: Graph) -> list[str]:
    """Bring the graph to an opset that rewrites are written for; notes on what was done."""
    notes = list(raise_opset(graph, LEAST_OPSET))
    graph.kept_inputs = {}
    return notes


def restamp(graph: Graph) -> None:
    """Call the graph one of an opset and IR version that the training runtime takes.

    Newer opsets changed operators by taking more types; what they added is rewritten before.
    """
    for entry in graph.model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, MOST_OPSET)
    graph.model.ir_version = min(graph.model.ir_version, MOST_IR)


def lift_constants(graph: Graph) -> None:
    """Let Constant nodes become initializers of the same name, and Identities of initializers go."""
    for node in list(graph.nodes):
        if node.op == "Constant" and not node.domain:
            value = constant_value(node)
            output = node.outputs[0]
            if value is None or graph.is_output(output):
                continue
            graph.replace_uses(output, Constant(output.name, value))
            graph.remove_nodes([node])
        elif node.op == "Identity" and isinstance(node.inputs[0], Constant) and not graph.is_output(node.outputs[0]):
            graph.replace_uses(node.outputs[0], node.inputs[0])
            graph.remove_nodes([node])


def constant_value(node: Node) -> Array | None:
    """The numbers that a Constant node holds; None for strings and sparse tensors."""
    found = node.attrs.get("value")
    if isinstance(found, np.ndarray):
        return found if found.dtype != np.dtype(object) else None
    for names, dtype in ((("value_float", "value_floats"), np.float32), (("value_int", "value_ints"), np.int64)):
        for name in names:
            if name in node.attrs:
                return np.asarray(node.attrs[name], dtype)
    return None


def input_shapes(graph: Graph, samples: Mapping[str, tuple[int, ...]], batch: int) -> dict[str, tuple[int, ...]]:
    """Static shapes of all inputs: sizes from one sample, the first axis with the batch.

    Args:
        samples: shapes of one sample by input name, the first axis 1.

    Raises:
        ModelError: a size is neither in the model nor in `samples`.
    """
    found: dict[str, tuple[int, ...]] = {}
    for tensor in graph.inputs:
        given = samples.get(tensor.name)
        shape = given if given is not None else tensor.shape
        if shape is None:
            raise _unknown(tensor)
        sizes = [batch if axis == 0 and (d in (1, None) or isinstance(d, str)) else d for axis, d in enumerate(shape)]
        if not all(isinstance(d, int) and d > 0 for d in sizes):
            raise _unknown(tensor)
        found[tensor.name] = tuple(int(d) for d in sizes if isinstance(d, int))
    return found


def _unknown(tensor: Tensor) -> ModelError:
    return ModelError(
        "training needs every size of the model's inputs",
        where=f"input {tensor.name} {list(tensor.shape or ())}",
        do=f"give the shape of one sample: --shape {tensor.name}=1x…",
    )


def fix_shapes(graph: Graph, bind: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Give the inputs static shapes and compute everything ahead that follows from shapes alone."""
    for tensor in graph.inputs:
        tensor.shape = bind[tensor.name]
        tensor.envelope = None
    shapes = infer(graph, bind, declared=False)
    values = propagate(graph, shapes)
    outputs = set(graph.outputs)
    for node in list(graph.nodes):
        known = [t for t in node.outputs if t.name in values]
        if not known or len(known) < sum(bool(t.name) for t in node.outputs) or not outputs.isdisjoint(known):
            continue
        if all(values[t.name].dtype.kind in "biu" for t in known):
            for tensor in known:
                graph.replace_uses(tensor, Constant(tensor.name, values[tensor.name]))
            graph.remove_nodes([node])
    return shapes


def fold(graph: Graph, learned: set[Constant]) -> None:
    """Compute ahead what follows from initializers that are not learned: weights stored in few bits, above all.

    Views of learned weights stay, and what the reference implementation does not compute.
    """
    outputs = set(graph.outputs)
    opset = graph.opset
    for node in list(graph.nodes):
        if node.bodies or node.domain not in ("", "ai.onnx") or not node.inputs or node.op in RANDOM:
            continue
        inputs = [t for t in node.inputs if t.name]
        if not all(isinstance(t, Constant) and t not in learned for t in inputs) or not outputs.isdisjoint(
            node.outputs
        ):
            continue
        try:
            found = evaluate(
                node, [t.values if isinstance(t, Constant) and t.name else None for t in node.inputs], opset
            )
        except Exception:  # the reference implementation has gaps; the node then runs in training as it stands
            continue
        for tensor, value in zip([t for t in node.outputs if t.name], found, strict=False):
            graph.replace_uses(tensor, Constant(tensor.name, value))
        graph.remove_nodes([node])


def drop_unread(graph: Graph) -> None:
    """Remove nodes that lead to no output."""
    wanted: set[Tensor] = set(graph.outputs)
    dead = []
    for node in reversed(graph.nodes):
        if wanted.isdisjoint(node.outputs):
            dead.append(node)
        else:
            wanted.update(reads(node))
    graph.remove_nodes(dead)
    graph.unused = []


def reads(node: Node) -> list[Tensor]:
    """The tensors that a node needs: its inputs and what its bodies capture."""
    found = [t for t in node.inputs if t.name]
    for body in node.bodies:
        found.extend(t for inner in body.walk() for t in inner.inputs if t.name)
        found.extend(body.outputs)
    return found


def write_types(graph: Graph, bind: Mapping[str, tuple[int, ...]], before: Shapes) -> None:
    """Infer anew and write shapes and types to all tensors of the main graph, outputs included.

    Args:
        before: of the graph as it was before rewriting, for outputs of operators that onnx does not know.
    """
    shapes = infer(graph, bind, declared=False)
    for node in graph.nodes:
        for tensor in node.outputs:
            known = shapes.types.get(tensor.name) or before.types.get(tensor.name)
            tensor.envelope = None
            tensor.shape = known.shape if known is not None else None
            if known is not None and known.dtype is not None:
                tensor.dtype = known.dtype
