"""The errors a user can meet: each says what, where and what to do, and carries its exit code."""

from __future__ import annotations

import re
from typing import ClassVar

# control characters, and those that turn the direction of text: a name that holds them could steer a terminal
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Text as a terminal may show it: control characters of names as escapes, line breaks and tabs as they are."""
    return _CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """As `plain`, on one line: a name that holds line breaks could pass for lines of ours."""
    return plain(text).replace("\n", "\\n")


class OnnxcompError(Exception):
    """Base of every error that onnxcomp raises on purpose.

    Printed as three lines: `what` went wrong, `where` (file, node, tensor), and what to `do`.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.do = do

    def __str__(self) -> str:
        return "\n".join(line for line in (self.what, self.where, self.do) if line)


class UsageError(OnnxcompError):
    """An option, a spec string or a configuration is wrong."""

    exit_code = 2


class ModelError(OnnxcompError):
    """The model cannot be used: unreadable, invalid, or not supported by the runtime."""

    exit_code = 3


class DataError(OnnxcompError):
    """The data cannot be used: missing, unreadable, or not what the model takes."""

    exit_code = 4


class EnvironmentLacksError(OnnxcompError):
    """This machine lacks something that was asked for: a provider, an optional package."""

    exit_code = 5


class OutputError(OnnxcompError):
    """The output cannot be written."""

    exit_code = 6


class GuaranteeError(OnnxcompError):
    """A pass broke its promise: invalid structure, changed interface, or outputs outside its guarantee."""

    exit_code = 1


class TrainingError(OnnxcompError):
    """The process that trains crashed, hung or failed; the model on disk is as it was."""

    exit_code = 1
