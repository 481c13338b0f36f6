"""Random valid models of many kinds: operators of opsets 7 to 23, bodies, functions, dynamic batches, odd forms.

Every choice comes from one seed; the order of the moves' modules belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import wild_moves
import wild_moves_nested
import wild_moves_rare
from onnx import ModelProto
from wild_grower import BATCHES, MOVES, Grower, NoModelError, open_model

DRAWN_FROM = (wild_moves, wild_moves_nested, wild_moves_rare)
assert list(dict.fromkeys(move.make.__module__ for move in MOVES)) == [module.__name__ for module in DRAWN_FROM]


@dataclass
class Wild:
    """A random model.

    Attributes:
        proto: the model.
        feeds: arrays by input name for a batch of any size.
    """

    seed: int
    proto: ModelProto
    feeds: Callable[[int, int], dict[str, np.ndarray]]


def wild(seed: int) -> Wild:
    """The model of a seed. A few seeds give none at first and draw again, as the seed says."""
    for again in range(20):
        grower = Grower(seed * 20 + again)
        grower.start()
        grower.grow(int(grower.random.integers(3, 14)))
        try:
            proto = grower.finish()
            _check(proto, grower)
        except (NoModelError, onnx.checker.ValidationError, ValueError, RuntimeError):
            continue
        except Exception as error:  # ONNX Runtime's own errors share no class
            if "onnxruntime" not in type(error).__module__:
                raise
            continue
        return Wild(seed, proto, grower.feed)
    raise NoModelError(f"seed {seed}")


def _check(proto: ModelProto, grower: Grower) -> None:
    """The whole model runs, optimized or not, and gives the same."""
    deprecated = any(n.op_type == "GroupNormalization" for n in proto.graph.node) and grower.opset < 21
    if not deprecated:
        onnx.checker.check_model(proto)
    plain, optimized = open_model(proto), open_model(proto, optimized=True)
    for batch in BATCHES:
        feed = grower.feed(batch, 7)
        for a, b in zip(plain.run(None, feed), optimized.run(None, feed), strict=True):
            if a.shape != b.shape or (a.dtype.kind == "f" and not np.isfinite(a).all()):
                raise NoModelError
            if a.dtype.kind == "f" and np.abs(a - b).max(initial=0) > 1e-3 * max(1e-3, np.abs(a).max(initial=0)):
                raise NoModelError
