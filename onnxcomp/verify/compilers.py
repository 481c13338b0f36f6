"""What does a target's own compiler say of a model? The target's record names who asks it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from onnxcomp.targets.base import Target


class Compiled(Protocol):
    """What a compiler made of a model."""

    @property
    def accepted(self) -> bool:
        """Whether it takes the model."""
        ...

    def lines(self) -> Iterator[str]:
        """In words, the conclusion first."""
        ...

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data."""
        ...


def ask(target: Target, model: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Compiled | None:
    """Have a target's own compiler take a model; None where the target has none that can be asked here.

    Args:
        model: a file, whoever made it.
        shapes: sizes for free dimensions; what is missing is guessed as for made-up data, with a batch of one.

    Raises:
        EnvironmentLacksError: the compiler is not installed.
        ModelError: the file cannot be read.
    """
    if not target.compiler:
        return None
    module, _, function = target.compiler.partition(":")
    found: Compiled = getattr(importlib.import_module(module), function)(model, shapes)
    return found
