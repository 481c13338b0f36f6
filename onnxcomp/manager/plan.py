"""A plan as a file: which form each layer takes, with the figures that decided; a person edits it and runs again."""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp import toml
from onnxcomp.errors import UsageError, plain
from onnxcomp.files import special

SCHEMA = 1
_AGAIN = "see docs/mixed-precision.md for what a plan holds"
_NAMED = ("node", "form")
MOST_BYTES = 32 * 2**20  # of a file that is read: a line for each of a hundred thousand layers
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_TYPES: dict[str, Any] = {"integer": int, "number": int | float, "string": str, "object": dict, "array": list}
_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "object": "a table",
    "array": "a list of tables",
}


@dataclass(frozen=True)
class Key:
    """What may stand under one name in a plan; docs/plan.schema.json is made of it.

    Attributes:
        takes: a type of JSON.
        default: what holds where it is not given.
        holds: for a list, the keys of each of its tables; an `object` without any is a table of numbers.
    """

    name: str
    takes: str
    help: str
    required: bool = False
    default: str | None = None
    holds: tuple[Key, ...] = ()


_FORM = Key("form", "string", "One of the forms of docs/mixed-precision.md.", required=True)
_FIGURES = (
    Key("time_us", "number", "Kernel time of the layer in microseconds; not read."),
    Key("bytes", "integer", "Of its weights; not read."),
    Key("sqnr_db", "number", "Of the outputs, if this layer alone had this form; not read."),
)
_LAYER = (
    Key("node", "string", "A node's name, or a glob of names.", required=True),
    _FORM,
    *_FIGURES,
    Key("others", "array", "The forms that were not taken; not read.", holds=(_FORM, *_FIGURES)),
)
KEYS = (
    Key("schema", "integer", f"{SCHEMA}.", required=True),
    Key("about", "string", "Where the plan comes from; not read."),
    Key("default", "string", "The form of the layers that no entry matches.", default="float"),
    Key("figures", "object", "Of the whole, as predicted and as measured; not read."),
    Key("layers", "array", "Of several that match a node the last one counts.", holds=_LAYER),
)


@dataclass(frozen=True)
class Entry:
    """One line of a plan.

    Attributes:
        node: a node's name or a glob of names.
        form: what becomes of the weights of all nodes that match.
        figures: what decided: `time_us`, `bytes`, `sqnr_db` of the outputs if it alone has this form, and `others`, the
            same of the forms that were not taken; read by people only.
    """

    node: str
    form: str
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """Forms by node. Of several entries that match a node the last one counts; the others have the default form.

    Attributes:
        default: the form of nodes that no entry names.
        figures: of the whole, as predicted and as measured.
        where: the file it was read from, for messages.
    """

    entries: tuple[Entry, ...]
    default: str = "float"
    about: str = ""
    figures: Mapping[str, Any] | None = None
    where: str = "plan"

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """A plan from TOML, or from JSON where the name ends so.

        Raises:
            UsageError: there is no such file, or it is no plan; exit code 2.
        """
        path = Path(path)
        where = f"plan {path}"
        if found := special(path):
            raise _wrong(where, f"it is {found}, and only files are read", "give the file that a run wrote")
        try:
            if path.stat().st_size > MOST_BYTES:
                raise _wrong(where, f"it is larger than {MOST_BYTES >> 20} MiB", "give the file that a run wrote")
            text = path.read_text(encoding="utf-8")
            data = json.loads(text) if path.suffix == ".json" else toml.parse(text)
        except (OSError, UnicodeDecodeError) as error:
            raise _wrong(where, f"it cannot be read: {error}", "check --plan") from error
        except (ValueError, RecursionError) as error:
            raise _wrong(where, f"it is malformed: {error}", "mend it, or let a run write it anew") from error
        return cls.of(data, where)

    @classmethod
    def of(cls, data: Any, where: str = "plan") -> Plan:
        """A plan from the contents of a file.

        Raises:
            UsageError: they are none.
        """
        schema = data.get("schema") if isinstance(data, dict) else None
        if not _is(schema, "integer") or schema != SCHEMA:
            raise _wrong(where, f"it is no plan of schema {SCHEMA}", _AGAIN)
        _check(data, KEYS, where)
        entries = []
        for item in data.get("layers", []):
            entries.append(Entry(item["node"], item["form"], {k: v for k, v in item.items() if k not in _NAMED}))
        default = data.get("default", "float")
        return cls(tuple(entries), default, data.get("about", ""), data.get("figures"), where)

    def forms(
        self, layers: Mapping[str, Sequence[str]], names: Collection[str], known: Collection[str]
    ) -> dict[str, str]:
        """The form of each layer.

        Args:
            layers: names of the nodes of each layer that has a choice, by the layer's name.
            names: of all nodes of the model.
            known: all forms.

        Raises:
            UsageError: an entry names no node of the model or no form, or gives nodes that share weights two forms.
        """
        found = dict.fromkeys(layers, self._known(self.default, known, "default"))
        for place, entry in enumerate(self.entries, 1):
            where = f"layer {place}, {entry.node}"
            form = self._known(entry.form, known, where)
            matched = set(names) & {entry.node} or set(fnmatch.filter(names, entry.node))
            if not matched:
                close = difflib.get_close_matches(entry.node.replace("*", ""), sorted(names), 3, 0.3)
                do = f"names like it: {', '.join(close)}" if close else "see onnxcomp inspect MODEL for the names"
                raise _wrong(f"{self.where}, {where}", f"no node of the model is called {entry.node!r}", do)
            met = [name for name, nodes in layers.items() if not matched.isdisjoint(nodes)]
            if not met and form != "float" and entry.node in matched:
                raise _wrong(
                    f"{self.where}, {where}", "the node has no weight that could take another form", "leave it out"
                )
            found.update(dict.fromkeys(met, form))
        return found

    def _known(self, form: str, known: Collection[str], where: str) -> str:
        if form not in known:
            close = difflib.get_close_matches(form, list(known), 1)
            do = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"
            raise _wrong(f"{self.where}, {where}", f"there is no form {form!r}", do)
        return form

    def data(self) -> dict[str, Any]:
        """JSON-ready."""
        result: dict[str, Any] = {"schema": SCHEMA}
        if self.about:
            result["about"] = self.about
        result["default"] = self.default
        if self.figures:
            result["figures"] = dict(self.figures)
        result["layers"] = [{"node": e.node, "form": e.form, **e.figures} for e in self.entries]
        return result

    def __str__(self) -> str:
        """TOML that `read` takes back."""
        data = self.data()
        lines = [f"{key} = {_toml(value)}" for key, value in data.items() if key != "layers"]
        for layer in data["layers"]:
            lines += ["", "[[layers]]"]
            for key, value in layer.items():
                if isinstance(value, list):
                    lines += [f"{key} = [", *(f"  {_toml(part)}," for part in value), "]"]
                else:
                    lines.append(f"{key} = {_toml(value)}")
        return "\n".join(lines) + "\n"


def _check(table: Mapping[str, Any], keys: Sequence[Key], where: str) -> None:
    """Whether a table holds what its keys take, and no others.

    Raises:
        UsageError: it does not.
    """
    if unknown := sorted(set(table) - {key.name for key in keys}):
        raise _wrong(where, f"it has the unknown key {unknown[0]!r}", _AGAIN)
    for key in keys:
        if key.name not in table:
            if key.required:
                raise _wrong(where, f"it needs {key.name}, {_WORDS[key.takes]}", _AGAIN)
            continue
        value = table[key.name]
        if not _is(value, key.takes) or (key.required and value == ""):
            raise _wrong(where, f"{key.name} has to be {_WORDS[key.takes]}", _AGAIN)
        if key.takes == "object" and (other := next((k for k, v in value.items() if not _is(v, "number")), None)):
            raise _wrong(f"{where}, {key.name}", f"{other} has to be a number", _AGAIN)
        for place, item in enumerate(value if key.holds else (), 1):
            inside = f"{where}, {key.name.removesuffix('s')} {place}"
            if not isinstance(item, dict):
                raise _wrong(inside, "it has to be a table", _AGAIN)
            _check(item, key.holds, inside)


def _is(value: Any, takes: str) -> bool:
    """Whether a value has a type of JSON; true and false are no numbers."""
    return isinstance(value, _TYPES[takes]) and not isinstance(value, bool)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items() if v is not None) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")


def _key(text: str) -> str:
    return text if _BARE.fullmatch(text) else json.dumps(text)


def _wrong(where: str, what: str, do: str) -> UsageError:
    return UsageError(plain(f"the plan cannot be followed: {what}"), where=plain(where), do=plain(do))
