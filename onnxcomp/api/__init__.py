"""The library's functions: models and data as callers have them, and results to look at in a notebook."""

from onnxcomp.api.functions import bench, build, compare, distill, explain, inspect, optimize, verify
from onnxcomp.api.models import Model
from onnxcomp.api.results import Built, Result, Verdict

__all__ = [
    "Built",
    "Model",
    "Result",
    "Verdict",
    "bench",
    "build",
    "compare",
    "distill",
    "explain",
    "inspect",
    "optimize",
    "verify",
]
