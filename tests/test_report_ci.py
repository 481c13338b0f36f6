"""Do the reports for CI and for scripts hold what was found, whatever things are called?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import report_samples
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.errors import DataError
from onnxcomp.report import junit, markdown
from onnxcomp.report.record import read_json, write_data, write_json


@pytest.mark.parametrize("names", [report_samples.large_name, report_samples.hostile_name])
def test_a_report_comes_back_from_its_file(tmp_path: Path, names: object) -> None:
    found = report_samples.report(12, names)  # type: ignore[arg-type]
    write_json(found, tmp_path / "x.json")
    assert read_json(tmp_path / "x.json") == found


def test_what_a_later_version_adds_is_left_out(tmp_path: Path) -> None:
    content = report_samples.report(2).to_json()
    content["moon"] = {"phase": 1}
    content["layers"][0]["colour"] = "red"
    del content["benchmarks"][0]["spread"]
    write_data(content, tmp_path / "x.json")
    assert read_json(tmp_path / "x.json").benchmarks[0].spread is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "layers": [3]}'])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match="report"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("names", [report_samples.large_name, report_samples.hostile_name])
def test_junit_holds_a_suite_a_model_and_a_case_a_budget(names: object) -> None:
    root = ET.fromstring(junit.document(report_samples.build(names)))  # type: ignore[arg-type]
    assert [(s.get("tests"), s.get("failures"), s.get("errors")) for s in root] == [
        ("3", "2", "0"),
        ("1", "0", "1"),
        ("1", "0", "0"),
    ]
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("5", "2", "1")
    messages = [item.get("message") for item in root.iter("failure")]
    assert messages == ["0.1 instead of max_drop 0.01", "not measured instead of max_size 1 MB"]


def test_markdown_is_one_row_a_model_whatever_its_name() -> None:
    lines = markdown.page(report_samples.build(report_samples.hostile_name)).splitlines()
    assert lines[0] == "## onnxcomp build: 1 of 3 models accepted"
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 5
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    assert not re.search(r"<(?!br>)", "\n".join(lines))
    assert sum(line.startswith("#") for line in lines) == 3


@given(st.text(max_size=20))
def test_markdown_text_is_one_line_without_marks(value: str) -> None:
    shown = markdown.text(value)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*\[\]|<>#]", re.sub(r"\\.", "", shown))


def test_build_json_names_what_was_done() -> None:
    content = json.loads(json.dumps(report_samples.build().to_json(), allow_nan=False))
    assert content["exit_code"] == 3
    assert [m["status"] for m in content["models"]] == ["failed", "failed", "up to date"]
    assert [m["verdict"] for m in content["models"]] == ["over-budget", None, "accepted"]
    assert content["models"][1]["error"]["what"]
    assert "report" not in content["models"][0]
