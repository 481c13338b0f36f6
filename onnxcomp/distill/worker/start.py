"""Where does the worker begin? Here, run by its path; it finds its own package and goes on in `main`.

Not run with -m: that would import onnxcomp, which this interpreter does not have.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.pop(0)  # the script's own folder: its modules would shadow others
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    from worker.main import main  # type: ignore[import-not-found]

    sys.exit(main())
