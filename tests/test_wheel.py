"""Does the wheel hold what the tree holds? Built without isolation or network, from a clean copy of the tree."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = (
    "onnxcomp",
    "passes",
    "docs",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "MANIFEST.in",
    "SECURITY.md",
    "CHANGELOG.md",
)


@dataclass(frozen=True)
class Built:
    """What one build wrote, and the copy of the tree it was built from."""

    source: Path
    wheel: Path
    sdist: Path


def run(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(a) for a in arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """sdist and wheel; the symlink onnxcomp/passes stays a symlink in the copy, as in a clone."""
    folder = tmp_path_factory.mktemp("build")
    source, dist = folder / "tree", folder / "dist"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", "--outdir", dist, source]
    run(*command, cwd=folder)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return Built(source, wheel, sdist)


def sources() -> set[str]:
    """Python files of the tree under the names they have in a wheel."""
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "onnxcomp").rglob("*.py")}
    passes = {f"onnxcomp/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "passes").rglob("*.py")}
    return package | passes


def test_wheel_holds_every_source_file_once(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert {name for name in names if name.endswith(".py")} == sources()
    assert "onnxcomp/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_sdist_is_enough_to_build_the_same_wheel(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "again", tree, cwd=tmp_path)
    (again,) = (tmp_path / "again").glob("*.whl")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(built.wheel) as other:
        assert {n: one.read(n) for n in one.namelist() if n.endswith(".py")} == {
            n: other.read(n) for n in other.namelist() if n.endswith(".py")
        }


def test_sdist_holds_the_documentation(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"docs/guide.md", "docs/decisions/README.md", "SECURITY.md", "CHANGELOG.md"} <= names


def test_passes_import_from_the_unpacked_wheel(built: Built, tmp_path: Path) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import onnxcomp.passes\n"
        "from onnxcomp.manager import registry\n"
        "for name in registry.BUILTIN: registry.find(name)\n"
        "print(onnxcomp.passes.__file__); print(registry.__file__)"
    )
    # -P: the current folder is not on sys.path; the unpacked folder must win over an editable install
    printed = run(sys.executable, "-P", "-c", code, tmp_path, cwd=tmp_path).split()
    assert [Path(line).relative_to(tmp_path).as_posix() for line in printed] == [
        "onnxcomp/passes/__init__.py",
        "onnxcomp/manager/registry.py",
    ]


def test_passes_refuse_to_be_imported_from_the_root() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ImportError: import onnxcomp.passes, not passes" in done.stderr


def test_the_link_in_the_tree_leads_to_the_passes() -> None:
    link = ROOT / "onnxcomp" / "passes"
    if not link.is_symlink():
        pytest.skip("this clone was made without symlinks; packaging does not need the link, type checkers do")
    assert link.readlink() == Path("../passes")


def test_the_build_page_makes_the_wheel_that_its_recipes_install(built: Built, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "build.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^```sh wheel\n(.*)\n```$", page, re.MULTILINE)
    clone = shutil.copytree(built.source, tmp_path / "onnxcomp", symlinks=True)
    offline = ["--quiet", "--no-index", "--no-build-isolation"]  # with what is installed
    run(sys.executable, "-m", *shlex.split(line), *offline, cwd=clone)
    made = {path.relative_to(tmp_path / "app").as_posix() for path in (tmp_path / "app").rglob("*")} - {"wheels"}
    assert made == set(re.findall(r"pip install (wheels/\S+)", page))
