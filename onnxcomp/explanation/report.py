"""What does an explanation hold? One row a layer, worst own error first, and which few make most of the loss."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from onnxcomp.report.explanation import COLUMNS, headline, lines, rows
from onnxcomp.report.notebook import fragment
from onnxcomp.results import finite


@dataclass(frozen=True)
class LayerLoss:
    """One layer of the first model and what became of it in the second.

    Attributes:
        node, output: names in the first model.
        after: name of the node in the second model; None where it has none.
        op: operators before and after.
        own_sqnr_db: of this layer alone, fed as the first model feeds it; None where it is equal or was not measured.
        accumulated_sqnr_db: with what the second model feeds it; None where it is equal.
        equal: whether nothing differs at all.
        why: in words.
        advice: passes to run on the first model: they make one like the second with this layer left as it was. Empty
            where nothing is lost.
        weight_sqnr_db: of the weights themselves.
        input_range: what the first model feeds it, lowest and highest.
        quantized_range: what the second model's quantization lets in; None where it has none.
        scale: its step; 0 where it has none.
        clipped: share of the input outside of that range.
        saturated: share of the stored weights at the ends of their type's range.
        dead_channels: output channels that are zero now and were not.
        bytes: of weights and bias, before and after.
        microseconds: of the kernel, before and after; None where it was not found in the profile.
        remedy: in words, what would mend the layer itself; empty where nothing but its form is to blame.
        fault: whether no rounding can have done this: the second file is wrong here.
    """

    node: str
    output: str
    after: str | None
    op: tuple[str, str]
    own_sqnr_db: float | None
    accumulated_sqnr_db: float | None
    equal: bool
    why: str
    advice: str
    weight_sqnr_db: float | None = None
    input_range: tuple[float, float] | None = None
    quantized_range: tuple[float, float] | None = None
    scale: float = 0.0
    clipped: float = 0.0
    saturated: float = 0.0
    dead_channels: int = 0
    bytes: tuple[int, int] = (0, 0)
    microseconds: tuple[float, float] | None = None
    remedy: str = ""
    fault: bool = False


@dataclass(frozen=True)
class Explanation:
    """What was found out about a pair of models.

    Attributes:
        before, after: what was compared, in words or as paths.
        samples: how many were run.
        total: how many there are.
        options: how the samples were read, as flags of any command: `--data` with all that prepares them.
        layers: what no rounding can have done first, then worst own error first; equal ones last.
        culprits: how many of the first layers make most of the loss.
        unmatched: layers of the first model, and of the second, without a partner.
        notes: what the reader must know of how it was measured.
        advice: passes to run on the first model, with all culprits left as they were; empty where nothing is lost.
    """

    before: str
    after: str
    samples: int
    layers: tuple[LayerLoss, ...]
    culprits: int
    unmatched: tuple[tuple[str, ...], tuple[str, ...]]
    notes: tuple[str, ...] = ()
    advice: str = ""
    total: int = 0
    options: str = ""

    def __repr__(self) -> str:
        worst = ", ".join(layer.node for layer in self.layers[: self.culprits])
        return f"<Explanation {self.after}: {len(self.layers)} layers, most of the loss in {worst or 'none'}>"

    def _repr_html_(self) -> str:
        content = self.to_json()
        return fragment(headline(content), COLUMNS, rows(content), lines(content))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data, without NaN or Infinity."""
        found: dict[str, Any] = finite({"schema": 1, **asdict(self)})
        return found

    def to_text(self) -> str:
        """The JSON as text."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def in_order(layers: list[LayerLoss]) -> list[LayerLoss]:
    """Worst own error first; what was not measured alone by what has piled up; equal layers last.

    A layer with a fault goes before all that were only rounded: it may lose less than a coarse range costs another
    layer, and yet nobody wanted it.
    """

    def key(layer: LayerLoss) -> tuple[int, float]:
        if layer.own_sqnr_db is not None:
            return -1 if layer.fault else 0, layer.own_sqnr_db
        return (2, 0.0) if layer.accumulated_sqnr_db is None else (1, layer.accumulated_sqnr_db)

    return sorted(layers, key=key)


def culprits(layers: list[LayerLoss], share: float = 0.8, most: int = 8) -> int:
    """How many of the first layers hold that share of all layers' relative noise."""
    noises = [10 ** (-layer.own_sqnr_db / 10) for layer in layers if layer.own_sqnr_db is not None]
    total, so_far = sum(noises), 0.0
    for count, noise in enumerate(noises, 1):
        so_far += noise
        if so_far >= share * total or count == most:
            return count
    return 0
