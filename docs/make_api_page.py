"""What does docs/api.md say? This writes it from the docstrings and annotations of the public names.

python docs/make_api_page.py          # tests/test_docs.py fails while the page is out of date
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import onnxcomp
from onnxcomp.api import keywords

PAGE = Path(__file__).resolve().parent / "api.md"
HEAD = """# The library

<!-- Made by docs/make_api_page.py from the code; edit the docstrings there. -->

`import onnxcomp` loads nothing heavy; each name below is loaded when it is first used. All of it is typed:
`mypy --strict` refuses an option that does not exist. Every error is an `OnnxcompError` with `what`, `where`, `do` and
the `exit_code` that the command line would end with.

A model is a path, the bytes of a file, or an `onnx.ModelProto`. Data are whatever the command line takes, and:

| data | what it is |
|---|---|
| `{"image": array, ...}` | an array for each input, [samples, ...] |
| an array | the only input, or uint8 pictures to preprocess |
| an iterable | of feeds: dicts, arrays, or tuples with an array for each input and perhaps the labels, \
as data loaders give them; arrays of one dimension less than the input are single samples |
| a function | called without arguments; gives one of these |

```python
import numpy as np
import onnx

import onnxcomp

model = onnx.load("models/digits-cnn.onnx")
data = np.load("models/digits-train.npz")


def errors(outputs, labels):
    return float((outputs["logits"].argmax(axis=1) != labels).mean())


result = onnxcomp.optimize(
    model,
    data={"images": data["images"][:600]},
    labels=data["labels"][:600],
    eval_data={"images": data["images"][600:]},
    eval_labels=data["labels"][600:],
    metric=onnxcomp.Metric("errors", errors, higher_is_better=False),
    passes=["fold-constants,cleanup", "fuse-batchnorm", "quantize-qdq"],
    max_drop=0.01,
    bench=False,
)
print(result.verdict, result.accuracy.metric, len(result.model.graph.node) > 0)
```

An iterator is read once, into a temporary file. Results have a short `repr`, and are tables in a notebook.
"""
FUNCTIONS = ("optimize", "verify", "bench", "compare", "inspect", "explain", "distill", "build")
RESULTS = (
    "Result",
    "Verdict",
    "BenchTable",
    "Inspection",
    "Explanation",
    "Comparison",
    "Built",
    "Metric",
    "OnnxcompError",
)
LEFT_OUT = (*FUNCTIONS, *RESULTS, "Report", "Model", "__version__")  # the last three are told elsewhere
GRAPH = [name for name in onnxcomp.__all__ if name not in LEFT_OUT]


def page() -> str:
    """The whole page as Markdown."""
    there = [name for name in RESULTS if name in onnxcomp.__all__]
    parts = [HEAD, "## Functions\n", *(function(name) for name in FUNCTIONS if name in onnxcomp.__all__)]
    parts += ["## What comes back, and what goes in\n", *(record(name) for name in there)]
    parts += ["## Graphs and passes\n\nHow they go together: [write-a-pass.md](write-a-pass.md).\n"]
    return "\n".join([*parts, *(short(name) for name in GRAPH)])


def function(name: str) -> str:
    """A function: its signature, its docstring, and the options it takes from the settings."""
    thing = getattr(onnxcomp, name)
    options = getattr(keywords, f"{name.title()}Options", None)
    lines = [f"### onnxcomp.{name}", "", f"```text\n{signature(name, thing)}\n```", "", prose(thing), ""]
    if options is not None:
        lines += ["| option | type | meaning |", "|---|---|---|", *rows(options), ""]
    return "\n".join(lines)


def rows(options: type[Any]) -> list[str]:
    """One table row of each key of a TypedDict, with the words below it in its source."""
    source = inspect.getsource(options)
    found = re.findall(r'^    (\w+): ([^\n]*)\n    """(.*?)"""', source, re.MULTILINE | re.DOTALL)
    return [f"| `{key}` | `{cell(kind)}` | {cell(' '.join(words.split()))} |" for key, kind, words in found]


def record(name: str) -> str:
    """A class of results: its docstring, its fields, its properties and methods."""
    thing = getattr(onnxcomp, name)
    lines = [f"### onnxcomp.{name}", "", prose(thing), ""]
    if dataclasses.is_dataclass(thing):
        names = ", ".join(f"`{item.name}`" for item in dataclasses.fields(thing))
        lines += [f"Fields: {names}.", ""]
    members = [
        f"- `{key}{'' if isinstance(member, property) else '()'}`: {first_line(getattr(thing, key))}"
        for kind in reversed(thing.__mro__)
        if kind.__module__.startswith("onnxcomp")
        for key, member in vars(kind).items()
        if not key.startswith("_") and (isinstance(member, property) or inspect.isfunction(member))
    ]
    return "\n".join([*lines, *dict.fromkeys(members), *([""] if members else [])])


def short(name: str) -> str:
    """A name in one line."""
    return f"- `onnxcomp.{name}`: {first_line(getattr(onnxcomp, name))}"


def first_line(thing: Any) -> str:
    """The first sentence of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")


def signature(name: str, thing: Any) -> str:
    """As Python writes it, a parameter a line where that is long."""
    found = inspect.signature(thing)
    lines = [str(parameter).replace("'", "") for parameter in found.parameters.values()]
    first = next((i for i, p in enumerate(found.parameters.values()) if p.kind is p.KEYWORD_ONLY), None)
    if first is not None and not lines[first - 1].startswith("*"):
        lines.insert(first, "*")
    words = "".join(f"    {line},\n" for line in lines)
    for pattern, short in (
        (r"Unpack\[keywords\.(\w+)\]", r"\1"),
        (r" = <function .* at \w+>", " = silent"),
        (r" = <onnxcomp[^>]*>", " = SILENT"),
    ):
        words = re.sub(pattern, short, words)
    return f"onnxcomp.{name}(\n{words}) -> {str(found.return_annotation).strip(chr(39))}"


def prose(thing: Any) -> str:
    """A docstring as Markdown: its headings in bold, its lists as lists."""
    lines: list[str] = []
    listing = False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if line in ("Args:", "Returns:", "Raises:", "Attributes:"):
            lines += [f"**{line[:-1]}**", ""]
            listing = line != "Returns:"
        elif listing and (item := re.match(r"    ([\w, `]+): (.*)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            lines.append(line.removeprefix("    ") if not listing else line.removeprefix("      "))
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text that ends no table cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
