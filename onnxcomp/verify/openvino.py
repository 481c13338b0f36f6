"""What does OpenVINO make of a model? It is compiled, and its own account of what it runs is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp.errors import ModelError
from onnxcomp.runtime.machine import versions
from onnxcomp.runtime.openvino import OpenVINOSession, kernels
from onnxcomp.runtime.session import open_session

# as OpenVINO names kinds of layers and precisions
PRODUCTS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
INTEGERS = frozenset({"u8", "i8"})


@dataclass(frozen=True)
class OpenVINOVerdict:
    """What OpenVINO runs of a model.

    Attributes:
        model: the file.
        version: of OpenVINO.
        problem: why it does not take the model; empty when it does.
        kernels: kind of layer and precision, counted.
    """

    model: Path
    version: str
    problem: str
    kernels: Counter[tuple[str, str]]

    @property
    def accepted(self) -> bool:
        """Whether it compiles."""
        return not self.problem

    @property
    def products(self) -> Counter[str]:
        """Products by the precision they compute in."""
        found = Counter[str]()
        for (kind, precision), count in self.kernels.items():
            if kind in PRODUCTS:
                found[precision] += count
        return found

    @property
    def integer(self) -> int:
        """How many products compute on 8-bit integers."""
        return sum(count for precision, count in self.products.items() if precision in INTEGERS)

    def lines(self) -> Iterator[str]:
        """The verdict in words, the conclusion first."""
        if self.problem:
            yield f"OpenVINO {self.version} refuses the model"
            yield self.problem
            return
        yield (
            f"OpenVINO {self.version} takes the model: {self.integer} of {self.products.total()} convolutions and "
            "matrix products run on int8"
        )
        others = {precision: n for precision, n in sorted(self.products.items()) if precision not in INTEGERS}
        if others and self.integer:
            yield "the others: " + ", ".join(
                f"{count} in {precision or 'unknown'}" for precision, count in others.items()
            )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data."""
        counted = [{"kind": kind, "precision": p, "count": n} for (kind, p), n in sorted(self.kernels.items())]
        return {
            "accepted": self.accepted,
            "version": self.version,
            "problem": self.problem,
            "integer": self.integer,
            "kernels": counted,
        }


def ask(model: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> OpenVINOVerdict:
    """Compile a model and see what it runs.

    Args:
        model: a file, whoever made it.
        shapes: of no use: OpenVINO's kernels take free dimensions.

    Raises:
        EnvironmentLacksError: OpenVINO is not installed.
    """
    del shapes
    version = versions(("openvino",)).get("openvino", "")
    try:
        session = open_session(model, provider="openvino")
    except ModelError as error:
        return OpenVINOVerdict(model, version, error.what, Counter())
    assert isinstance(session, OpenVINOSession)
    return OpenVINOVerdict(model, version, "", kernels(session.compiled))
