"""What do the library's functions give back? Their records, to look at in a notebook, and the model."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from onnxcomp.errors import ModelError
from onnxcomp.report.notebook import fragment
from onnxcomp.report.screen import figures, gist
from onnxcomp.report.tables import closeness_text, pair_rows
from onnxcomp.results import BuildReport, Report
from onnxcomp.verify.verdict import PairVerdict

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxcomp.api.models import Files

T = TypeVar("T")
BEFORE_AFTER = ("", "before", "after", "")


class Result(Report):
    """The report of one run, and the model that it made.

    `verdict` is `accepted`, `over-budget` or `unchanged`; `exit_code` is the command line's.
    """

    @classmethod
    def of(cls, report: Report, files: Files) -> Result:
        """A report, and the files that its models lie in: they stand as long as the result does."""
        made = _like(cls, report)
        weakref.finalize(made, files.close)
        return made

    @property
    def model(self) -> ModelProto:
        """The model that was made, its weights inside; where a budget was missed, the one that missed it.

        Raises:
            ModelError: nothing was gained, so that there is none; or its file is gone.
        """
        from onnxcomp.graph.io import read_whole

        if self.output is None:
            what = f"the run made no model: {self.reason or self.verdict}"
            raise ModelError(what, where="Result.model", do="keep the original; `verdict` says how a run ended")
        return read_whole(Path(self.output.path))

    def __repr__(self) -> str:
        return f"<Result {self.verdict}: {', '.join(gist(self)) or 'no model'}>"

    def _repr_html_(self) -> str:
        title = f"{self.verdict}: {', '.join(gist(self))}"
        return fragment(title, BEFORE_AFTER, figures(self), [*self.warnings, *self.guesses, *self.notes])


class Verdict(PairVerdict):
    """What was found out about two models. `exit_code`: 0 within the budget, else that of the command line."""

    @classmethod
    def of(cls, verdict: PairVerdict) -> Verdict:
        """The same, to look at."""
        return _like(cls, verdict)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """What, before, after, and more about it, as text."""
        rows = pair_rows(self.sizes, self.accuracy, self.benchmark)
        for name, output in self.fidelity.outputs.items():
            rows.append((f"output {name}", "", closeness_text(output), f"largest error {output.max_abs_error:.4g}"))
        return rows

    def __repr__(self) -> str:
        missed = [line.name for line in self.budget if not line.passed]
        words = "; ".join(f"{row[0]} {row[2]}" for row in self.rows())
        return f"<Verdict {f'missed {missed}' if missed else 'within the budget'}: {words}>"

    def _repr_html_(self) -> str:
        title = f"{self.after} against {self.before}"
        return fragment(title, BEFORE_AFTER, self.rows(), [*self.doubts, *self.notes])


class Built(BuildReport):
    """What one run of the build step did. `exit_code`: the lowest of those that are not 0."""

    @classmethod
    def of(cls, report: BuildReport) -> Built:
        """The same, to look at."""
        return _like(cls, report)

    def __repr__(self) -> str:
        words = ", ".join(f"{model.name} {model.status}" for model in self.models)
        return f"<Built {self.config}, exit code {self.exit_code}: {words}>"

    def _repr_html_(self) -> str:
        rows = [
            (m.name, m.status, m.report.verdict if m.report else "", m.error.what if m.error else "; ".join(m.why))
            for m in self.models
        ]
        return fragment(f"{self.config}, exit code {self.exit_code}", ("model", "", "verdict", ""), rows)


def _like(kind: type[T], record: Any) -> T:
    return kind(**{item.name: getattr(record, item.name) for item in dataclasses.fields(record)})
