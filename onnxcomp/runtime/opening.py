"""Does ONNX Runtime live through opening a graph? Asked of a process of its own: an abort cannot be caught."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from onnxcomp.errors import OnnxcompError
from onnxcomp.files import scratch
from onnxcomp.graph.io import save
from onnxcomp.graph.ir import Graph
from onnxcomp.runtime import child
from onnxcomp.runtime.session import open_session

MODULE = "onnxcomp.runtime.opening"


def death(graphs: Sequence[Graph], module: str = MODULE) -> str:
    """How a process ended that opened the graphs, such as `SIGABRT`; empty where it lived, whether they run or not.

    Args:
        module: what the process runs.
    """
    with scratch("open") as folder:
        paths = [folder / f"{index}.onnx" for index in range(len(graphs))]
        for graph, path in zip(graphs, paths, strict=True):
            save(graph, path)
        return child.death(module, {"models": [str(path) for path in paths]})


def opened(order: dict[str, Any]) -> dict[str, Any]:
    """What the child does; a refusal is an answer."""
    for model in order["models"]:
        with suppress(OnnxcompError):
            open_session(model)
    return {"lived": True}


if __name__ == "__main__":
    sys.exit(child.serve(opened))
