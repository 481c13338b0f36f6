"""`python -m onnxcomp` is the same as `onnxcomp`."""

from __future__ import annotations

from onnxcomp.cli.main import main

main()
