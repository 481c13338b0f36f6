"""Random valid models of many kinds: operators of opsets 7 to 23, bodies, functions, dynamic batches, odd forms.

Every choice comes from one seed; the order of the moves' modules belongs to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import wild_moves
import wild_moves_nested
import wild_moves_newer
import wild_moves_rare
import wild_variations
from onnx import ModelProto
from wild_grower import BATCHES, MOVES, Grower, NoModelError, open_model

DRAWN_FROM = (wild_moves, wild_moves_nested, wild_moves_newer, wild_moves_rare)
assert list(dict.fromkeys(move.make.__module__ for move in MOVES)) == [module.__name__ for module in DRAWN_FROM]

Feeds = Callable[[int, int], dict[str, np.ndarray]]


@dataclass
class Wild:
    """A random model.

    Attributes:
        proto: the model.
        feeds: arrays by input name for a batch of any size.
    """

    seed: int
    proto: ModelProto
    feeds: Feeds


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
        return _varied(seed, proto, grower)
    raise NoModelError(f"seed {seed}")


def _varied(seed: int, proto: ModelProto, grower: Grower) -> Wild:
    """The model in another form, where the seed draws one and the model still runs so."""
    form = wild_variations.drawn(grower.random)
    if form is not None:
        with contextlib.suppress(Exception):  # ONNX Runtime's own errors share no class; the form does not fit
            varied = form(proto)
            feeds = wild_variations.feeds_of(varied, grower.feed)
            _check(varied, grower, feeds)
            return Wild(seed, varied, feeds)
    return Wild(seed, proto, grower.feed)


def _check(proto: ModelProto, grower: Grower, feeds: Feeds | None = None) -> None:
    """The whole model runs, optimized or not, and gives the same."""
    feeds = feeds or grower.feed
    deprecated = any(n.op_type == "GroupNormalization" for n in proto.graph.node) and grower.opset < 21
    if not deprecated:
        onnx.checker.check_model(proto)
    plain, optimized = open_model(proto), open_model(proto, optimized=True)
    for batch in BATCHES:
        feed = feeds(batch, 7)
        for a, b in zip(plain.run(None, feed), optimized.run(None, feed), strict=True):
            if a.shape != b.shape or (a.dtype.kind == "f" and not np.isfinite(a).all()):
                raise NoModelError
            close = 1e-2 if a.dtype == np.float16 else 1e-3
            if a.dtype.kind == "f" and np.abs(a - b).max(initial=0) > close * max(1e-3, np.abs(a).max(initial=0)):
                raise NoModelError
