"""In which file of SQLite is a study kept, and may it be written? A file that holds something else never is."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from onnxcomp.errors import OutputError

OF_OPTUNA = {"studies", "trials", "version_info"}  # tables that every storage of Optuna has


def file_of(study: str) -> Path | None:
    """The file that `--study` names, by its path or by a URL of SQLite; None where the storage is no file."""
    if "://" not in study:
        return Path(study)
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", study)
    return None if found is None or found[1] == ":memory:" else Path(found[1])


def check(path: Path) -> None:
    """Whether a study may be kept in a file: it is new, empty, or a storage of Optuna already.

    Raises:
        OutputError: it holds something else.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    address = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"  # nothing is written beside it, either
    try:
        with closing(sqlite3.connect(address, uri=True)) as connection:
            tables = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    except sqlite3.DatabaseError as error:
        raise _foreign(path, str(error)) from error
    if tables and not tables >= OF_OPTUNA:
        raise _foreign(path, f"it holds the table {min(tables - OF_OPTUNA, default=min(tables))!r}")


def _foreign(path: Path, why: str) -> OutputError:
    return OutputError(
        f"the file of the study is none of Optuna's and is left as it is: {why}",
        where=f"--study {path}",
        do="give a new file, or one that a search made",
    )
