"""How does a process run trials for a search? Lines of JSON in and out; it ends when its parent does."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

INTERRUPTED = 130


def main() -> int:
    """Answer the orders on standard input on what was standard output."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a user's function or the runtime prints does not mix with answers
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()

    from onnxcomp.search.pool import serve

    def answer(found: dict[str, Any]) -> None:
        channel.write(json.dumps(found) + "\n")
        channel.flush()

    try:
        serve(_orders(lines), answer)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _orders(lines: queue.SimpleQueue[bytes]) -> Iterator[dict[str, Any]]:
    while True:
        yield json.loads(lines.get())


def _read(lines: queue.SimpleQueue[bytes]) -> None:
    """Standard input ends when the parent does, however that came; nobody waits for a trial then."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
