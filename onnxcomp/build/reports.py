"""Which files tell how a build went? JSON for scripts, Markdown and JUnit XML for CI, HTML for people."""

from __future__ import annotations

from pathlib import Path

from onnxcomp.config import Config
from onnxcomp.errors import OutputError
from onnxcomp.files import atomic_write
from onnxcomp.report import junit, markdown
from onnxcomp.report.record import write_data
from onnxcomp.results import BuildReport


def write_reports(config: Config, build: BuildReport) -> list[Path]:
    """Write the reports of a build into the configuration's folder for them.

    Returns:
        The files, relative to the configuration's folder.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    folder = config.folder / config.reports
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder for reports cannot be made: {error.strerror}",
            where=f"folder {folder}",
            do="choose another one with reports in the configuration",
        ) from error
    write_data(build.to_json(), folder / "build.json")
    _write(folder / "build.md", markdown.page(build).encode())
    _write(folder / "junit.xml", junit.document(build))
    return [config.reports / name for name in ("build.json", "build.md", "junit.xml")]


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
