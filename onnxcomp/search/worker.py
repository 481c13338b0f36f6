"""How does a process run trials for a search? Lines of JSON in and out; it ends when its parent does."""

from __future__ import annotations

import sys

from onnxcomp.runtime import child


def main() -> int:
    """Answer the orders on standard input on what was standard output."""
    answers = child.Answers()
    from onnxcomp.search.pool import serve

    try:
        serve(child.orders(), answers.send)
    except KeyboardInterrupt:
        return child.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
