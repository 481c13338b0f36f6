"""Training forms of recurrent layers: operators of the training runtime that hand out what their gradient needs."""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir import Tensor
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Rewrite, Site

MICROSOFT = "com.microsoft"
MOST_STEPS = 128  # an RNN becomes a few nodes a step


def recurrent(kind: str, gates: int, spare: int) -> Rewrite:
    """The rule of LSTM and GRU: one forward layer a direction, a reverse one on the sequence turned around.

    Args:
        kind: operator of the training runtime; it runs forward only, wants a bias and initial states, and takes no
            sequence lengths.
        gates: gates of the layer; the bias is [directions, 2 gates hidden].
        spare: outputs that only its gradient reads.
    """

    def rule(site: Site) -> Replacement:
        """An operator of the training runtime, one forward layer a direction."""
        states = 2 if kind == "LSTMTraining" else 1
        _plain(site, states)
        swapped = bool(site.attr("layout", 0))  # batch before time
        x = site.op("Transpose", site.x, perm=[1, 0, 2]) if swapped else site.x
        steps, batch = site.shape()[:2][:: -1 if swapped else 1]
        hidden = site.shape(site.tensor(2))[-1]
        directions = {"forward": [False], "reverse": [True]}.get(site.attr("direction", "forward"), [False, True])
        count = len(directions)
        bias = site.node.input(3) or np.zeros((count, 2 * gates * hidden), site.dtype)
        given = [site.node.input(port) for port in range(5, 5 + states)]
        initial = [
            np.zeros((count, batch, hidden), site.dtype)
            if state is None
            else (site.op("Transpose", state, perm=[1, 0, 2]) if swapped else state)
            for state in given
        ]
        attrs = {k: v for k, v in site.node.attrs.items() if k not in ("layout", "direction")}
        parts = []
        for d, backward in enumerate(directions):
            own = [_one(site, t, d, count) for t in (site.tensor(1), site.tensor(2), bias, *initial)]
            sequence = _turned(site, x, steps) if backward else x
            operands = [sequence, *own[:3], None, *own[3:]]
            found = site.op(kind, *operands, outputs=1 + states + spare, domain=MICROSOFT, **attrs)[: 1 + states]
            parts.append([_turned(site, found[0], steps) if backward else found[0], *found[1:]])
        joined = [
            pieces[0] if count == 1 else site.op("Concat", *pieces, axis=1 if port == 0 else 0)
            for port, pieces in enumerate(zip(*parts, strict=True))
        ]
        if not swapped:
            return joined
        back = site.op("Transpose", joined[0], perm=[2, 0, 1, 3])
        return [back, *(site.op("Transpose", state, perm=[1, 0, 2]) for state in joined[1:])]

    return rule


def unrolled(site: Site) -> Replacement:
    """RNN written out step by step: h = tanh(x W' + h R' + bias), forward, reverse or both."""
    _plain(site, 1, but=("activations",))
    if site.attr("layout", 0):
        raise CannotRewriteError("its batch stands before its time")
    steps, batch, _ = site.shape()
    if steps > MOST_STEPS:
        raise CannotRewriteError(f"{steps} steps are too many to be written out")
    count, hidden = site.shape(site.tensor(2))[0], site.shape(site.tensor(2))[-1]
    kinds = [k.decode() if isinstance(k, bytes) else k for k in site.attr("activations", ["Tanh"] * count)]
    if not set(kinds) <= {"Tanh", "Relu", "Sigmoid"}:
        raise CannotRewriteError(f"its activation is {kinds[0]}")
    backward = {"forward": [False], "reverse": [True]}.get(site.attr("direction", "forward"), [False, True])
    outputs, states = [], []
    for d in range(count):
        w, r = (site.op("Transpose", _flat(site, site.tensor(port), d, count), perm=[1, 0]) for port in (1, 2))
        driven = site.op("MatMul", site.x, w)
        bias = site.node.input(3)
        if bias is not None:
            own = _flat(site, bias, d, count)
            driven = site.op(
                "Add", driven, site.op("Add", site.slice(own, 0, 0, hidden), site.slice(own, 0, hidden, 2 * hidden))
            )
        first = site.node.input(5)
        state = np.zeros((batch, hidden), site.dtype) if first is None else _flat(site, first, d, count)
        found: dict[int, Tensor] = {}
        for step in range(steps)[:: -1 if backward[d] else 1]:
            drive = site.reshape(site.slice(driven, 0, step, step + 1), [batch, hidden])
            state = site.op(kinds[d], site.op("Add", drive, site.op("MatMul", state, r)))
            found[step] = site.reshape(state, [1, 1, batch, hidden])
        outputs.append(site.op("Concat", *(found[step] for step in range(steps)), axis=0))
        states.append(site.reshape(state, [1, batch, hidden]))
    if count == 1:
        return [outputs[0], states[0]]
    return [site.op("Concat", *outputs, axis=1), site.op("Concat", *states, axis=0)]


def _flat(site: Site, tensor: Tensor, direction: int, count: int) -> Tensor:
    """What a direction has of a tensor [directions, ...], without that axis."""
    return site.reshape(_one(site, tensor, direction, count), site.shape(tensor)[1:])


def _one(site: Site, tensor: Tensor | np.ndarray, direction: int, count: int) -> Tensor | np.ndarray:
    """What a direction has of a tensor [directions, ...]."""
    if count == 1:
        return tensor
    if isinstance(tensor, np.ndarray):
        return tensor[direction : direction + 1]
    return site.slice(tensor, 0, direction, direction + 1)


def _turned(site: Site, x: Tensor, steps: int) -> Tensor:
    """A sequence [steps, ...] from its end to its start."""
    result: Tensor = site.op("Gather", x, list(range(steps))[::-1], axis=0)
    return result


def _plain(site: Site, states: int, but: tuple[str, ...] = ()) -> None:
    """Refuse what the training operators do not do."""
    if site.node.input(4) is not None:
        raise CannotRewriteError("its sequences have lengths of their own")
    if site.node.input(5 + states) is not None:
        raise CannotRewriteError("it has peepholes")
    for name in ("activations", "activation_alpha", "activation_beta", "clip", "input_forget"):
        if name not in but and site.attr(name, None):
            raise CannotRewriteError(f"its attribute {name} is set")
