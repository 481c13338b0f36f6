"""What may stand in onnxcomp.toml and in a plan? This writes their schemas in docs/, for editors, from the dataclasses.

python docs/make_schema.py          # tests/test_config.py fails while a file is out of date
"""

from __future__ import annotations

import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxcomp import config
from onnxcomp.manager import plan
from onnxcomp.settings import Setting
from onnxcomp.verify.budget import Size

FILE = Path(__file__).resolve().parent / "onnxcomp.schema.json"
PLAN_FILE = FILE.with_name("plan.schema.json")
NUMBER = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[-+0-9.eE]+(/[-+0-9.eE]+)?$"}]}
LIST = {"anyOf": [*NUMBER["anyOf"], {"type": "string"}, {"type": "array", "items": NUMBER, "minItems": 1}]}
SIZES = {"type": "array", "items": {"type": "integer", "minimum": 1}}


def schema() -> dict[str, Any]:
    """The whole schema, JSON Schema 2020-12."""
    defaults = {key.name: described(key) for key in config.default_keys()}
    own = {key.name: described(key) for key in config.file_keys()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnxcomp.toml",
        "description": "Models that onnxcomp build makes; keys at the top are defaults for every model.",
        "type": "object",
        "properties": own | defaults | {"preprocess": {"$ref": "#/$defs/preprocess"}, "model": models()},
        "required": ["model"],
        "additionalProperties": False,
        "$defs": {"preprocess": preprocess(), "model": model()},
    }


def models() -> dict[str, Any]:
    """The list of models."""
    return {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/model"}}


def model() -> dict[str, Any]:
    """One model."""
    keys = {key.name: described(key) for key in config.model_keys()}
    return {
        "type": "object",
        "properties": keys | {"preprocess": {"$ref": "#/$defs/preprocess"}},
        "required": ["path"],
        "additionalProperties": False,
    }


def preprocess() -> dict[str, Any]:
    """The table of preprocessing, whose numbers may be written as text: `1/255`."""
    keys = {}
    for key in config.preprocess_keys():
        if key.choices:
            taken: dict[str, Any] = {"enum": list(key.choices)}
        elif typing.get_origin(key.hint) is tuple:
            taken = LIST
        else:
            taken = NUMBER if key.hint is float else {"type": "integer", "minimum": 0, "maximum": 255}
        keys[key.name] = taken | {"description": key.help}
    return {"type": "object", "properties": keys, "additionalProperties": False}


def described(key: Setting) -> dict[str, Any]:
    """One key: what it takes, its help and its default."""
    found = taken(key) | {"description": key.help}
    if isinstance(key.default, str | int | float) and key.default != "":
        found["default"] = key.default
    return found


def taken(key: Setting) -> dict[str, Any]:
    """What a key takes."""
    if key.choices:
        return {"enum": list(key.choices)}
    if key.hint in (str, Path, Any):
        return {"type": "string"} if key.name == "name" else {"type": "string", "minLength": 1}
    if key.hint is bool:
        return {"type": "boolean"}
    if key.hint is int:
        return {"type": "integer"} | bounds(key)
    if key.hint is float:
        return {"type": "number"} | bounds(key)
    if key.hint is Size:
        pattern = r"^\s*[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?\s*(%|[kKmMgGtT]?[iI]?[bB]?)\s*$"
        return {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string", "pattern": pattern}]}
    if typing.get_origin(key.hint) is tuple:
        return {"type": "array", "items": {"type": "string"}}
    texts = typing.get_args(key.hint) == (str, str)
    return {"type": "object", "additionalProperties": {"type": "string", "minLength": 1} if texts else SIZES}


def bounds(key: Setting) -> dict[str, Any]:
    """The bounds of a number."""
    given = {"minimum": key.minimum, "exclusiveMinimum": key.above, "maximum": key.maximum}
    return {name: bound for name, bound in given.items() if bound is not None}


def plan_schema() -> dict[str, Any]:
    """The schema of a plan file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "plan.toml",
        "description": "Which form each layer takes: onnxcomp plan writes it, onnxcomp optimize --plan carries it out.",
    } | plan_table(plan.KEYS)


def plan_table(keys: Sequence[plan.Key]) -> dict[str, Any]:
    """A table of a plan."""
    return {
        "type": "object",
        "properties": {key.name: plan_key(key) for key in keys},
        "required": [key.name for key in keys if key.required],
        "additionalProperties": False,
    }


def plan_key(key: plan.Key) -> dict[str, Any]:
    """One key of a plan."""
    found: dict[str, Any] = {"type": key.takes, "description": key.help}
    if key.name == "schema":
        found["const"] = plan.SCHEMA
    elif key.required:
        found["minLength"] = 1
    if key.holds:
        found["items"] = plan_table(key.holds)
    elif key.takes == "object":
        found["additionalProperties"] = {"type": "number"}
    if key.default is not None:
        found["default"] = key.default
    return found


def text() -> str:
    """The schema of onnxcomp.toml as the file holds it."""
    return json.dumps(schema(), indent=1) + "\n"


def plan_text() -> str:
    """The schema of a plan as the file holds it."""
    return json.dumps(plan_schema(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    PLAN_FILE.write_text(plan_text(), encoding="utf-8")
