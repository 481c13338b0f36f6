"""Attention that stands in one node: scores of queries against keys, weights for values, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.coupling.flow import Kept, Labels, Step
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Dim, Node
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.ops import zeros
from onnxcomp.ops.broadcasting import close_all
from onnxcomp.ops.gradients import attention as attention_forms
from onnxcomp.ops.record import OpFacts, Weight, ZeroView, elements, volume
from onnxcomp.ops.shapes import as_first, rows_by

# -- multiply-accumulates ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """What attention multiplies; None where a size is not known.

    Attributes:
        heads: of queries.
        rows, columns: queries and keys, those of earlier calls among them.
        key, value: elements of one head.
    """

    batch: Dim
    heads: Dim
    rows: Dim
    columns: Dim
    key: Dim
    value: Dim

    @property
    def macs(self) -> int:
        """Scores, and the weighted sum of values."""
        parts = (self.batch, self.heads, self.rows, self.columns, self.key, self.value)
        batch, heads, rows, columns, key, value = (part if isinstance(part, int) else 0 for part in parts)
        return batch * heads * rows * columns * (key + value)


def _over(width: Dim, count: int) -> Dim:
    return width // count if isinstance(width, int) and count else None


def _plus(first: Dim, second: Dim) -> Dim:
    return first + second if isinstance(first, int) and isinstance(second, int) else None


def _dims(node: Node, shapes: Shapes, port: int) -> tuple[Dim, ...]:
    return shapes.shape(node.input(port)) or ()


def _standard_sizes(node: Node, shapes: Shapes) -> Sizes | None:
    """Attention of opset 23: [batch, heads, rows, size] or [batch, rows, heads * size] each; past keys at port 4."""
    query, key, value, past = (_dims(node, shapes, port) for port in (0, 1, 2, 4))
    columns = _plus(past[2], key[-2]) if len(past) == 4 and len(key) > 2 else key[-2] if len(key) > 2 else None
    if len(query) == 4 and len(value) == 4:
        return Sizes(query[0], query[1], query[2], columns, query[3], value[3])
    heads, own = int(node.attrs.get("q_num_heads", 0)), int(node.attrs.get("kv_num_heads", 0))
    if len(query) == 3 and len(value) == 3 and heads and own:
        return Sizes(query[0], heads, query[1], columns, _over(query[2], heads), _over(value[2], own))
    return None


def _of(node: Node, shapes: Shapes) -> Sizes | None:
    heads = int(node.attrs.get("num_heads", 0))
    if node.op == "Attention":
        return _self_sizes(node, shapes, heads)
    return (
        _grouped_sizes(node, shapes, heads) if node.op == "GroupQueryAttention" else _split_sizes(node, shapes, heads)
    )


def _self_sizes(node: Node, shapes: Shapes, heads: int) -> Sizes | None:
    """com.microsoft Attention: X [batch, rows, in], W [in, query + key + value]; past [2, batch, heads, rows, size]."""
    data, past = _dims(node, shapes, 0), _dims(node, shapes, 4)
    parts = _packed_widths(node, shapes)
    if len(data) != 3 or parts is None:
        return None
    columns = _plus(past[3], data[1]) if len(past) == 5 else data[1]
    return Sizes(data[0], heads, data[1], columns, _over(parts[1], heads), _over(parts[2], heads))


def _packed_widths(node: Node, shapes: Shapes) -> list[int] | None:
    """Widths of queries, keys and values in the one weight of com.microsoft Attention."""
    given = node.attrs.get("qkv_hidden_sizes")
    if given is not None:
        return [int(width) for width in given]
    weight = _dims(node, shapes, 1)
    return [weight[1] // 3] * 3 if len(weight) == 2 and isinstance(weight[1], int) else None


def _split_sizes(node: Node, shapes: Shapes, heads: int) -> Sizes | None:
    """MultiHeadAttention: [batch, rows, hidden] each; keys and values may be 4-D, or packed with what stands before."""
    query, key, value, past = (_dims(node, shapes, port) for port in (0, 1, 2, 6))
    if len(query) == 5:  # [batch, rows, heads, 3, size]
        return Sizes(query[0], heads, query[1], query[1], query[4], query[4])
    if len(query) != 3:
        return None
    own = _over(query[2], heads)
    if len(key) == 5:  # [batch, columns, heads, 2, size]
        return Sizes(query[0], heads, query[1], key[1], own, own)
    if len(key) == 4:  # [batch, heads, columns, size]
        return Sizes(query[0], heads, query[1], key[2], own, value[3] if len(value) == 4 else own)
    if len(key) != 3 or len(value) != 3:
        return None
    columns = _plus(past[2], key[1]) if len(past) == 4 else key[1]
    return Sizes(query[0], heads, query[1], columns, own, _over(value[2], heads))


def _grouped_sizes(node: Node, shapes: Shapes, heads: int) -> Sizes | None:
    """GroupQueryAttention: queries [batch, rows, heads * size], or with keys and values packed behind."""
    query, key, past = (_dims(node, shapes, port) for port in (0, 1, 3))
    own = int(node.attrs.get("kv_num_heads", 0))
    if len(query) != 3 or not heads or not own:
        return None
    size = _over(query[2], heads if key else heads + 2 * own)
    columns = _plus(past[2], query[1]) if len(past) == 4 else query[1]
    return Sizes(query[0], heads, query[1], columns, size, size)


def standard_macs(node: Node, shapes: Shapes) -> int:
    """As the same model unfused: two products of activations."""
    sizes = _standard_sizes(node, shapes)
    return 0 if sizes is None else sizes.macs


def runtime_macs(node: Node, shapes: Shapes) -> int:
    """The same, and the product with the packed weight where there is one."""
    sizes = _of(node, shapes)
    if sizes is None:
        return 0
    weight, data = shapes.static(node.input(1)), shapes.static(node.input(0))
    projected = 0
    if node.op == "Attention" and weight is not None and data is not None:
        projected = data[0] * data[1] * weight[0] * weight[1]
    return projected + sizes.macs


# -- types -------------------------------------------------------------------------------------------------------


def runtime_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """[batch, rows, heads * size]; then keys and values with those of earlier calls."""
    sizes = _of(node, shapes)
    if sizes is None:
        return [None]
    dtype = shapes.dtype(node.input(0))
    width = sizes.value * sizes.heads if isinstance(sizes.value, int) and isinstance(sizes.heads, int) else None
    result: list[TensorType | None] = [TensorType(dtype, (sizes.batch, sizes.rows, width))]
    if node.op == "Attention":
        result.append(TensorType(dtype, (2, sizes.batch, sizes.heads, sizes.columns, sizes.key)))
        return result
    own: Dim = int(node.attrs.get("kv_num_heads", 0)) or sizes.heads
    result.append(TensorType(dtype, (sizes.batch, own, sizes.columns, sizes.key)))
    result.append(TensorType(dtype, (sizes.batch, own, sizes.columns, sizes.value)))
    return result


# -- units -------------------------------------------------------------------------------------------------------


def heads_of(step: Step, labels: Labels | None, count: int) -> Labels | None:
    """One label a head: what stands in it leaves together."""
    if labels is None:
        return None
    if not count or len(labels) % count:
        step.close(labels, f"{step.node} does not say where its heads end")
        return None
    return step.together(labels.reshape(count, -1))


def _met(step: Step, query: Labels | None, key: Labels | None, value: Labels | None) -> tuple[Labels | None, ...]:
    """Heads of queries with those of the keys and values that they share."""
    key = step.tie(key, value) if key is not None or value is not None else None
    if query is not None and key is not None and len(query) != len(key):
        key = step.tie(step.together(query.reshape(len(key), -1)), key)
    elif query is not None or key is not None:
        query = key = step.tie(query, key)
    return query, key


def _spread(heads: Labels | None, size: int) -> Labels | None:
    return None if heads is None else np.repeat(heads, size)


def _count(step: Step, name: str, heads: Labels | None) -> None:
    """Write the number of heads anew."""
    if heads is not None and name in step.node.attrs:

        def recount(kept: Kept) -> None:
            step.node.attrs[name] = kept.count(heads)

        step.edit(recount, heads)


def standard(step: Step) -> None:
    """Attention of opset 23: heads leave, with the queries that share keys and values; all else stays."""
    parts = [step.axes(port) for port in range(3)]
    folded = len(parts[0]) == 3
    counts = [int(step.attr(name, 0)) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    if folded:
        query, key, value = (heads_of(step, axes[2], n) for axes, n in zip(parts, counts, strict=True))
    else:
        query, key, value = (axes[1] for axes in parts)
        close_all(step, [axes[3] for axes in parts])
    close_all(step, [labels for axes in parts for labels in (axes[1:2] if folded else axes[2:3])])
    query, key = _met(step, query, key, value)
    past = [step.axes(port) for port in (4, 5) if step.has(port)]
    for axes in past:
        if key is not None or axes[1] is not None:
            key = step.tie(key, axes[1])
    if past and key is None and query is not None:
        step.close(query)
        query = None
    if step.has(3):
        _mask(step, 3, query)
    if folded:
        width = step.sizes(2)[2]
        each = (width or 0) // counts[1] if counts[1] else 0
        _count(step, "q_num_heads", query)
        _count(step, "kv_num_heads", key)
        step.emit([parts[0][0], None, _spread(query, each)])
    else:
        step.emit([parts[0][0], query, None, None])
    for index in (1, 2):
        step.emit([None, key, None, None], index)
    step.emit([None, query, None, None], 3)


def _mask(step: Step, port: int, heads: Labels | None) -> None:
    """A mask [..., heads or 1, rows, columns]."""
    axes, sizes = step.axes(port), step.sizes(port)
    close_all(step, axes[-2:])
    if len(axes) > 2 and sizes[-3] != 1 and (heads is not None or axes[-3] is not None):
        step.tie(heads, axes[-3])


def packed(step: Step) -> None:
    """com.microsoft Attention: W [in, query + key + value] and its bias lose whole heads."""
    data, weight = step.axes(0), step.axes(1)
    heads = int(step.attr("num_heads", 0))
    if data[2] is not None or weight[0] is not None:
        step.tie(data[2], weight[0])
    made = step.tie(weight[1], step.axes(2)[0]) if step.has(2) else weight[1]
    widths = _packed_widths(step.node, step.flow.shapes)
    close_all(step, data[1:2])
    if made is None or widths is None or sum(widths) != len(made) or step.has(4):
        step.close(made, f"{step.node} keeps keys and values of earlier calls" if step.has(4) else "")
        if step.has(4):
            step.close_axes(4)
        step.emit([data[0], None, None])
        return
    query, key, value = (heads_of(step, part, heads) for part in np.split(made, np.cumsum(widths)[:-1]))
    query, _ = _met(step, query, key, value)
    if step.has(5):
        _mask(step, 5, query)
    _count(step, "num_heads", query)
    if query is not None and "qkv_hidden_sizes" in step.node.attrs:

        def resize(kept: Kept) -> None:
            step.node.attrs["qkv_hidden_sizes"] = [width // heads * kept.count(query) for width in widths]

        step.edit(resize, query)
    step.emit([data[0], None, _spread(query, widths[2] // heads)])
    step.emit([None, None, query, None, None], 1)


def multi_head(step: Step) -> None:
    """MultiHeadAttention: queries, keys and values [batch, rows, heads * size]; other layouts stay as they are."""
    heads = int(step.attr("num_heads", 0))
    given = [step.axes(port) for port in range(3) if step.has(port)]
    if len(given) != 3 or any(len(axes) != 3 for axes in given) or any(step.has(port) for port in (6, 7)):
        for port in range(len(step.node.inputs)):
            step.close_axes(port)
        return
    query, key, value = (heads_of(step, axes[2], heads) for axes in given)
    if step.has(3):
        bias, widths = step.axes(3)[0], [step.sizes(port)[2] or 0 for port in range(3)]
        if bias is not None and sum(widths) == len(bias):
            own = [heads_of(step, part, heads) for part in np.split(bias, np.cumsum(widths)[:-1])]
            query, key, value = (step.tie(a, b) for a, b in zip((query, key, value), own, strict=True))
        else:
            step.close(bias)
    close_all(step, [axes[1] for axes in given])
    query, key = _met(step, query, key, value)
    if step.has(5):
        _mask(step, 5, query)
    _count(step, "num_heads", query)
    step.emit([given[0][0], None, _spread(query, (step.sizes(2)[2] or 0) // max(heads, 1))])
    for index in (1, 2):
        step.emit([None, key, None, None], index)


def grouped(step: Step) -> None:
    """GroupQueryAttention: groups of query heads leave with the keys and values they share, where no cache is fed."""
    heads, own = int(step.attr("num_heads", 0)), int(step.attr("kv_num_heads", 0))
    given = [step.axes(port) for port in range(3) if step.has(port)]
    if len(given) != 3 or any(len(axes) != 3 for axes in given) or not heads or not own:
        for port in range(len(step.node.inputs)):
            step.close_axes(port)
        return
    counts = (heads, own, own)
    query, key, value = (heads_of(step, axes[2], n) for axes, n in zip(given, counts, strict=True))
    query, key = _met(step, query, key, value)
    for port in (3, 4):
        if step.has(port):
            axes = step.axes(port)
            if key is not None or axes[1] is not None:
                key = step.tie(key, axes[1])
    close_all(step, [axes[1] for axes in given])
    _count(step, "num_heads", query)
    _count(step, "kv_num_heads", key)
    step.emit([given[0][0], None, _spread(query, (step.sizes(0)[2] or 0) // heads)])
    for index in (1, 2):
        step.emit([None, key, None, None], index)


def rotary(step: Step) -> None:
    """RotaryEmbedding: turns pairs within a head; heads leave."""
    axes = step.axes(0)
    if len(axes) == 4:
        close_all(step, axes[2:])
        step.emit([axes[0], axes[1], None, None])
        return
    width = step.sizes(0)[-1]
    count = int(step.attr("num_heads", 0))
    if not count and width:
        cache = step.flow.shapes.static(step.node.input(2 if step.node.domain == MICROSOFT_DOMAIN else 1))
        count = width // (2 * cache[-1]) if cache else 0
    heads = heads_of(step, axes[-1], count)
    close_all(step, axes[1:-1])
    _count(step, "num_heads", heads)
    step.emit([axes[0], *[None] * (len(axes) - 2), _spread(heads, (width or 0) // max(count, 1))])


def _values(view: ZeroView) -> set[int]:
    """A sum of values: a head whose values are zero gives zero."""
    return view.zero(2)


def _values_and_bias(view: ZeroView) -> set[int]:
    """MultiHeadAttention adds a bias first."""
    return view.zero(2) & view.zero(3) if 3 in view.ports else view.zero(2)


def _packed_weights(node: Node) -> tuple[Weight, ...]:
    """W [in, query + key + value]."""
    weight = node.constant(1)
    return (Weight(1, out_axis=1, in_axes=(0,), bias=2),) if weight is not None and len(weight.shape) == 2 else ()


def quantized_macs(node: Node, shapes: Shapes) -> int:
    """QAttention: as Attention in float, of which it takes data, weight and heads."""
    data, weight = shapes.static(node.inputs[0]), shapes.static(node.inputs[1])
    if data is None or weight is None or len(data) != 3 or len(weight) != 2:
        return 0
    batch, tokens, _ = data
    return batch * tokens * (volume(weight) + 2 * tokens * (weight[1] // 3))


def quantized_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """QAttention: [batch, rows, values] in the type of its scale."""
    weight = shapes.static(node.input(1))
    return rows_by(node, shapes, weight[1] // 3 if weight else None, np.dtype(np.float32))


RECORDS = (
    OpFacts(
        "Attention",
        attention=True,
        gradient=attention_forms.attention,
        macs=standard_macs,
        coupling=standard,
        zeros=_values,
    ),
    OpFacts(
        "Attention",
        MICROSOFT_DOMAIN,
        attention=True,
        half=((0, 1, 2, 4, 5), (0, 1)),
        weights=_packed_weights,
        macs=runtime_macs,
        shape_ports=(6,),
        shape=runtime_types,
        coupling=packed,
    ),
    OpFacts(
        "QAttention",
        MICROSOFT_DOMAIN,
        attention=True,
        macs=quantized_macs,
        quantization_ports=(3, 4, 6, 7),
        packed={1: elements},
        shape=quantized_types,
    ),
    OpFacts(
        "MultiHeadAttention",
        MICROSOFT_DOMAIN,
        attention=True,
        half=((0, 1, 2, 3, 5, 6, 7), (0, 1, 2)),
        macs=runtime_macs,
        vector_ports=(3,),
        shape=runtime_types,
        coupling=multi_head,
        zeros=_values_and_bias,
    ),
    OpFacts(
        "GroupQueryAttention",
        MICROSOFT_DOMAIN,
        attention=True,
        half=((0, 1, 2, 3, 4, 7, 8), (0, 1, 2)),
        macs=runtime_macs,
        shape_ports=(5, 6, 9),
        shape=runtime_types,
        coupling=grouped,
        zeros=_values,
    ),
    OpFacts("RotaryEmbedding", gradient=attention_forms.rotary, coupling=rotary, zeros=zeros.kept),
    OpFacts(
        "RotaryEmbedding",
        MICROSOFT_DOMAIN,
        gradient=attention_forms.rotary_of_runtime,
        half=((0, 2, 3), (0,)),
        shape=as_first,
        coupling=rotary,
        zeros=zeros.kept,
    ),
)
