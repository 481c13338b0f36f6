"""Are pages whole, readable and safe, whatever tensors are called? Parsed here; driven in a browser next door."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import report_samples
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.cli.main import main
from onnxcomp.report import html, html_graph, html_index
from onnxcomp.report.html_base import page as page_of
from onnxcomp.report.html_base import text
from onnxcomp.report.html_charts import error_share, squarify
from onnxcomp.report.html_lines import Series, lines, points
from onnxcomp.report.record import read_json
from onnxcomp.results import BuildReport, BuiltModel, FileRef, Footprint, ModelStats, Report

ALLOWED = """
    a b body br caption circle code details div fieldset figcaption figure g h1 h2 h3 head header html img input label
    legend li line main meta nav p path pre rect section span style summary svg table tbody td text th thead
    title tr ul
"""
TAGS = set(ALLOWED.split())
VOID = {"br", "img", "meta", "input"}
PICTURE = "data:image/png;base64,"


class Page(HTMLParser):
    """Elements with their attributes and texts, and whether every one is closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def harmless(content: str) -> Page:
    page = Page(content)
    assert set(page.tags) <= TAGS
    head, _, body = content.partition("<body>")
    assert (page.tags["style"], head.count("<title>")) == (1, 1)
    assert page.tags["title"] == 1 + body.count("<title>") <= 1 + page.tags["rect"] + page.tags["circle"]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(not re.search(r"url\(|expression|@import|;\s*\w+\s*:\s*url", style) for style in page.values("style"))
    assert all(value.startswith(PICTURE) for value in page.values("src"))
    assert not {"srcset", "action", "formaction", "data"} & {name for _, name, _ in page.attributes}
    assert all(link.startswith("#") or re.fullmatch(r"[\w%.-]+\.html", link) for link in page.values("href"))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\ufeff]", content)
    assert "nan" not in " ".join(page.values("d") + page.values("width") + page.values("x"))
    return page


def harmless_part(drawn: str) -> Page:
    """A part of a page, checked inside an empty one."""
    return harmless(page_of("part", drawn))


@pytest.mark.parametrize("names", [report_samples.large_name, report_samples.hostile_name])
def test_a_page_is_well_formed_and_loads_and_runs_nothing(names: object) -> None:
    page = harmless(html.document(report_samples.report(33, names)))  # type: ignore[arg-type]
    assert any("default-src 'none'" in value for value in page.values("content"))
    assert "script-src" not in " ".join(page.values("content"))


def test_hostile_names_are_shown_as_they_are() -> None:
    found = report_samples.report(33, report_samples.hostile_name)
    shown = "".join(Page(html.document(found)).texts)
    for record in found.layers[:9]:
        visible = re.sub(r"[\x00-\x1f\x7f-\x9f\u202e\ufeff]", lambda c: f"\\u{{{ord(c.group()):x}}}", record.node)
        assert visible in shown


@given(st.text(st.characters(), max_size=30))
def test_any_text_stays_text(value: str) -> None:
    page = Page(f'<p title="{text(value)}">{text(value)}</p><p>{text(value)}</p>')
    assert page.tags == Counter(p=2)
    assert len(page.attributes) == 1
    assert page.texts == ([page.values("title")[0]] * 2 if value else [])


def test_500_layers_stay_under_2_megabytes(tmp_path: Path) -> None:
    found = report_samples.report(500)
    html.write_html(found, tmp_path / "x.html")
    assert (tmp_path / "x.html").stat().st_size < 2_000_000
    page = Page((tmp_path / "x.html").read_text())
    rows = [value for value in page.values("class") if value == "row"]
    assert len(rows) == 500


def test_orders_of_the_rows_are_permutations_worst_and_largest_first() -> None:
    found = report_samples.report(40)
    styles = [s for s in Page(html.document(found)).values("style") if s.startswith("--g")]
    ranks = np.array([[int(n) for n in re.findall(r"\d+", style)] for style in styles])
    assert (np.sort(ranks, axis=0) == np.arange(40)[:, None]).all()
    errors = [layer.own_sqnr_db for layer in found.layers]
    by_error = [errors[i] for i in np.argsort(ranks[:, 1])]
    measured = [e for e in by_error if e is not None]
    assert by_error == [*sorted(measured), *[None] * (40 - len(measured))]
    sizes = [layer.bytes[0] for layer in found.layers]
    assert [sizes[i] for i in np.argsort(ranks[:, 2])] == sorted(sizes, reverse=True)


def test_keyboard_and_screen_readers_find_their_way() -> None:
    content = html.document(report_samples.report(20))
    page = Page(content)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.values("href")} <= set(ids)
    assert {label for value in page.values("aria-labelledby") for label in value.split()} <= set(ids)
    assert page.tags["svg"] == page.values("role").count("img") + page.values("aria-hidden").count("true")
    assert page.tags["input"] == page.tags["label"] == 3 + 20  # orders of the rows, and changed parts
    assert page.values("lang") == ["en"]
    assert ":focus-visible" in content
    assert "prefers-color-scheme: dark" in content
    assert "@media print" in content


def test_a_bare_report_makes_a_page(tmp_path: Path) -> None:
    stats = ModelStats(0, 0, 0, 0, 0, 17)
    bare = Report({"name": "onnxcomp"}, {}, 0, FileRef("m.onnx", ""), stats, stats, verdict="unchanged", exit_code=13)
    page = harmless(html.document(bare))
    assert "unchanged" in page.texts
    assert {link[1:] for link in page.values("href")} <= set(page.values("id"))


def test_benchmarks_of_one_batch_on_two_providers_have_places_of_their_own() -> None:
    found = report_samples.report(3)
    (bench, *_) = found.benchmarks
    taken = Footprint(0.1, 0.05, 0.01, 3_000_000, 90_000_000)
    found.benchmarks = [bench, replace(bench, provider="CUDAExecutionProvider", footprints=(taken, taken))]
    page = harmless(html.document(found))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert "latency-CUDA-1-1" in ids
    assert "3 MB" in page.texts and "peak memory" in page.texts


def test_optimize_writes_the_page_it_is_asked_for(
    digits: Path, digits_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--data", str(digits_data[0]), "--passes", "fuse-batchnorm,quantize-qdq", "--no-bench", "-q"]
    with pytest.raises(SystemExit) as stop:
        main(["optimize", str(digits), *options, "--html", "page.html"])
    assert not stop.value.code
    found = read_json(Path("digits-cnn.opt.json"))
    (when,) = re.findall(r"written</th><td >([^<]*UTC)<", Path("page.html").read_text())
    assert Path("page.html").read_text() == html.document(found, when)
    ranges = [layer.weights.range for layer in found.layers if layer.weights is not None]
    assert ranges
    assert all(after is not None for _, after in ranges)
    assert "conv1" in harmless(Path("page.html").read_text()).texts


def test_passes_that_found_nothing_to_do_take_one_line() -> None:
    found = report_samples.report(2, report_samples.large_name)
    idle = replace(found.passes[0], name="idle", spec="idle{x=1}", changes=0, summary="nothing to do", notes=())
    told = replace(idle, name="told", spec="told", notes=("it says why",))
    found.passes = [*found.passes, idle, told]
    page = html.document(found, "now")
    assert "Found nothing to do: <code>idle{x=1}</code>." in page
    assert page.count("idle{x=1}") == 1
    assert "it says why" in page


@pytest.mark.parametrize("names", [report_samples.large_name, report_samples.hostile_name])
def test_the_page_of_a_build_is_harmless_too(names: object) -> None:
    found = report_samples.build(names)  # type: ignore[arg-type]
    page = harmless(html_index.document(found, {found.models[0].name: "a b-1.html"}))
    assert "a%20b-1.html" in page.values("href")
    assert "1 of 3 accepted" in page.texts


def test_variants_of_one_model_are_set_against_each_other() -> None:
    sizes, scores = (4e6, 2e6, 1e6, 3e6), (0.90, 0.89, 0.70, 0.80)
    models = []
    for index, (size, score) in enumerate(zip(sizes, scores, strict=True)):
        one = report_samples.report(2, report_samples.hostile_name)
        one.after = replace(one.after, bytes=int(size))
        one.accuracy = replace(one.accuracy, after=score, before=0.91, drop=0.91 - score)
        models.append(BuiltModel(f"m{index}", "built", 0, f"m{index}.onnx", f"m{index}.json", report=one))
    page = harmless(html_index.document(BuildReport("onnxcomp.toml", models), {}))
    assert html_index.front([(s / 1e6, q) for s, q in zip(sizes, scores, strict=True)]) == [
        (1.0, 0.70),
        (2.0, 0.89),
        (4.0, 0.90),
    ]
    assert page.tags["circle"] == 2 + 4 + 1  # legend, variants, the original
    assert "Variants of one model" in page.texts
    other = [replace(m, report=replace(m.report, source=FileRef(m.name, m.name))) for m in models]
    assert "Variants" not in html_index.document(BuildReport("onnxcomp.toml", other), {})


# -- pictures ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=60), st.floats(5, 900), st.floats(5, 900))
def test_a_treemap_fills_its_frame_in_proportion(sizes: list[float], width: float, height: float) -> None:
    sizes = sorted(sizes, reverse=True)
    places = np.array(squarify(sizes, width, height))
    x, y, w, h = places.T
    tiny = 1e-6 * max(width, height)
    assert (w * h) == pytest.approx(np.array(sizes) / sum(sizes) * width * height, rel=1e-3, abs=1e-3)
    assert (x >= -tiny).all()
    assert (y >= -tiny).all()
    assert (x + w <= width + tiny).all()
    assert (y + h <= height + tiny).all()


def test_rectangles_of_a_treemap_do_not_overlap() -> None:
    sizes = sorted(np.random.default_rng(0).pareto(1.0, 80) + 0.1, reverse=True)
    places = squarify(sizes, 300, 200)
    for i, (x, y, w, h) in enumerate(places):
        for a, b, c, d in places[:i]:
            assert min(x + w, a + c) - max(x, a) < 1e-6 or min(y + h, b + d) - max(y, b) < 1e-6


@given(
    st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)), max_size=30),
    st.text(max_size=20),
    st.booleans(),
)
def test_lines_draw_any_values_and_names(values: list[tuple[float, float]], name: str, logarithmic: bool) -> None:
    drawn = lines([Series(name, values), Series("other", values[:1])], name, "loss", logarithmic=logarithmic)
    page = harmless_part(drawn)
    coordinates = re.findall(r"-?[\d.]+(?:e[+-]?\d+)?", " ".join(page.values("d")))
    assert all(-1 <= float(number) <= 961 for number in coordinates)
    kept = [y for x, y in values if abs(x) < 1e150 and abs(y) < 1e150]
    assert bool(drawn) == bool(kept)


def test_a_long_curve_is_thinned_and_keeps_its_shape() -> None:
    steps = [(float(n), 1 + 1 / (n + 1)) for n in range(5000)]
    drawn = harmless_part(lines([Series("training", steps)], "step", "loss"))
    (path,) = [d for d in drawn.values("d") if d.count("L") > 3]
    heights = [float(part.split()[1]) for part in path[1:].split("L")]
    assert 300 < len(heights) <= 400
    assert heights == sorted(heights)  # the loss falls, so y grows downwards


def test_a_front_is_drawn_as_stairs_through_its_points() -> None:
    trials = [(1.0, 9.0), (2.0, 5.0), (3.0, 4.0), (3.0, 8.0)]
    drawn = harmless_part(points([Series("trials", trials)], "ms", "loss", front=trials[:3], mark="best"))
    assert drawn.tags["circle"] == 1 + 4
    assert any(d.count("H") == 2 and d.count("V") == 2 for d in drawn.values("d"))
    assert "best" in drawn.texts


def test_layers_of_one_name_are_told_apart_in_the_maps() -> None:
    nodes = ["/layer1/conv1/Conv", "/layer2/conv1/Conv", "/layer2/conv2/Conv", "stem", "/a/x/Conv", "/a/x/Conv_1", "x"]
    base = report_samples.report(1).layers[0]
    names = html.short_names([replace(base, node=node) for node in nodes])
    assert names["/layer1/conv1/Conv"] == "layer1/conv1"
    assert names["/layer2/conv2/Conv"] == "conv2"
    assert names["stem"] == "stem"
    assert names["x"] == "x"


def test_the_scale_of_errors() -> None:
    assert [error_share(db) for db in (80, 60, 30, 0, -20)] == [0, 0, 0.5, 1, 1]


# -- the changed graph ---------------------------------------------------------------------------------------------


def test_a_part_is_drawn_with_every_node_and_arrow_on_its_own_place() -> None:
    part = report_samples.part(1, report_samples.large_name)
    for side in (part.before, part.after):
        page = harmless_part(html_graph.drawn(side, "label"))
        boxes = [(x, y) for tag, x, y in _rects(page) if tag]
        assert len(boxes) == len(set(boxes)) == len(side.nodes)
        assert sum("C" in d for d in page.values("d")) == len(side.edges)
        heights = dict(zip(range(len(boxes)), (float(y) // 54 for _, y in boxes), strict=True))
        assert all(heights[a] < heights[b] for a, b in side.edges)  # arrows point down


def _rects(page: Page) -> list[tuple[bool, str, str]]:
    of = {name: [v for tag, n, v in page.attributes if tag == "rect" and n == name] for name in ("class", "x", "y")}
    return [("node" in c, x, y) for c, x, y in zip(of["class"], of["x"], of["y"], strict=True)]


def test_what_went_and_came_is_said_beside_each_layer() -> None:
    gone, folded = (report_samples.part(index, report_samples.large_name) for index in (0, 1))
    assert html_graph.difference(gone) == "removed"
    assert html_graph.difference(folded) == "- BatchNormalization, + DequantizeLinear"


def test_many_changed_parts_stay_a_small_page_and_say_how_many_are_left_out() -> None:
    found = report_samples.report(500)
    content = html.document(found)
    assert content.count("name=part") == 100
    assert "and 400 more layers" in content


def test_flipped_samples_stand_with_both_classes_and_the_label() -> None:
    content = html.document(report_samples.report(9), pictures={2: PICTURE + "AAAA", 3: "javascript:alert(1)"})
    page = harmless(content)
    assert page.values("src") == [PICTURE + "AAAA"]
    part = content[content.index('id="flips"') :]
    assert '<b class="good" title="class 2 before, 3 after, label 3">2 → 3</b> label 3' in part
    assert '<b class="bad" title="class 1 before, 2 after, label 1">1 → 2</b> label 1' in part


def test_training_is_drawn_with_its_held_out_loss() -> None:
    sample = report_samples.report(4)
    found = html.document(sample)
    part = found[found.index('id="training"') :]
    assert "held-out loss 2.5 -&gt; 0.3 in 300 steps of 64" in part
    assert part.count("<path") + part.count("<polyline") >= 2
    sample.training = []
    assert 'id="training"' not in html.document(sample)
