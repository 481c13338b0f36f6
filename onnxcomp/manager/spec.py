"""Passes as text: `fuse-batchnorm,clip-weights{method=mse},prune-weights{ratio=0.5,exclude=["head.*"]}` and back.

pipeline = pass *("," pass)
pass     = name ["{" [option *("," option)] "}"]
option   = key "=" value
value    = word | "quoted text" | "[" [value *("," value)] "]"; the words true, false and none, and numbers, mean that
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

from onnxcomp.errors import UsageError
from onnxcomp.manager.base import Pass
from onnxcomp.manager.options import Bare, reject_unknown

Finder = Callable[[str], type[Pass]]

_TOKEN = re.compile(r'\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<mark>[{}\[\],=])|(?P<word>[^\s{}\[\],="]+))')


def parse_passes(text: str, find: Finder | None = None) -> tuple[Pass, ...]:
    """The passes that a spec string names.

    Args:
        find: gives the class of a pass by its name; the registry by default.

    Raises:
        UsageError: points at the place where the text stops making sense, or names an unknown pass or option.
    """
    return _Parser(text, find).pipeline()


def make_pass(name: str, options: dict[str, Any], find: Finder | None = None) -> Pass:
    """A pass by name, with options from a spec string or a configuration file.

    Raises:
        UsageError: the pass or an option is unknown, or a value does not fit.
    """
    from onnxcomp.manager import registry

    cls = (find or registry.find)(name)
    reject_unknown(name, [f.name for f in dataclasses.fields(cls)], list(options))
    return cls(**options)


class _Parser:
    def __init__(self, text: str, find: Finder | None) -> None:
        self.text = text
        self.find = find
        self.position = 0

    def pipeline(self) -> tuple[Pass, ...]:
        passes = []
        while True:
            passes.append(self.item())
            kind, value = self.next()
            if kind == "end":
                return tuple(passes)
            if value != ",":
                raise self.wrong("expected a comma between passes")

    def item(self) -> Pass:
        kind, name = self.next()
        if kind != "word":
            raise self.wrong("expected the name of a pass")
        if self.peek() == "=":
            raise self.wrong(f"{name} is an option, and options go in braces behind their pass: name{{{name}=...}}")
        options: dict[str, Any] = {}
        if self.peek() == "{":
            self.next()
            while self.peek() != "}":
                key, value = self.option()
                if key in options:
                    raise self.wrong(f"option {key} is given twice")
                options[key] = value
                if self.peek() == ",":
                    self.next()
                elif self.peek() != "}":
                    raise self.wrong("expected a comma or } after an option")
            self.next()
        return make_pass(name, options, self.find)

    def option(self) -> tuple[str, Any]:
        kind, key = self.next()
        if kind != "word":
            raise self.wrong("expected an option's name")
        if self.next()[1] != "=":
            raise self.wrong(f"expected = after {key}")
        return key, self.value()

    def value(self) -> Any:
        kind, text = self.next()
        if kind == "word":
            return Bare(text)
        if kind == "quoted":
            try:
                return json.loads(text)
            except json.JSONDecodeError as error:
                raise self.wrong(f"a quoted text is malformed: {error.msg}") from error
        if text != "[":
            raise self.wrong("expected a value")
        items: list[Any] = []
        while self.peek() != "]":
            items.append(self.value())
            if self.peek() == ",":
                self.next()
            elif self.peek() != "]":
                raise self.wrong("expected a comma or ] in a list")
        self.next()
        return items

    def next(self) -> tuple[str, str]:
        if not self.text[self.position :].strip():
            self.position = len(self.text)
            return "end", ""
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            raise self.wrong("unreadable here")
        self.position = match.end()
        kind = match.lastgroup or ""
        return kind, match.group(kind)

    def peek(self) -> str:
        before = self.position
        kind, value = self.next()
        self.position = before
        return value if kind == "mark" else ""

    def wrong(self, what: str) -> UsageError:
        return UsageError(
            f"the pass spec is wrong: {what}",
            where=f"at {self.text[: self.position]!r} of {self.text!r}",
            do="write passes as name{key=value,...},name; see onnxcomp passes",
        )
