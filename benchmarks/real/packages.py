"""Where do models of real packages come from? Pinned wheels, downloaded once and unpacked; nothing is installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path


def fetch(name: str, version: str, folder: Path) -> Path:
    """The unpacked wheel `folder/NAME-VERSION`, downloaded by pip where it is not there yet.

    Raises:
        subprocess.CalledProcessError: the package index does not have it.
    """
    place = folder / f"{name}-{version}"
    if place.is_dir():
        return place
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "-d", str(wheels), f"{name}=={version}"], check=True)
    stem = name.replace("-", "_").lower()
    [wheel] = [path for path in wheels.glob("*.whl") if path.name.lower().startswith(f"{stem}-{version}-")]
    unfinished = place.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unfinished)
    unfinished.rename(place)
    return place
