"""Where does a compressed model come from? What it records about itself, checked against the report beside it."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp.errors import ModelError
from onnxcomp.files import json_of, sha256_of
from onnxcomp.graph.io import model_files, read_proto
from onnxcomp.graph.metadata import metadata_of
from onnxcomp.results import PAGE_MARK
from onnxcomp.seal import broken_seal
from onnxcomp.verify.budget import EXIT_CODES

PREFIX = "onnxcomp."
VERSION = "onnxcomp.version"
SOURCE_SHA256 = "onnxcomp.source.sha256"
SPEC = "onnxcomp.spec"
CONFIG_SHA256 = "onnxcomp.config.sha256"
REJECTED = ".rejected.onnx"
MOST_FOLDERS = 4
KNOWN_CODES = frozenset({0, 13, *EXIT_CODES.values()})  # of runs that end with a report
REQUIRED = (VERSION, SOURCE_SHA256, SPEC)


@dataclass(frozen=True)
class Provenance:
    """What is known of an artifact.

    Attributes:
        sha256: of the .onnx file and then its external data, as it is now.
        recorded: the model's own metadata, keys that begin with `onnxcomp.`.
        report: the report beside it, None when there is none; as it was written, and its `output.sha256` equals
            `sha256`.
        verdict, exit_code: the report's; an artifact that missed its budget has the code of that.
        source_unchanged: whether the file that the report names as the source still has the recorded hash; None when
            it is not there or there is no report.
    """

    path: Path
    sha256: str
    recorded: dict[str, str]
    report: Path | None = None
    verdict: str | None = None
    exit_code: int = 0
    source: Path | None = None
    source_unchanged: bool | None = None

    @property
    def read(self) -> list[Path]:
        """The files that were looked at."""
        found = [path for path in (self.report, self.source) if path is not None]
        return [
            *found,
            *(file for model in (self.path, self.source) if model is not None for file in model_files(model)),
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "schema": 1,
            "path": str(self.path),
            "sha256": self.sha256,
            "recorded": self.recorded,
            "report": None if self.report is None else str(self.report),
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "source": None if self.source is None else str(self.source),
            "source_unchanged": self.source_unchanged,
        }


def stamp(
    *, version: str, source_sha256: str, spec: str, config_sha256: str | None = None, traced: bool = True
) -> dict[str, str]:
    """The metadata that an output model carries: no times, no paths, so that equal runs give equal bytes.

    Args:
        traced: False: only the version, for files in which each byte counts; their reports say the rest.
    """
    if not traced:
        return {VERSION: version}
    found = {VERSION: version, SOURCE_SHA256: source_sha256, SPEC: spec}
    return found if config_sha256 is None else {**found, CONFIG_SHA256: config_sha256}


def is_stamped(model: Path) -> bool:
    """Whether onnxcomp wrote a model: whether it records anything of it.

    Raises:
        ModelError: the file is no model.
    """
    return bool(_recorded(model))


def _recorded(model: Path) -> dict[str, str]:
    return {key: value for key, value in metadata_of(read_proto(model)).items() if key.startswith(PREFIX)}


def written_by_us(path: Path) -> bool:
    """Whether a file proves by itself that onnxcomp wrote it: a stamped model, its weights, a report or its page.

    Raises:
        ModelError: it is named as a model and is none.
        OSError: it cannot be read.
    """
    if path.suffix == ".onnx":
        return is_stamped(path)
    if made := re.fullmatch(r".+\.([0-9a-f]{12})\.data", path.name):
        return sha256_of(path).startswith(made.group(1))
    if path.suffix == ".json":
        content = _read_report(path)
        return content is not None and not broken_seal(content)
    return path.suffix == ".html" and PAGE_MARK.encode() in path.read_bytes()[:4096]


def provenance(artifact: Path, report: Path | None = None) -> Provenance:
    """Read what a model records about how it was made, and check it against its report.

    Args:
        artifact: a model that onnxcomp wrote.
        report: its report, where that does not lie beside it under the model's name.

    Raises:
        ModelError: the file is no model, records no provenance, or is not the file that its report describes; or the
            report was changed, or cannot be read.
    """
    recorded = _recorded(artifact)
    missing = [key for key in REQUIRED if key not in recorded]
    sha256 = sha256_of(*model_files(artifact))
    untraced = set(recorded) == {VERSION}  # written by compact{provenance=false}: the report says the rest
    if missing and not untraced:
        raise _unrecorded(artifact, missing[0])
    report, content = _report_of(artifact) if report is None else (report, _given(report))
    if content is None and untraced:
        raise _unrecorded(artifact, missing[0])
    if content is None:
        return Provenance(artifact, sha256, recorded)
    if broken := broken_seal(content):
        raise ModelError(
            f"the report is not as it was written: {broken} changed",
            where=str(report),
            do="build the model again; a report is measured, never edited",
        )
    described = _table(content, "output", report).get("sha256")
    if described != sha256:
        raise ModelError(
            f"the model is not the one that its report describes: SHA-256 {sha256[:16]}…, in the report "
            + (f"{described[:16]}…" if isinstance(described, str) else "none"),
            where=f"{artifact}, {report}",
            do="the file was changed after it was written, or the report is of another run: build it again",
        )
    origin = _table(content, "source", report)
    source_sha256 = recorded.get(SOURCE_SHA256, origin.get("sha256"))
    if origin.get("sha256") != source_sha256:
        raise ModelError(
            "the model and its report name different sources",
            where=f"{artifact}, {report}",
            do="the report is of another run: build the model again",
        )
    found = _source(Path(str(origin.get("path"))), artifact)
    unchanged = sha256_of(*model_files(found)) == source_sha256 if found else None
    code, verdict = content.get("exit_code"), content.get("verdict")
    if type(code) is not int or code not in KNOWN_CODES or not isinstance(verdict, str):
        raise _damaged(report, "exit_code or verdict")
    return Provenance(artifact, sha256, recorded, report, verdict, code, found, unchanged)


def _unrecorded(artifact: Path, missing: str) -> ModelError:
    return ModelError(
        f"the model records no provenance: its metadata has no {missing}",
        where=str(artifact),
        do="only models that onnxcomp wrote have it, or their reports; to judge any pair, give both: onnxcomp verify "
        "BEFORE AFTER",
    )


def _table(content: dict[str, Any], key: str, report: Path) -> dict[str, Any]:
    """A part of a report that is a table, or is left out."""
    found = content.get(key) or {}
    if not isinstance(found, dict):
        raise _damaged(report, key)
    return found


def _damaged(report: Path, part: str) -> ModelError:
    return ModelError(f"the report is damaged: {part}", where=str(report), do="build the model again")


def _source(named: Path, artifact: Path) -> Path | None:
    """The file that a report names, from here or from the artifact's folder or those above it, where builds start."""
    own = artifact.resolve()
    places = [named, *(folder / named for folder in list(own.parents)[:MOST_FOLDERS])]
    with suppress(ValueError):  # a name that no file can have
        return next((path for path in places if path.is_file() and path.resolve() != own), None)
    return None


def _report_of(artifact: Path) -> tuple[Path, dict[str, Any] | None]:
    """The report beside a model: NAME.json, for NAME.rejected.onnx that of the model which it would have been."""
    places = [artifact.with_suffix(".json")]
    if artifact.name.endswith(REJECTED):
        name = artifact.name.removesuffix(REJECTED)
        places += [artifact.with_name(f"{name}.json"), artifact.with_name(f"{name}.opt.json")]
    for place in places:
        content = _read_report(place) if place.is_file() else None
        if content is not None:
            return place, content
    return places[0], None


def _given(path: Path) -> dict[str, Any]:
    content = _read_report(path)
    if content is None:
        raise ModelError("this is no report of onnxcomp", where=str(path), do="give the one that the run wrote")
    return content


def _read_report(path: Path) -> dict[str, Any] | None:
    """A report; None for a file of somebody else that happens to have its name."""
    content = json_of(path, ModelError, "give the right one, or build again", "report")
    ours = isinstance(content, dict) and content.get("schema") == 1 and "tool" in content
    return content if ours else None
