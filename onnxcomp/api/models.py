"""How does a model that a caller has in memory become the file that runs work on?"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

from onnx import ModelProto

from onnxcomp.errors import UsageError
from onnxcomp.files import scratch
from onnxcomp.graph.io import write_proto

Model: TypeAlias = str | os.PathLike[str] | bytes | ModelProto  # a file, a serialized model, or one in memory


class Files:
    """Models in memory, as files of a temporary folder that stands until `close` is called."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._folder: Path | None = None
        self._count = 0

    def path(self, model: Model) -> Path:
        """The file of a model; one in memory is written to the folder first.

        Raises:
            UsageError: it is no model.
            ModelError: a ModelProto of more than 2 GiB, which is no one message any more.
        """
        if isinstance(model, str | os.PathLike):
            return Path(model)
        if not isinstance(model, bytes | ModelProto):
            what = f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}"
            raise UsageError(what, where=repr(model)[:80], do="give one of these")
        self._count += 1
        path = self.folder / (f"model-{self._count}.onnx" if self._count > 1 else "model.onnx")
        if isinstance(model, bytes):
            path.write_bytes(model)
        else:
            write_proto(model, path)
        return path

    @property
    def folder(self) -> Path:
        """The folder, made when it is first asked for."""
        if self._folder is None:
            self._folder = self._stack.enter_context(scratch("models"))
        return self._folder

    def holds(self, path: Path) -> bool:
        """Whether a file lies in the folder."""
        return path.parent == self._folder

    def name(self, path: str) -> str:
        """A file as results name it: one of the folder, which goes, by its name alone."""
        return Path(path).name if self.holds(Path(path)) else path

    def close(self) -> None:
        """Remove the folder."""
        self._stack.close()
