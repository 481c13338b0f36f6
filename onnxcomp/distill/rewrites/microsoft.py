"""Training forms of microsoft operators."""

from __future__ import annotations

from onnxcomp.graph.rewriting import Rewrite

RULES: dict[str, Rewrite] = {}
