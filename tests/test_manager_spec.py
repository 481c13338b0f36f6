"""Do passes survive the way to text and back, and is every mistake in a spec explained?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.errors import UsageError
from onnxcomp.graph.ir import Graph
from onnxcomp.manager import registry
from onnxcomp.manager.base import Outcome, Pass, PassContext, option
from onnxcomp.manager.options import describe
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.manager.spec import parse_passes


@dataclass(frozen=True)
class Many(Pass):
    """An option of every kind."""

    name: ClassVar[str] = "many"
    share: float = option(0.5, "a share", minimum=0.0, below=1.0)
    count: int = option(3, "a count", minimum=0)
    on: bool = option(True, "a switch")
    word: str = option("plain", "a text")
    method: Literal["one", "two", "2:4"] = option("one", "a choice")
    bits: Literal[2, 4, 8] = option(8, "bits")
    limit: float | None = option(1.5, "a number or none")
    either: float | str = option("auto", "a number or a text")
    sizes: tuple[int, ...] = option((1, 2), "whole numbers")
    names: tuple[str, ...] = option((), "texts")

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        return Outcome()


def parse(text: str) -> tuple[Pass, ...]:
    return parse_passes(text, lambda name: {"many": Many}[name])


TEXT = st.text(max_size=12) | st.sampled_from(
    ["true", "none", "1.5", "a,b", '"', "\\", "[x]", "{", "é ", "a=b", "head.*", ""]
)


@given(
    share=st.floats(0, 0.999),
    count=st.integers(0, 10**12),
    on=st.booleans(),
    word=TEXT,
    method=st.sampled_from(["one", "two", "2:4"]),
    bits=st.sampled_from([2, 4, 8]),
    limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    either=TEXT | st.floats(-1e9, 1e9),
    sizes=st.lists(st.integers(), max_size=3),
    names=st.lists(TEXT, max_size=3),
    include=st.lists(TEXT, max_size=2),
)
def test_any_pass_survives_the_way_to_text_and_back(**options: object) -> None:
    item = Many(**options)  # type: ignore[arg-type]
    assert parse(str(item)) == (item,)
    twice = Pipeline((item, Many()))
    assert Pipeline(parse(str(twice))) == twice
    assert hash(item) == hash(Many(**options))  # type: ignore[arg-type]


def test_defaults_are_left_out() -> None:
    assert str(Many()) == "many"
    assert str(Many(share=0.25, names=["head.*", "stem,1"])) == 'many{share=0.25,names=[head.*,"stem,1"]}'  # type: ignore[arg-type]


def test_the_example_of_the_design() -> None:
    text = ' many { share = 0.3 , names = ["head.*", "stem,1"] } , many{method=2:4,on=false,limit=none} '
    first, second = parse(text)
    assert first == Many(share=0.3, names=("head.*", "stem,1"))
    assert second == Many(method="2:4", on=False, limit=None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected the name of a pass"),
        (",", "expected the name"),
        ("many,", "expected the name"),
        ("many many", "comma between passes"),
        ("many{", "option"),
        ("many{share}", "expected ="),
        ("many{share=}", "expected a value"),
        ("many{share=0.1 count=2}", "comma or }"),
        ("many{share=0.1,share=0.2}", "twice"),
        ("many{names=[a}", "comma or ]"),
        ('many{word="open}', "unreadable"),
        ('many{word="\\q"}', "malformed"),
        ("many{shore=1}", "no option 'shore'"),
        ("many{share=2}", "must be below 1"),
        ("many{share=-0.1}", "at least 0"),
        ("many{share=nan}", "is not a number"),
        ("many{share=inf}", "is not a number"),
        ("many,count=1", "options go in braces behind their pass: name{count=...}"),
        ("many{count=1.5}", "is not a whole number"),
        ("many{count=true}", "is not a whole number"),
        ("many{on=1}", "is not true or false"),
        ("many{method=three}", "one of one, two, 2:4"),
        ("many{bits=3}", "one of 2, 4, 8"),
        ("many{sizes=[a]}", "list of whole number"),
    ],
)
def test_mistakes_are_explained(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert words in caught.value.what
    assert caught.value.where and caught.value.do
    assert caught.value.exit_code == 2


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(UsageError) as caught:
        parse("many{shar=1}")
    assert caught.value.do == "did you mean share?"
    with pytest.raises(UsageError) as caught:
        parse_passes("clean-up")
    assert caught.value.do == "did you mean cleanup?"


@pytest.mark.parametrize("name", registry.names())
def test_every_registered_pass_is_described(name: str) -> None:
    cls = registry.find(name)
    assert cls.name == name
    for info in describe(cls):
        assert info.doc and not info.doc.endswith(".")
        assert info.type
    assert {"include", "exclude"} <= {info.name for info in describe(cls)}
