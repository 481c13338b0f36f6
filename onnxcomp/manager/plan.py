"""A plan as a file: which form each layer takes, with the figures that decided; a person edits it and runs again."""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp.errors import UsageError, plain

SCHEMA = 1
MOST_BYTES = 32 * 2**20  # of a file that is read: a line for each of a hundred thousand layers
_KEYS = {"schema", "default", "layers", "about", "figures"}
_LAYER_KEYS = {"node", "form", "time_us", "bytes", "sqnr_db", "others"}
_BARE = re.compile(r"[A-Za-z0-9_-]+")


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
        try:
            if path.stat().st_size > MOST_BYTES:
                raise _wrong(where, f"it is larger than {MOST_BYTES >> 20} MiB", "give the file that a run wrote")
            text = path.read_text(encoding="utf-8")
            data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
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
        again = "see docs/mixed-precision.md for what a plan holds"
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise _wrong(where, f"it is no plan of schema {SCHEMA}", again)
        if unknown := sorted(set(data) - _KEYS):
            raise _wrong(where, f"it has the unknown key {unknown[0]!r}", again)
        layers = data.get("layers", [])
        if not isinstance(layers, list) or not all(isinstance(item, dict) for item in layers):
            raise _wrong(where, "its layers are no list of tables", again)
        entries = []
        for place, item in enumerate(layers, 1):
            if unknown := sorted(set(item) - _LAYER_KEYS):
                raise _wrong(f"{where}, layer {place}", f"it has the unknown key {unknown[0]!r}", again)
            node, form = item.get("node"), item.get("form")
            if not isinstance(node, str) or not isinstance(form, str) or not node:
                raise _wrong(f"{where}, layer {place}", "it needs a node and a form, both text", again)
            entries.append(Entry(node, form, {k: v for k, v in item.items() if k not in ("node", "form")}))
        default, about = data.get("default", "float"), data.get("about", "")
        if not isinstance(default, str) or not isinstance(about, str):
            raise _wrong(where, "default and about are text", again)
        return cls(tuple(entries), default, about, data.get("figures"), where)

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
