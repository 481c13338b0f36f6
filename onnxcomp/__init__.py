"""onnxcomp compresses trained ONNX models and measures what it cost.

Everything here is loaded on first use, so that importing the package is instant.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from onnxcomp._version import __version__

if TYPE_CHECKING:
    from onnxcomp.api import (
        Built,
        Model,
        Result,
        Verdict,
        bench,
        build,
        compare,
        distill,
        explain,
        inspect,
        optimize,
        verify,
    )
    from onnxcomp.benchmark import BenchTable
    from onnxcomp.comparison import Comparison
    from onnxcomp.data.metric import Metric
    from onnxcomp.errors import OnnxcompError
    from onnxcomp.explanation.report import Explanation
    from onnxcomp.graph.io import load, save
    from onnxcomp.graph.ir import Graph
    from onnxcomp.inspection import Inspection
    from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, Range, Stage, option
    from onnxcomp.manager.pipeline import PassManager, Pipeline
    from onnxcomp.results import Report

_HOMES = {
    "optimize": "onnxcomp.api",
    "distill": "onnxcomp.api",
    "verify": "onnxcomp.api",
    "bench": "onnxcomp.api",
    "compare": "onnxcomp.api",
    "inspect": "onnxcomp.api",
    "explain": "onnxcomp.api",
    "build": "onnxcomp.api",
    "Model": "onnxcomp.api",
    "Result": "onnxcomp.api",
    "Verdict": "onnxcomp.api",
    "Built": "onnxcomp.api",
    "BenchTable": "onnxcomp.benchmark",
    "Comparison": "onnxcomp.comparison",
    "Inspection": "onnxcomp.inspection",
    "Explanation": "onnxcomp.explanation.report",
    "Report": "onnxcomp.results",
    "Metric": "onnxcomp.data.metric",
    "OnnxcompError": "onnxcomp.errors",
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
}

__all__ = [
    "BenchTable",
    "Built",
    "Comparison",
    "Explanation",
    "Graph",
    "Guarantee",
    "Inspection",
    "Metric",
    "Model",
    "OnnxcompError",
    "Outcome",
    "Pass",
    "PassContext",
    "PassManager",
    "Pipeline",
    "Range",
    "Report",
    "Result",
    "Stage",
    "Verdict",
    "__version__",
    "bench",
    "build",
    "compare",
    "distill",
    "explain",
    "inspect",
    "load",
    "optimize",
    "option",
    "save",
    "verify",
]


class _Package(ModuleType):
    """This package, in which a public function keeps its name although a folder of the source has it, too.

    The import system binds `onnxcomp.verify`, the folder, here whenever something below it is imported;
    `from onnxcomp.verify.budget import Budget` works without that.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:  # checkers shall refuse names that do not exist

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'onnxcomp' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
