"""Does a hash that is kept tell every change of a file?"""

from __future__ import annotations

import os
from pathlib import Path

from test_build import age

from onnxcomp.build.hashes import Hashes
from onnxcomp.files import sha256_of


def test_hashes_are_remembered_only_when_no_change_can_hide(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"one")
    young = Hashes(tmp_path, tmp_path / "h.json")
    assert young.of(Path("x.bin")) == sha256_of(path)
    young.of(Path("x.bin"))
    assert young.read_bytes == 6  # too young: read both times
    age(path)
    assert Hashes(tmp_path, tmp_path / "h.json").of(Path("x.bin")) == sha256_of(path)
    old = Hashes(tmp_path, tmp_path / "h.json")
    old.of(Path("x.bin"))
    old.save()
    kept = Hashes(tmp_path, tmp_path / "h.json")
    kept.of(Path("x.bin"))
    assert kept.read_bytes == 0
    times = path.stat()
    path.write_bytes(b"two")  # same size, and the mtime set back
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert kept.of(Path("x.bin")) == sha256_of(path)


def test_a_damaged_file_of_hashes_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("1")
    for content in ("", "[]", '{"files": 3}', '{"files": {"x": 1}, "derived": []}', "\x00"):
        (tmp_path / "h.json").write_text(content)
        assert Hashes(tmp_path, tmp_path / "h.json").of(Path("x")) == sha256_of(tmp_path / "x")


def test_the_hash_of_a_folder_sees_names_contents_and_links(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "f").write_text("1")
    hashes = Hashes(tmp_path, tmp_path / "h.json")
    seen = {hashes.of(Path("d"))}
    (folder / "sub" / "f").rename(folder / "sub" / "g")
    seen.add(hashes.of(Path("d")))
    (folder / "sub" / "g").write_text("2")
    seen.add(hashes.of(Path("d")))
    (folder / "loop").symlink_to(folder)
    assert hashes.of(Path("d")) in seen
    assert len(seen) == 3
