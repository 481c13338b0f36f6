"""The documentation as a site: `pip install -e '.[docs]' && sphinx-build -W docs site`, then open site/index.html.

The pages are the Markdown files beside this one, as they read on any forge; the order of the contents is that of the
list in index.md, so that nothing is listed twice.
"""

from __future__ import annotations

import re
from typing import Any

project = "onnxcomp"
author = "the authors of onnxcomp"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "onnxcomp"
html_copy_source = False
html_show_copyright = False
myst_heading_anchors = 3  # `page.md#a-heading` leads where it does on a forge
suppress_warnings = ["misc.highlighting_failure"]  # a spec is no shell, though it stands in one
exclude_patterns = ["site", "_build"]

DECISIONS = """

## Records of decisions

```{toctree}
:glob:

decisions/*
```
"""


def contents(app: Any, page: str, source: list[str]) -> None:
    """Give the first page the contents of the site: every page that its list names, in that order."""
    if page != "index":
        return
    names = re.findall(r"^- \[[^\]]*\]\(([\w-]+)\.md\)", source[0], re.MULTILINE)
    listed = "\n".join(names)
    text = source[0].replace("](decisions/)", "](#records-of-decisions)")
    source[0] = f"{text}\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n{DECISIONS}"


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", contents)
