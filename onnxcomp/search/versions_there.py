"""Which packages does a worker have? Travels to it whole, and needs nothing but Python."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed(names: list[str]) -> dict[str, str]:
    """Versions by name of those packages that are there."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
