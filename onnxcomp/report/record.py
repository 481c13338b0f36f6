"""report.json: the contract that scripts read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxcomp.files import atomic_write
from onnxcomp.results import Report


def write_json(report: Report, path: Path) -> None:
    """Write the report so that it appears whole or not at all; NaN and infinities become null.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_data(report.to_json(), path)


def write_data(data: dict[str, Any], path: Path) -> None:
    """Write JSON-ready data atomically.

    Raises:
        OutputError: the folder cannot be written.
    """
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode() + b"\n")
