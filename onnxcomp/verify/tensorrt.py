"""Does TensorRT take a model, and which of its products become int8? Its own parser and builder answer; no GPU."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp.data.inputs import inputs_of
from onnxcomp.data.open import random_data
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.io import load
from onnxcomp.layers.layer import multiplies
from onnxcomp.ops.facts import load_operators
from onnxcomp.runtime.tensorrt import Acceptance, acceptance
from onnxcomp.targets.tensorrt import TARGET

NO_RULE = "it has no Q and DQ"


@dataclass(frozen=True)
class TensorrtVerdict:
    """What TensorRT makes of a model.

    Attributes:
        model: the file.
        shapes: of the inputs that the engine was built for.
        acceptance: the parser's and builder's answer.
        kept_float: products without Q and DQ, and why the rules of the target leave them, where they do.
    """

    model: Path
    shapes: dict[str, tuple[int, ...]]
    acceptance: Acceptance
    kept_float: dict[str, str]

    @property
    def integer(self) -> int:
        """How many products are int8 in the engine."""
        return sum(product.integer for product in self.acceptance.products)

    @property
    def accepted(self) -> bool:
        """Whether it parses and builds."""
        return self.acceptance.accepted

    def lines(self) -> Iterator[str]:
        """The verdict in words, the conclusion first."""
        found = self.acceptance
        if not found.accepted:
            yield f"TensorRT (its parser {found.version}) refuses the model"
            for node, op, text in found.problems:
                yield f"{op} {node}: {text}".lstrip(": ") if node or op else text
            return
        yield (
            f"TensorRT (its parser {found.version}) takes the model; in the engine "
            f"{self.integer} of {len(found.products)} Conv, Gemm and MatMul are int8"
        )
        for product in found.refused:
            yield f"{product.op} {product.node} has Q and DQ, and yet is not int8 ({product.kind or 'no layer'})"
        for why, count in Counter(self.kept_float.values()).most_common():
            yield f"{count} kept float: {why}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "accepted": self.acceptance.accepted,
            "integer": self.integer,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            **dataclasses.asdict(self.acceptance),
            "kept_float": self.kept_float,
        }


def ask_tensorrt(model: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> TensorrtVerdict:
    """Parse a model, build its engine, and see what became of its products.

    Args:
        model: a file, whoever made it.
        shapes: sizes for free dimensions; what is missing is guessed as for made-up data, with a batch of one.

    Raises:
        EnvironmentLacksError: the parser is not installed.
        ModelError: the file cannot be read, or TensorRT dies of it.
    """
    inputs, _ = inputs_of(model)
    feed = next(random_data(inputs, 1, 0, shapes).samples().batches(1))
    sizes = {name: tuple(int(size) for size in array.shape) for name, array in feed.items()}
    found = acceptance(model, sizes)
    reasons = _reasons(model, sizes) if found.accepted else {}
    asked = {product.node for product in found.products if product.asked}
    left = {p.node: reasons.get(p.node, NO_RULE) for p in found.products if p.node not in asked}
    return TensorrtVerdict(model, sizes, found, left)


def _reasons(model: Path, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """For each product that the target's rules leave float: why."""
    graph, operators = load(model), load_operators()
    shapes = shape_tools.infer(graph, dict(sizes))
    found = {}
    for node in graph.walk():
        kernel = TARGET.kernels.get(node.op)
        name = node.name or f"node_of_{node.outputs[0].name}"
        if kernel is None and multiplies(node, operators):
            found[name] = f"TensorRT has no integer kernel for {node.op}"
        if kernel is None or not kernel.weighted:
            continue
        weights = [w for w in operators.facts(node).weights(node) if node.constant(w.port) is not None]
        why = kernel.refuses(node, weights[0], shapes) if weights else "it multiplies two activations"
        if why:
            found[name] = why
    return found
