"""Which operators does this ONNX Runtime know by name, and run?"""

from __future__ import annotations

import functools

from onnxruntime.capi import onnxruntime_pybind11_state

PLUGIN = "plugin_version"  # an attribute of TensorRT's plugins: builds with TensorRT name some, and have no kernel


@functools.cache
def _known() -> frozenset[tuple[str, str]]:
    schemas = onnxruntime_pybind11_state.get_all_operator_schema()
    return frozenset((_bare(s.domain), s.name) for s in schemas if PLUGIN not in s.attributes)


def is_unknown(domain: str, op: str) -> bool:
    """Whether no model with this operator runs here on the CPU, whatever its version and types."""
    return (_bare(domain), op) not in _known()


def _bare(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
