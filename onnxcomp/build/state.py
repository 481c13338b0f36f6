"""What does the build remember? One file a model, written last, so that it speaks only of what is complete."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeGuard

from onnxcomp.build.fingerprint import Parts, changes
from onnxcomp.build.hashes import Hashes
from onnxcomp.config import Config, ModelEntry
from onnxcomp.errors import DataError, OutputError
from onnxcomp.files import SCRATCH_MARK, atomic_write, json_of, remove_halves

SCHEMA = 1
MARK = "scratch files of onnxcomp build\n"
REPORTS = ("build.json", "build.md", "junit.xml", "index.html")


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
            if self.new:  # a folder that was there before may hold other things, which git is to see
                self.folder.mkdir(parents=True)
                (self.folder / ".gitignore").write_text("*\n")
            (self.folder / "models").mkdir(exist_ok=True)
            if self.scratch.is_symlink() or (self.scratch.exists() and not self._ours(self.scratch)):
                raise OutputError(
                    "the state folder holds a `scratch` that onnxcomp did not make",
                    where=f"{self.scratch}",
                    do="give the build a folder of its own with state in the configuration",
                )
        except OSError as error:
            raise OutputError(
                f"the state folder cannot be made: {error.strerror}",
                where=f"folder {self.folder}",
                do="choose another one with state in the configuration",
            ) from error

    def clean(self) -> None:
        """Remove what a build that was killed left lying: scratch files, and halves of this configuration's outputs."""
        if self._ours(self.scratch):
            shutil.rmtree(self.scratch, ignore_errors=True)
        for path in self._written():
            remove_halves(path)

    def scratch_of(self, entry: ModelEntry) -> Path:
        """A folder for the build of one model; what stands above it carries the mark that it may be removed."""
        self.scratch.mkdir(exist_ok=True)
        (self.scratch / SCRATCH_MARK).write_text(MARK)
        return self.scratch / slug(entry)

    @staticmethod
    def _ours(folder: Path) -> bool:
        """Whether a build made this folder for its scratch files."""
        mark = folder / SCRATCH_MARK
        with suppress(OSError, ValueError):
            return not folder.is_symlink() and not mark.is_symlink() and mark.read_text(encoding="utf-8") == MARK
        return False

    def read(self, entry: ModelEntry) -> Record | None:
        """The last accepted build; None where there is none, or nothing that can be read."""
        with suppress(DataError):
            content = json_of(self._file(entry), DataError, "build again")
            if isinstance(content, dict) and content.get("schema") == SCHEMA:
                parts, outputs = content.get("parts"), content.get("outputs")
                if _texts(parts) and _texts(outputs):
                    return Record(parts, outputs)
        return None

    def write(self, entry: ModelEntry, record: Record) -> None:
        """Remember an accepted build."""
        content = {"schema": SCHEMA, "parts": record.parts, "outputs": record.outputs}
        with atomic_write(self._file(entry)) as file:
            file.write(json.dumps(content, indent=1).encode())

    def forget(self, entry: ModelEntry) -> None:
        """The model has no accepted build any more."""
        self._file(entry).unlink(missing_ok=True)

    def refuse(self, entry: ModelEntry, why: str) -> None:
        """Remember that the last build was refused; the model has no accepted build any more."""
        with atomic_write(self._file(entry)) as file:
            file.write(json.dumps({"schema": SCHEMA, "refused": why}, indent=1).encode())

    def _refused(self, entry: ModelEntry) -> str:
        """Why the last build was refused; empty where there was none, or it was not."""
        with suppress(DataError):
            content = json_of(self._file(entry), DataError, "build again")
            if isinstance(content, dict) and isinstance(content.get("refused"), str):
                return str(content["refused"])
        return ""

    def reasons(self, entry: ModelEntry, parts: Parts, hashes: Hashes) -> list[str]:
        """Why a model has to be built, in words; empty when it stands as it is."""
        record = self.read(entry)
        if record is None:
            why = self._refused(entry)
            return [f"it was refused last time: {why}" if why else "there is no accepted build of it yet"]
        return changes(record.parts, parts) + list(_damaged(record, hashes))

    def _file(self, entry: ModelEntry) -> Path:
        return self.folder / "models" / f"{slug(entry)}.json"

    def _written(self) -> Iterator[Path]:
        """Every file that a build of this configuration writes."""
        for entry in self.config.models:
            job = entry.job
            for path in (job.out, job.rejected, job.report_path, *([job.html] if job.html is not None else [])):
                yield self.config.folder / path
                yield self.config.folder / path.with_name(f"{path.stem}.data")
            yield self._file(entry)
            yield self.config.folder / self.config.reports / f"{slug(entry)}.html"
        yield self.hashes_file
        yield from (self.config.folder / self.config.reports / name for name in REPORTS)


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
        except (OSError, ValueError):
            yield f"{path} is gone"


def _texts(value: Any) -> TypeGuard[dict[str, str]]:
    """Whether a damaged file holds texts by name all the same."""
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
