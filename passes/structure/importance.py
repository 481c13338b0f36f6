"""How much does each unit of a group matter? From weights alone, or from measured inputs of the layers that read it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxcomp.graph.coupling.analysis import Group
from onnxcomp.graph.ir import Array, Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.ops.facts import Operators
from onnxcomp.passes.pruning.solve import Problem
from onnxcomp.passes.structure.elimination import Added, Curve, Eliminated, Exchanged, eliminate, exchange, select
from onnxcomp.passes.structure.readers import MOST_MOMENT_BYTES, Reader, makers, readers, ridge
from onnxcomp.runtime.gram import Gram, Target, gram, moment_bytes

BATCH = 32
FEW = 4


def weight_scores(
    group: Group, method: str, operators: Operators, seed: int, taylor: Mapping[str, Array] | None = None
) -> Array:
    """One score a unit from the weights that make it; float64 [units], mean 1 over the group but for taylor.

    taylor: what the loss would change by (onnxcomp.passes.structure.taylor). l1, l2: norm of its slices (Li et al.,
    arXiv 1608.08710). fpgm: distance to the other units (He et al., arXiv 1811.00250). bn: |scale| of
    BatchNormalization (Liu et al., arXiv 1708.06519), l2 where there is none. random.
    """
    if method == "random":
        return np.random.default_rng([seed, *group.name.encode()]).random(group.size)
    if method == "bn":
        scales = [
            np.abs(np.asarray(slot.constant.values, np.float64)[slot.indices]).sum(axis=1)
            for slot in group.slots
            if any(n.op == "BatchNormalization" and n.constant(1) is slot.constant for n in slot.constant.consumers)
        ]
        if scales:
            return _normalised(np.sum(scales, axis=0))
    if method == "taylor" and taylor is not None:
        scores: Array = np.concatenate(list(_rows(group, operators, taylor)), axis=1).sum(axis=1)
        return scores
    rows = np.concatenate(list(_rows(group, operators)), axis=1)  # [units, everything that makes them]
    if method == "l1":
        return _normalised(np.abs(rows).sum(axis=1))
    if method == "fpgm":
        square = np.square(rows).sum(axis=1)
        distance = np.sqrt(np.maximum(square[:, None] + square - 2 * rows @ rows.T, 0.0))
        return _normalised(distance.sum(axis=1))
    return _normalised(np.sqrt(np.square(rows).sum(axis=1)))


def weight_curve(
    group: Group, method: str, operators: Operators, seed: int, taylor: Mapping[str, Array] | None = None
) -> Curve:
    """Units by rising score; errors are sums of scores."""
    return _by_score(weight_scores(group, method, operators, seed, taylor))


def measured_curves(
    graph: Graph,
    groups: Sequence[Group],
    method: str,
    context: PassContext,
    damping: float,
    least: Mapping[str, int],
    fixed: Collection[str] = (),
) -> Iterator[tuple[Group, Curve | None, str]]:
    """Error curves from calibration data, for groups whose readers can all be measured; else None and why.

    activation: the readers' output error without any refit. reconstruction: with refit, by backward elimination.

    Args:
        least: fewest units that stay, by group name.
        fixed: names of groups of which exactly the fewest stay: only that end of the curve matters.
    """
    by_group = {group.name: list(readers(graph, group, context.operators)) for group in groups}
    for batch in _batches(groups, by_group):
        moments = _moments(graph, [r for group in batch for r in by_group[group.name]], context)
        for group in batch:
            found = by_group[group.name]
            bad = next((r for r in found if r.layer is None or r.use.weight.group > 1), None)
            unusable = next((r for r in found if r.layer and not moments[r.layer.node.name].finite), None)
            if not found:
                yield group, None, "no layer with weights reads it"
            elif bad is not None:
                yield group, None, f"{bad.use.node}: {bad.why or 'it works in groups'}"
            elif unusable is not None:
                yield group, None, f"{unusable.use.node}: its inputs overflow or hold NaN on the calibration data"
            else:
                curve = _measured(group, found, moments, method, damping, least[group.name], group.name in fixed)
                yield group, replace(curve, whole=_varying(found, moments)), ""


def _varying(found: Sequence[Reader], moments: Mapping[str, Gram]) -> float:
    """What readers give about its mean, as a share of its energy, summed over the readers."""
    total = 0.0
    for reader in found:
        at = moments[reader.layer.node.name] if reader.layer is not None else None
        if at is not None and at.power is not None and at.cross is not None:
            energy = float(at.power.sum())
            total += (energy - float(np.square(at.cross[:, -1]).sum())) / max(energy, 1e-30)
    return total


def _measured(
    group: Group,
    found: Sequence[Reader],
    moments: Mapping[str, Gram],
    method: str,
    damping: float,
    least: int,
    fixed: bool,
) -> Curve:
    states: list[Problem] = []
    energies: list[float] = []
    costs = np.zeros(group.size)
    for reader in found:
        layer = reader.layer
        assert layer is not None
        at = moments[layer.node.name]
        energy = max(float(at.power.sum()) if at.power is not None else 0.0, 1e-30)
        plain = Gram(at.h, at.count)  # the layer's own outputs are what it should give
        problem = Problem.of(plain, layer.weights(), layer.bias_values(), ridge(at, damping))
        if method == "reconstruction":
            states.append(problem)
            energies.append(energy)
        else:
            w = layer.weights()[0].T[reader.columns]  # [units, n, out]
            second = at.second[0][reader.columns[:, :, None], reader.columns[:, None, :]]
            costs += np.einsum("udo,ude,ueo->u", w, second, w) / energy
    if not states:
        return _by_score(costs)
    parts = [(p, r.columns, e) for p, r, e in zip(states, found, energies, strict=True)]
    curve = eliminate([Eliminated(*part) for part in parts], group.size, least)
    if not fixed:
        return curve
    if least * FEW <= group.size:  # forward selection takes long, and wins, only where few of many stay
        other = select([Added(*part) for part in parts], group.size, least)
        curve = min(curve, other, key=lambda one: float(one.errors[group.size - least]))
    parted = [Exchanged(p.a[0], np.ascontiguousarray(p.r[0].T), columns, energy) for p, columns, energy in parts]
    return exchange(parted, curve, least)


def _batches(groups: Sequence[Group], by_group: Mapping[str, Sequence[Reader]]) -> Iterator[list[Group]]:
    """Consecutive groups whose readers' moments fit the memory together."""
    batch: list[Group] = []
    used = 0
    for group in groups:
        size = sum(2 * moment_bytes(r.use) for r in by_group[group.name] if r.layer is not None)
        if batch and used + size > MOST_MOMENT_BYTES:
            yield batch
            batch, used = [], 0
        batch.append(group)
        used += size
    if batch:
        yield batch


def _moments(graph: Graph, found: Sequence[Reader], context: PassContext) -> dict[str, Gram]:
    """Moments of what enters each reader, with the energy of what it adds to, as `power`."""
    layers = {r.layer.node.name: r.layer for r in found if r.layer is not None}
    assert context.calibration is not None
    if not layers:
        return {}
    targets = {}
    for name, layer in layers.items():
        total = layer.output
        adder = total.outputs[0] if len(total.outputs) == 1 else None
        if adder is not None and adder.op == "Add" and not graph.is_output(total) and layer.group == 1:
            total = adder.outputs[0]  # behind a residual Add: an error is small beside the whole stream
        targets[name] = Target(total.name)
    return gram(
        graph,
        [layer.use for layer in layers.values()],
        context.calibration,
        targets=targets,
        batch=BATCH,
        threads=context.threads,
        seed=context.seed,
        progress=context.progress,
    )


def _rows(group: Group, operators: Operators, instead: Mapping[str, Array] | None = None) -> Iterator[Array]:
    """[units, elements] of each weight that makes the units; of all float weights where none does.

    Args:
        instead: by initializer, what to look at in place of its values; of others nothing.
    """
    found = [slot for slot, _, _ in makers(group, operators)]
    slots = found or [slot for slot in group.slots if "float" in slot.constant.dtype.name]
    for slot in {id(slot): slot for slot in slots}.values():
        held = slot.constant.values if instead is None else instead.get(slot.constant.name)
        values = np.zeros(slot.constant.shape) if held is None else np.asarray(held).astype(np.float64)
        moved = np.moveaxis(values, slot.axis, 0)[slot.indices]
        yield moved.reshape(group.size, -1)
    if not slots:
        yield np.ones((group.size, 1))


def _by_score(scores: Array) -> Curve:
    order = np.argsort(scores, kind="stable")
    return Curve(order, np.concatenate([[0.0], np.cumsum(scores[order])]), measured=False)


def _normalised(scores: Array) -> Array:
    mean = float(scores.mean())
    return scores / mean if mean > 0 else scores
