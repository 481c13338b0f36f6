"""Which layer of one graph is which of another? By names, by weights, by structure and by values on the same samples.

No single sign is enough: another tool renames, a fusion drops tensors, and a damaged layer has other values.
Each pair of layers of one kind gets a score from all signs; the best pairs are taken one after the other, and a pair
gains where the layers in front of both are a pair already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxcomp.explanation.alignment import Left, aligned
from onnxcomp.explanation.products import Layer, Place
from onnxcomp.graph.ir import Array, Constant, Node
from onnxcomp.graph.types import Shapes

PRINT = 512  # elements of a tensor that stand for all of it
ENOUGH = 2.0  # the score below which two layers are not called the same
ROUNDS = 3
SAME = 1e-9  # cosines that differ by less differ by rounding in float32
# products that another one may stand for
FAMILIES = {"Gemm": "MatMul", "FusedMatMul": "MatMul", "FusedGemm": "MatMul", "FusedConv": "Conv"}
# what tools put behind the names of what they made of a tensor
_ENDING = r"([._/-]?(quant(ized)?|(De)?QuantizeLinear|quantized_node|int8|scaled?|fp16|Gemm|MatMul))+$"
ENDINGS = re.compile(_ENDING, re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """Layers that are one and the same, and the places where both are looked at.

    Attributes:
        entry: in both graphs; None where none has the same size.
        exits: one or two pairs of places: behind bias and scale, behind the activation function.
        left: by the names of two tensors that places are at: what pruning left of the first in the second.
    """

    before: Layer
    after: Layer
    entry: tuple[Place, Place] | None
    exits: tuple[tuple[Place, Place], ...]
    left: Mapping[tuple[str, str], Left] = field(default_factory=dict)

    def left_at(self, ends: tuple[Place, Place]) -> Left | None:
        """What is left between two places; None where nothing was taken out."""
        return self.left.get((ends[0].tensor.name, ends[1].tensor.name))


Values = Mapping[str, Array]  # tensor name -> its value on some samples


def match(
    before: Sequence[Layer],
    after: Sequence[Layer],
    seen: tuple[Values, Values],
    shapes: tuple[Shapes, Shapes] = (Shapes({}), Shapes({})),
) -> list[Pair]:
    """Pairs in the order of `before`; a layer without a partner is in none.

    Args:
        seen: values of the layers' places in both graphs, on the same samples.
        shapes: of one sample; without them pruned layers have no places in common.
    """
    if not before or not after:
        return []
    score = _scores(before, after, seen)
    near = parents(before), parents(after)
    chosen: dict[int, int] = {}
    for _ in range(ROUNDS):
        bonus = np.zeros_like(score)
        for i, j in np.argwhere(score > -np.inf):
            shared = sum(chosen.get(p) in near[1][j] for p in near[0][i])
            bonus[i, j] = 1.5 * shared / max(1, len(near[0][i]), len(near[1][j]))
        again = _greedy(score + bonus)
        if again == chosen:
            break
        chosen = again
    return [_pair(before[i], after[j], seen, shapes) for i, j in sorted(chosen.items())]


def _greedy(score: Array) -> dict[int, int]:
    chosen: dict[int, int] = {}
    taken: set[int] = set()
    for flat in np.argsort(-score, axis=None, kind="stable"):
        i, j = divmod(int(flat), score.shape[1])
        if score[i, j] < ENOUGH:
            break
        if i not in chosen and j not in taken:
            chosen[i] = j
            taken.add(j)
    return chosen


def _scores(before: Sequence[Layer], after: Sequence[Layer], seen: tuple[Values, Values]) -> Array:
    """[before, after]; minus infinity where the kinds differ."""
    prints = [[_prints(layer, values) for layer in side] for side, values in zip((before, after), seen, strict=True)]
    weights = [[_weight_print(layer) for layer in side] for side in (before, after)]
    names = [[_names(layer) for layer in side] for side in (before, after)]
    score = np.full((len(before), len(after)), -np.inf)
    for i, a in enumerate(before):
        for j, b in enumerate(after):
            if FAMILIES.get(a.kind, a.kind) != FAMILIES.get(b.kind, b.kind):
                continue
            total = 3.0 * bool(names[0][i] & names[1][j])
            total += 1.0 * (a.weight is not None and b.weight is not None and a.weight.shape == b.weight.shape)
            total += 3.0 * _alike(weights[0][i], weights[1][j])
            total += 1.5 * max((_alike(x, y) for x in prints[0][i][0] for y in prints[1][j][0]), default=0.0)
            total += 2.0 * max((_alike(x, y) for x in prints[0][i][1] for y in prints[1][j][1]), default=0.0)
            total -= 2.0 * abs(i / len(before) - j / len(after))
            score[i, j] = total
    return score


def _names(layer: Layer) -> set[str]:
    """What the layer, its output and its weights are called, without what tools put behind names."""
    found = {layer.node.name if not layer.node.unnamed else "", layer.node.outputs[0].name}
    found |= {place.tensor.name for place in (layer.linear, layer.active)}
    found |= {t.name for t in layer.node.inputs if isinstance(t, Constant)}
    return {short for name in found if (short := ENDINGS.sub("", name))}


def _prints(layer: Layer, seen: Values) -> tuple[list[Array], list[Array]]:
    """Samples of the values at the entries and at the exits."""
    sides: tuple[list[Array], list[Array]] = ([], [])
    for side, places in zip(sides, (layer.entries, (layer.linear, layer.active)), strict=True):
        side.extend(fingerprint(seen[p.tensor.name]) for p in places if p.tensor.name in seen)
    return sides


def _weight_print(layer: Layer) -> Array | None:
    """Rows without their lengths, which folding BatchNormalization and scales change."""
    if layer.weight is None:
        return None
    norm = np.linalg.norm(layer.weight, axis=1, keepdims=True)
    return fingerprint(layer.weight / np.maximum(norm, 1e-20), 8 * PRINT)


def fingerprint(values: Array, most: int = PRINT) -> Array:
    """Evenly spaced elements."""
    flat = values.reshape(-1)
    picked = flat[np.linspace(0, flat.size - 1, min(most, flat.size)).astype(np.int64)] if flat.size else flat
    return picked.astype(np.float64)


def _alike(a: Array | None, b: Array | None) -> float:
    """Cosine, 0 where sizes differ or it is negative."""
    if a is None or b is None or a.shape != b.shape or not a.size:
        return 0.0
    with np.errstate(all="ignore"):
        found = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return max(0.0, found) if np.isfinite(found) else 0.0


def parents(layers: Sequence[Layer]) -> list[set[int]]:
    """For each layer the nearest layers in front of it."""
    index = {layer.node: layer.index for layer in layers}
    found = []
    for layer in layers:
        near: set[int] = set()
        stack = [t.producer for t in layer.node.inputs]
        visited: set[Node] = set()
        while stack:
            node = stack.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            if node in index:
                near.add(index[node])
            else:
                stack.extend(t.producer for t in node.inputs)
        found.append(near)
    return found


def _pair(before: Layer, after: Layer, seen: tuple[Values, Values], shapes: tuple[Shapes, Shapes]) -> Pair:
    entry, exits = _entry(before, after, seen), _exits(before, after, seen)
    left: dict[tuple[str, str], Left] = {}

    def pruned(ends: tuple[Place, Place]) -> bool:
        name = ends[0].tensor.name, ends[1].tensor.name
        found = aligned(
            *(_as_shaped(place, *side) for place, side in zip(ends, zip(seen, shapes, strict=True), strict=True))
        )
        if found is not None:
            left[name] = found
        return found is not None

    if entry is None:
        near = [(i + j, (a, b)) for i, a in enumerate(before.entries) for j, b in enumerate(after.entries)]
        entry = next((ends for _, ends in sorted(near, key=lambda one: one[0]) if pruned(ends)), None)
    if not exits:
        exits = tuple(ends for ends in _candidates(before, after) if pruned(ends))
    return Pair(before, after, entry, exits, left)


def _as_shaped(place: Place, values: Values, shapes: Shapes) -> Array:
    """[samples, *shape]; empty where that is not known."""
    found, shape = values.get(place.tensor.name), shapes.static(place.tensor)
    if found is None or not shape or not (one := prod(shape)) or found.size % one:
        return np.zeros(0)
    return found.reshape(-1, *shape)


def _entry(before: Layer, after: Layer, seen: tuple[Values, Values]) -> tuple[Place, Place] | None:
    """The nearest two places whose values agree as well as any; the nearest of one size where none agree.

    All elements are looked at: what a Clip in front of a layer cuts off may be one in a thousand.
    """
    found = []
    for i, a in enumerate(before.entries):
        for j, b in enumerate(after.entries):
            x, y = seen[0].get(a.tensor.name), seen[1].get(b.tensor.name)
            if x is not None and y is not None and x.size == y.size:
                found.append((i + j, 1 - _alike(x.astype(np.float64), y.astype(np.float64)), (a, b)))
    if not found:
        return None
    found.sort(key=lambda one: one[0])
    best = min(apart for _, apart, _ in found)
    if best >= 0.5:
        return found[0][2]
    return next(places for _, apart, places in found if apart <= 2 * best + SAME)


def _exits(before: Layer, after: Layer, seen: tuple[Values, Values]) -> tuple[tuple[Place, Place], ...]:
    """Places of one size; behind bias and scale and behind the function where both have the same function."""

    def same(a: Place, b: Place) -> bool:
        x, y = seen[0].get(a.tensor.name), seen[1].get(b.tensor.name)
        return x is not None and y is not None and x.size == y.size

    return tuple(pair for pair in _candidates(before, after) if same(*pair))


def _candidates(before: Layer, after: Layer) -> list[tuple[Place, Place]]:
    """Places that may be the same, each pair once."""
    found = [
        (before.linear, after.linear),
        (before.active, after.active),
        (before.active, after.linear),
        (before.product, after.product),
    ]
    return list(dict.fromkeys(found))


def same_function(pair: Pair) -> bool:
    """Whether both layers go through the same activation function by nodes of their own."""
    return pair.before.active_ops == pair.after.active_ops


def bias_elsewhere(pair: Pair) -> bool:
    """Whether the second graph adds the first one's bias in a later, fused node."""
    bias = pair.before.bias
    if bias is None:
        adders = [n for n in _chain(pair.before) if n.op == "Add"]
        bias = next((t.values for n in adders for t in n.inputs if isinstance(t, Constant)), None)
    if bias is None:
        return False
    flat = np.asarray(bias, np.float64).reshape(-1)
    return any(v.shape == flat.shape and np.allclose(v, flat, rtol=1e-2, atol=1e-6) for v in pair.after.vectors)


def _chain(layer: Layer) -> list[Node]:
    """The nodes from the product to the place behind bias and scale."""
    found: list[Node] = []
    node = layer.linear.tensor.producer
    while node is not None and node is not layer.node and len(found) < 16:
        found.append(node)
        node = next((t.producer for t in node.inputs if t.producer is not None), None)
    return found
