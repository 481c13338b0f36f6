"""Training forms of quantization operators."""

from __future__ import annotations

from onnxcomp.graph.rewriting import Rewrite

RULES: dict[str, Rewrite] = {}
