"""Which files tell how a build went? JSON for scripts, Markdown and JUnit XML for CI, HTML for people."""

from __future__ import annotations

from pathlib import Path

from onnxcomp.build.state import REPORTS, slug
from onnxcomp.config import Config
from onnxcomp.errors import OutputError
from onnxcomp.files import atomic_write
from onnxcomp.report import html, html_index, junit, markdown
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
    _write(folder / "index.html", html_index.document(build, _pages(config, build)).encode("utf-8", "replace"))
    return [config.reports / name for name in REPORTS]


def _pages(config: Config, build: BuildReport) -> dict[str, str]:
    """Write each model's own page; one that is newer than the report of an unchanged model stays."""
    folder = config.folder / config.reports
    names = {entry.name: f"{slug(entry)}.html" for entry in config.models}
    found = {}
    for model in build.models:
        path = folder / names[model.name]
        if model.report is None:
            path.unlink(missing_ok=True)
            continue
        found[model.name] = path.name
        written = (config.folder / model.report_path).stat().st_mtime_ns
        if model.status != "up to date" or not path.exists() or path.stat().st_mtime_ns < written:
            html.write_html(model.report, path)
    return found


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
