"""What stands at the output's place while a search runs? The study's best so far, or a model that it did not make.

A model that this study did not make is left until the end: another budget or objective is another study, and its best
is no worse for that. What the study wrote is noted in its storage, so that whoever goes on knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from onnxcomp.build.first import save_result
from onnxcomp.errors import ModelError
from onnxcomp.files import sha256_of
from onnxcomp.graph.io import model_files
from onnxcomp.job import Job
from onnxcomp.report.tables import size_text
from onnxcomp.search.ledger import Ledger
from onnxcomp.verify.provenance import written_by_us

BEGUN = "begun"  # stands for the hash of a model that is being written


@dataclass
class Output:
    """The output's place, as one study sees it.

    Attributes:
        foreign: what stands there that the study did not make, in words; empty where nothing does.
        left_half: whether the study was ended while it wrote there.
    """

    job: Job
    ledger: Ledger
    foreign: str = field(init=False, default="")
    left_half: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        noted = self.ledger.written.get(self._key)
        self.left_half = noted == BEGUN
        found = _told(self.job.out)
        if found is not None and not self.left_half and found[0] != noted:
            self.foreign = found[1]

    @property
    def _key(self) -> str:
        return str(self.job.out.absolute())

    def warning(self) -> str:
        """What to know of a model that stands there at the start; empty where it is this study's, or none."""
        if not self.foreign:
            return ""
        return (
            f"{self.job.out} ({self.foreign}) was not made by this study: it stays until the search ends, "
            "and what that comes to takes its place"
        )

    def put(self, spec: str, write: Callable[[Path], None]) -> None:
        """Let the best so far be written there, with its configuration, unless what stands there is not the study's.

        A report of an earlier model goes: it would be another's.
        """
        if self.foreign:
            return
        self.ledger.note_written(self._key, BEGUN)
        write(self.job.out)
        with suppress(OSError, ModelError):
            if written_by_us(self.job.report_path):
                self.job.report_path.unlink()
        save_result(self.job, spec)
        self.settled()

    def settled(self) -> None:
        """Note that what stands there now is the study's."""
        found = _told(self.job.out)
        if found is not None:
            self.ledger.note_written(self._key, found[0])


def _told(path: Path) -> tuple[str, str] | None:
    """Hash and size of the model at a place; None where there is none."""
    if not path.is_file():
        return None
    try:
        files = model_files(path)
    except (ModelError, OSError):
        files = [path]  # whatever it is, it is not the study's
    return sha256_of(*files), size_text(sum(file.stat().st_size for file in files))
