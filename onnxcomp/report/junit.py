"""A build as JUnit XML, which CI systems show as tests: one suite a model, one case a budget."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from onnxcomp.report.tables import limit_text, value_text
from onnxcomp.results import BuildReport, BuiltModel

# what XML 1.0 cannot hold, even escaped
UNSAYABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def document(build: BuildReport) -> bytes:
    """The file's bytes, UTF-8."""
    root = ET.Element("testsuites", name="onnxcomp build", time=f"{build.seconds:.3f}")
    for model in build.models:
        root.append(_suite(model))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ET.indent(root)
    found: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return found + b"\n"


def _suite(model: BuiltModel) -> ET.Element:
    suite = ET.Element("testsuite", name=_text(model.name), time=f"{model.seconds:.3f}")
    built = _case(suite, model, "builds", model.seconds)
    report = model.report
    if model.error is not None:
        words = "\n".join(part for part in (model.error.what, model.error.where, model.error.do) if part)
        ET.SubElement(built, "error", message=_text(model.error.what)).text = _text(words)
    elif report is not None and report.verdict == "unchanged":
        ET.SubElement(built, "failure", message=_text(report.reason)).text = _text("\n".join(report.notes))
    for line in report.budget if report is not None else ():
        case = _case(suite, model, limit_text(line), 0.0)
        if not line.passed:
            ET.SubElement(case, "failure", message=f"{value_text(line)} instead of {limit_text(line)}")
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))
    return suite


def _case(suite: ET.Element, model: BuiltModel, name: str, seconds: float) -> ET.Element:
    return ET.SubElement(
        suite, "testcase", classname=_text(f"onnxcomp.{model.name}"), name=_text(name), time=f"{seconds:.3f}"
    )


def _text(value: str) -> str:
    return UNSAYABLE.sub("\N{REPLACEMENT CHARACTER}", value)
