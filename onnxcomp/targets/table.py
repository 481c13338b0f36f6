"""Which targets exist?"""

from __future__ import annotations

from onnxcomp.errors import UsageError
from onnxcomp.targets.base import Target
from onnxcomp.targets.cpu import CPU
from onnxcomp.targets.cuda import CUDA
from onnxcomp.targets.tensorrt import TENSORRT

TARGETS = {target.name: target for target in (CPU, CUDA, TENSORRT)}


def find(name: str) -> Target:
    """The record of a target.

    Raises:
        UsageError: there is no such target.
    """
    if name not in TARGETS:
        raise UsageError(f"there is no target {name!r}", where="--target", do=f"use one of {', '.join(TARGETS)}")
    return TARGETS[name]
