"""onnxcomp compresses trained ONNX models and measures what it cost.

Everything here is loaded on first use, so that importing the package is instant.
"""

from __future__ import annotations

import importlib
from typing import Any

from onnxcomp._version import __version__

_HOMES = {
    "optimize": "onnxcomp.driver",
    "explain": "onnxcomp.explanation.explain",
    "load": "onnxcomp.graph.io",
    "save": "onnxcomp.graph.io",
    "Graph": "onnxcomp.graph.ir",
    "Pass": "onnxcomp.manager.base",
    "PassContext": "onnxcomp.manager.base",
    "Outcome": "onnxcomp.manager.base",
    "Range": "onnxcomp.manager.base",
    "Stage": "onnxcomp.manager.base",
    "Guarantee": "onnxcomp.manager.base",
    "option": "onnxcomp.manager.base",
    "Pipeline": "onnxcomp.manager.pipeline",
    "PassManager": "onnxcomp.manager.pipeline",
    "Report": "onnxcomp.results",
}

__all__ = [
    "Graph",
    "Guarantee",
    "Outcome",
    "Pass",
    "PassContext",
    "PassManager",
    "Pipeline",
    "Range",
    "Report",
    "Stage",
    "__version__",
    "explain",
    "load",
    "optimize",
    "option",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxcomp' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
