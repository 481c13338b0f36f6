"""How does a graph come to static shapes and to weights that are plain initializers, before it is rewritten?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from onnxcomp.errors import ModelError, OnnxcompError
from onnxcomp.graph.clone import drop_unneeded, extract
from onnxcomp.graph.evaluate import propagate
from onnxcomp.graph.functions import inline_functions
from onnxcomp.graph.io import runnable
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable, elem_type, is_onnx
from onnxcomp.graph.literals import lift
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.single import OTHERS
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.manager.raising import raise_opset
from onnxcomp.runtime.session import open_graph, open_session

OTHER_CODES = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
WINDOWS = frozenset({"AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"})
LEAST_OPSET, MOST_OPSET, MOST_IR = 17, 21, 10  # what rewrites are written for; what the training runtime takes


def modern(graph: Graph) -> tuple[Graph, list[str]]:
    """A graph of an opset that rewrites are written for, without local functions; notes on what was done."""
    copy = graph.clone()
    notes = inline_functions(copy)
    copy.kept_inputs = {}
    return copy, [*notes, *raise_opset(copy, LEAST_OPSET)]


def single_precision(graph: Graph) -> list[str]:
    """Compute in float32 what a model computes in half precision or double: the runtime trains nothing else.

    Inputs keep their types; outputs become float32.
    """
    wide = elem_type(np.dtype(np.float32))
    halves = [c for c in graph.constants() if c.dtype.name in OTHERS]
    inputs = [t for t in graph.inputs if t.dtype is not None and t.dtype.name in OTHERS]
    if not halves and not inputs:
        return []
    for constant in halves:
        constant.values = constant.values.astype(np.float32)
    _drop_casts(graph, wide)
    for node in graph.walk():
        for key in ("to", "dtype", "output_dtype"):
            if node.attrs.get(key) in OTHER_CODES:
                node.attrs[key] = wide
        value = node.attrs.get("value")
        if isinstance(value, np.ndarray) and value.dtype.name in OTHERS:
            node.attrs["value"] = value.astype(np.float32)
    for tensor in inputs:
        readers = list(tensor.consumers)
        cast = graph.add_node("Cast", [tensor], name=f"{tensor.name}_float", attrs={"to": wide})
        graph.replace_uses(tensor, cast.outputs[0], only=readers)
    graph.sort()
    return ["weights of other floating types are trained in float32, and take their own type when they return"]


def _drop_casts(graph: Graph, wide: int) -> None:
    """Weights that are stored in fewer bits are read without the Cast, so that they train by their own names."""
    gone = []
    for node in graph.nodes:
        stored = node.inputs[0] if node.op == "Cast" and is_onnx(node.domain) else None
        same = isinstance(stored, Constant) and stored.dtype == np.float32 and node.attrs.get("to") == wide
        if stored is not None and same and not graph.is_output(node.outputs[0]):
            graph.replace_uses(node.outputs[0], stored)
            gone.append(node)
    graph.remove_nodes(gone)


def restamp(graph: Graph) -> None:
    """Call the graph one of an opset and IR version that the training runtime takes.

    Newer opsets changed operators by taking more types; what they added is rewritten before.
    """
    for entry in graph.model.opset_import:
        if is_onnx(entry.domain):
            entry.version = min(entry.version, MOST_OPSET)
    graph.model.ir_version = min(graph.model.ir_version, MOST_IR)


def lift_constants(graph: Graph) -> None:
    """Let Constant nodes become initializers of the same name, and Identities of initializers go."""
    lift(graph)
    gone = []
    for node in graph.nodes:
        if node.op == "Identity" and isinstance(node.inputs[0], Constant) and not graph.is_output(node.outputs[0]):
            graph.replace_uses(node.outputs[0], node.inputs[0])
            gone.append(node)
    graph.remove_nodes(gone)


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


def fix_shapes(graph: Graph, bind: Mapping[str, tuple[int, ...]]) -> tuple[Shapes, list[Node]]:
    """Give the inputs static shapes and compute everything ahead that follows from shapes alone.

    Returns:
        The shapes, and the nodes for which ONNX's inference has another size than ONNX Runtime computes.
    """
    for tensor in graph.inputs:
        tensor.shape = bind[tensor.name]
        tensor.envelope = None
    shapes, misjudged = _as_run(graph, bind, infer(graph, bind, declared=False))
    values = propagate(graph, shapes)
    outputs, gone = set(graph.outputs), []
    for node in graph.nodes:
        known = [t for t in node.outputs if t.name in values]
        if not known or len(known) < sum(bool(t.name) for t in node.outputs) or not outputs.isdisjoint(known):
            continue
        if all(values[t.name].dtype.kind in "biu" for t in known):
            for tensor in known:
                graph.replace_uses(tensor, Constant(tensor.name, values[tensor.name]))
            gone.append(node)
    graph.remove_nodes(gone)
    return shapes, misjudged


def _as_run(graph: Graph, bind: Mapping[str, tuple[int, ...]], shapes: Shapes) -> tuple[Shapes, list[Node]]:
    """Shapes with the sizes that ONNX Runtime gives: windows whose padding or last step it works out, other domains.

    There ONNX's inference has other sizes for some attributes, and everything behind would be taken for too large. Of
    operators of other domains it may know nothing.
    """
    actual: dict[str, TensorType] = {}
    misjudged: list[Node] = []
    for node in graph.nodes:
        rounded = node.attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET") or node.attrs.get("ceil_mode")
        window = not node.domain and node.op in WINDOWS and rounded
        unknown = bool(node.domain) and any(t.name and shapes.static(t) is None for t in node.outputs)
        if not window and not unknown:
            continue
        changed = {
            name: kind for name, kind in _types_of(graph, node, shapes).items() if kind != shapes.types.get(name)
        }
        if changed:
            actual |= changed
            misjudged += [node] if window else []
            shapes = _inferred_behind(graph, bind, actual)
    return shapes, misjudged


def _types_of(graph: Graph, node: Node, shapes: Shapes) -> dict[str, TensorType]:
    """The types and shapes that ONNX Runtime gives the outputs of a node alone; none where it does not run it."""
    given: list[Variable] = [t for t in dict.fromkeys(node.inputs) if isinstance(t, Variable) and t.name]
    kinds = {t.name: (shapes.dtype(t), shapes.static(t)) for t in given}
    if any(dtype is None or shape is None for dtype, shape in kinds.values()):
        return {}
    part = extract(graph, given, [t for t in node.outputs if t.name]).graph
    for tensor in part.inputs:
        (tensor.dtype, tensor.shape), tensor.envelope = kinds[tensor.name], None
    for output in part.nodes[0].outputs:
        output.shape, output.envelope = None, None
    feeds = {name: np.zeros(shape or (), dtype) for name, (dtype, shape) in kinds.items()}
    try:
        found = open_graph(part, threads=1, optimize=False).run(feeds)
    except OnnxcompError:
        return {}
    return {name: TensorType(array.dtype, tuple(array.shape)) for name, array in found.items()}


def _inferred_behind(graph: Graph, bind: Mapping[str, tuple[int, ...]], actual: Mapping[str, TensorType]) -> Shapes:
    """Shapes where some tensors have these types: the nodes that make them are left out of the inference."""
    copy = graph.clone()
    makers = [node for node in copy.nodes if any(t.name in actual for t in node.outputs)]
    made = [t for node in makers for t in node.outputs if t.name in actual]
    copy.remove_nodes(makers)
    sizes = dict(bind)
    for tensor in made:
        tensor.dtype, tensor.shape = actual[tensor.name].dtype, actual[tensor.name].shape
        sizes[tensor.name] = tuple(int(d) for d in tensor.shape or () if isinstance(d, int))
    copy.inputs = [*copy.inputs, *made]
    found = infer(copy, sizes, declared=False)
    found.types.update(actual)
    return found


def fold(graph: Graph, learned: set[Constant]) -> list[str]:
    """Compute ahead what follows from initializers that are not learned: weights stored in few bits, above all.

    Views of learned weights stay. Returns a note where ONNX Runtime cannot compute it.
    """
    ahead: dict[Tensor, Node] = {}
    for node in graph.nodes:
        inputs = [t for t in node.inputs if t.name]
        known = all(t in ahead or (isinstance(t, Constant) and t not in learned) for t in inputs)
        if known and inputs and not node.bodies and node.op not in RANDOM and not graph.is_function(node):
            ahead.update((t, node) for t in node.outputs if t.name)
    inner = set(ahead.values())
    wanted = [t for t in ahead if graph.is_output(t) or not inner.issuperset(t.consumers)]
    wanted = [t for t in wanted if not graph.is_output(t)]
    if not wanted:
        return []
    try:
        values = computed(graph, [t.name for t in wanted])
    except OnnxcompError as error:
        return [f"what follows from constants is computed in every step: {error.what}"]
    for tensor in wanted:
        graph.replace_uses(tensor, Constant(tensor.name, values[tensor.name]))
    drop_unread(graph)
    return []


def computed(graph: Graph, names: list[str]) -> dict[str, Array]:
    """Values of tensors that depend on no input, by ONNX Runtime."""
    tensors = graph.tensors()
    part = extract(graph, (), [tensors[name] for name in names]).graph
    with runnable(part) as model:
        return dict(open_session(model, optimize=False).run({}))


def drop_unread(graph: Graph) -> None:
    """Remove nodes and initializers that lead to no output."""
    drop_unneeded(graph)
    graph.unused = []


def write_types(graph: Graph, bind: Mapping[str, tuple[int, ...]], before: Shapes) -> None:
    """Infer anew and write shapes and types to all tensors of the main graph, outputs included.

    Args:
        before: of the graph as it was before rewriting, for outputs of operators that onnx does not know.
    """
    shapes = infer(graph, bind, declared=False)
    for node in graph.nodes:
        for tensor in node.outputs:
            known, old = shapes.types.get(tensor.name), before.types.get(tensor.name)
            known = old if known is None or (known.shape is None and old is not None) else known
            tensor.envelope = None
            tensor.shape = known.shape if known is not None else None
            if known is not None and known.dtype is not None:
                tensor.dtype = known.dtype
