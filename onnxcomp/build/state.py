"""What does the build remember? One file a model, written last, so that it speaks only of what is complete."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from glob import escape
from hashlib import sha256
from pathlib import Path

from onnxcomp.build.fingerprint import Parts, changes
from onnxcomp.build.hashes import Hashes
from onnxcomp.config import Config, ModelEntry
from onnxcomp.errors import OutputError
from onnxcomp.files import atomic_write

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """An accepted build: what decided it, and the hashes of the files it wrote, by path below the folder."""

    parts: Parts
    outputs: dict[str, str]


@dataclass
class State:
    """The state folder of a configuration."""

    config: Config
    new: bool = field(init=False)

    def __post_init__(self) -> None:
        self.new = not self.folder.exists()

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.config.folder / self.config.state

    @property
    def scratch(self) -> Path:
        """For files that nobody needs when the build has ended."""
        return self.folder / "scratch"

    @property
    def hashes_file(self) -> Path:
        """Remembered hashes of files."""
        return self.folder / "hashes.json"

    def prepare(self) -> None:
        """Make the folder; git leaves it alone without being told.

        Raises:
            OutputError: it cannot be made.
        """
        try:
            (self.folder / "models").mkdir(parents=True, exist_ok=True)
            ignore = self.folder / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except OSError as error:
            raise OutputError(
                f"the state folder cannot be made: {error.strerror}",
                where=f"folder {self.folder}",
                do="choose another one with state in the configuration",
            ) from error

    def clean(self) -> None:
        """Remove what a build that was killed left lying: scratch files, and halves of this configuration's outputs."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for path in self._halves():
            with suppress(OSError):
                path.unlink()

    def read(self, entry: ModelEntry) -> Record | None:
        """The last accepted build; None where there is none, or nothing that can be read."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(self._file(entry).read_text(encoding="utf-8"))
            if content["schema"] == SCHEMA:
                return Record(dict(content["parts"]), dict(content["outputs"]))
        return None

    def write(self, entry: ModelEntry, record: Record) -> None:
        """Remember an accepted build."""
        content = {"schema": SCHEMA, "parts": record.parts, "outputs": record.outputs}
        with atomic_write(self._file(entry)) as file:
            file.write(json.dumps(content, indent=1).encode())

    def forget(self, entry: ModelEntry) -> None:
        """The model has no accepted build any more."""
        self._file(entry).unlink(missing_ok=True)

    def reasons(self, entry: ModelEntry, parts: Parts, hashes: Hashes) -> list[str]:
        """Why a model has to be built, in words; empty when it stands as it is."""
        record = self.read(entry)
        if record is None:
            return ["there is no accepted build of it yet"]
        return changes(record.parts, parts) + list(_damaged(record, hashes))

    def _file(self, entry: ModelEntry) -> Path:
        return self.folder / "models" / f"{slug(entry)}.json"

    def _halves(self) -> Iterator[Path]:
        for entry in self.config.models:
            job = entry.job
            for path in (job.out, job.rejected, job.report_path, *([job.html] if job.html is not None else [])):
                for name in {path.name, f"{path.stem}.data"}:
                    yield from (self.config.folder / path.parent).glob(f".{escape(name[:100])}.*.tmp")
        for folder in (self.folder, self.folder / "models", self.config.folder / self.config.reports):
            yield from folder.glob(".*.tmp")


def slug(entry: ModelEntry) -> str:
    """A file name for things of one model: by its output, which no two share and which a new name does not change."""
    output = entry.job.out.as_posix()
    words = re.sub(r"[^A-Za-z0-9._-]+", "_", output.removesuffix(".onnx"))[-60:].lstrip(".-")
    return f"{words}-{sha256(output.encode()).hexdigest()[:8]}"


def _damaged(record: Record, hashes: Hashes) -> Iterator[str]:
    for path, digest in record.outputs.items():
        try:
            if hashes.of(Path(path)) != digest:
                yield f"{path} was changed by something else"
        except OSError:
            yield f"{path} is gone"
