"""What does a newcomer see first? Runs the README's command on a copy of models/ and puts its screen into the README.

python benchmarks/first_screen.py
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import common

README = common.ROOT / "README.md"


def main() -> None:
    """Run the command as it stands in the README and replace what is between the markers."""
    found = re.search(r"&& \.venv/bin/onnxcomp (.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit("the README shows no `.venv/bin/onnxcomp ...` command")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(common.ROOT / "models", folder / "models")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # a newcomer has none
        done = common.onnxcomp(*shlex.split(found[1]), cwd=folder)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}\n{done.stderr}")
    lines = [line.rstrip() for line in done.stdout.strip().splitlines()]
    common.write_page(README, "screen", "\n".join(["```", *lines, "```"]))


if __name__ == "__main__":
    main()
