"""Does distill train what it should, keep what passes made, and say what it did? In the real worker, on small data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from nets import Net

from onnxcomp.cli.main import main
from onnxcomp.data.open import open_data
from onnxcomp.distill import environment
from onnxcomp.distill.augment import Augment, spatial_axes
from onnxcomp.distill.teacher import answers, write_rows
from onnxcomp.errors import DataError, EnvironmentLacksError, ModelError, OutputError, UsageError
from onnxcomp.graph.codec import decode
from onnxcomp.graph.io import load, save, to_bytes
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import Outcome, PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators
from onnxcomp.passes.distill import Distill
from onnxcomp.passes.training import gradual, material
from onnxcomp.passes.training.keeping import kept
from onnxcomp.passes.training.objective import Aim, Pair, class_axis, pairs, terms
from onnxcomp.runtime.progress import SILENT
from onnxcomp.students import new_head

CLASSES, WIDTH = 4, 12


class Rows:
    """Samples in memory: float rows and integer labels, the class being the largest of the first few."""

    source = "made up"

    def __init__(self, count: int, seed: int, *, labelled: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(count, WIDTH)).astype(np.float32)
        self._labels = self.x[:, :CLASSES].argmax(1) if labelled else None

    @property
    def labels(self) -> np.ndarray | None:
        return self._labels

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self), size or 32):
            yield {"x0": self.x[start : start + (size or 32)]}


@pytest.fixture(scope="module")
def runtime() -> environment.Environment:
    try:
        return environment.provide()
    except (EnvironmentLacksError, OutputError) as error:
        pytest.skip(f"no training runtime here: {error}")


def classifier(hidden: int = 24, *, softmax: bool = False, exact: bool = True) -> Graph:
    """A perfect teacher for `Rows`, widened by units that give nothing; or, not exact, random weights."""
    net = Net(seed=hidden)
    x = net.input("n", WIDTH)
    if exact:
        first = np.zeros((hidden, WIDTH), np.float32)
        first[range(2 * CLASSES), [*range(CLASSES), *range(CLASSES)]] = [*[1.0] * CLASSES, *[-1.0] * CLASSES]
        second = np.zeros((CLASSES, hidden), np.float32)
        second[range(CLASSES), range(CLASSES)] = 3.0
        second[range(CLASSES), range(CLASSES, 2 * CLASSES)] = -3.0
        rng = np.random.default_rng(0)
        first[2 * CLASSES :] = rng.normal(size=(hidden - 2 * CLASSES, WIDTH))
        a = net.op(
            "Relu", net.op("Gemm", x, net.const(first, np.float32), net.const(np.zeros(hidden), np.float32), transB=1)
        )
        y = net.op("Gemm", a, net.const(second, np.float32), net.const(np.zeros(CLASSES), np.float32), transB=1)
    else:
        y = net.gemm(net.op("Relu", net.gemm(x, WIDTH, hidden)), hidden, CLASSES)
    return decode(net.model(net.op("Softmax", y, axis=-1) if softmax else y))


def context(original: Graph | None = None, *, labelled: bool = True, count: int = 640) -> PassContext:
    train = Rows(count, 1, labelled=labelled)
    return PassContext(
        calibration=train,
        training=train,
        held_out=Rows(128, 2, labelled=labelled),
        original=original,
        sample_shapes={"x0": (1, WIDTH)},
    )


def accuracy(graph: Graph) -> float:
    test = Rows(1000, 3)
    session = ort.InferenceSession(to_bytes(graph), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x0": test.x})
    return float((found.argmax(1) == test.labels).mean())


def trained(item: Distill, graph: Graph, given: PassContext) -> Outcome:
    outcome = item.run(graph, given)
    graph.sort()
    return outcome


# -- what training brings --


@pytest.mark.parametrize("softmax", [False, True])
def test_a_student_learns_from_its_teacher_without_labels(runtime, softmax: bool) -> None:
    teacher, student = classifier(softmax=softmax), classifier(16, softmax=softmax, exact=False)
    before = accuracy(student)
    outcome = trained(Distill(epochs=12, lr=0.02), student, context(teacher, labelled=False))
    assert before < 0.6
    assert accuracy(student) > 0.8
    (record,) = outcome.trainings
    assert record.held_out[0][0] == 0 and record.held_out[-1][1] < 0.2 * record.held_out[0][1]
    assert record.steps == 120 and record.samples == 640 and record.held_out_samples == 128
    assert "KL at temperature 4" in record.loss and "labels" not in record.loss
    assert len(record.losses) == len(record.rates) == 120
    assert "held-out loss" in outcome.summary


def test_labels_alone_teach_where_there_is_no_teacher(runtime) -> None:
    student = classifier(16, exact=False)
    outcome = trained(Distill(steps=120, lr=0.02, teacher="none"), student, context())
    assert accuracy(student) > 0.75
    assert outcome.trainings[0].teacher == ""
    with pytest.raises(DataError, match="labels"):
        Pipeline((Distill(teacher="none"),)).check_needs(context(labelled=False))


def test_only_values_change(runtime) -> None:
    student = classifier(16, exact=False)
    before = student.clone()
    trained(Distill(steps=3), student, context(classifier()))
    assert [n.op for n in student.nodes] == [n.op for n in before.nodes]
    pairs = list(zip(student.constants(), before.constants(), strict=True))
    assert all((a.name, a.shape, a.dtype) == (b.name, b.shape, b.dtype) for a, b in pairs)
    assert all((a.values != b.values).any() for a, b in pairs)


def test_training_that_brings_nothing_changes_nothing_and_says_so(runtime) -> None:
    student = classifier()
    before = to_bytes(student)
    outcome = trained(Distill(steps=4, lr=0.5, warmup=0.0), student, context(classifier(), labelled=False))
    assert outcome.trainings[0].best_step == 0
    assert not outcome.changes
    assert any("brought nothing" in note for note in outcome.notes)
    assert to_bytes(student) == before


def test_a_student_near_its_teacher_is_not_led_away(runtime) -> None:
    def near() -> Graph:
        graph = classifier()
        rng = np.random.default_rng(5)
        for constant in graph.constants():
            if len(constant.shape) == 2:
                constant.values = constant.values + 1e-3 * rng.standard_normal(constant.shape).astype(np.float32)
        return graph

    given = trained(Distill(steps=20, lr=5e-3), near(), context(classifier(), labelled=False))
    assert given.trainings[0].best_step <= 2, "the rate that was asked for is the one that is taken"
    chosen = trained(Distill(steps=20), near(), context(classifier(), labelled=False))
    (record,) = chosen.trainings
    assert min(loss for _, loss in record.held_out) < 0.95 * record.held_out[0][1]
    assert any("led away from the start" in note for note in chosen.notes)


def test_a_teacher_that_is_sure_of_everything_can_teach(runtime) -> None:
    def sure() -> Graph:
        graph = classifier()
        for constant in graph.constants():
            constant.values = constant.values * np.float32(12)
        return graph

    student = sure()
    student.constants()[0].values = student.constants()[0].values * np.float32(1.001)
    record = trained(Distill(steps=4), student, context(sure(), labelled=False)).trainings[0]
    assert record.held_out[0][1] < 1e-4, "the loss is float noise"
    assert record.gradient_error is not None and record.gradient_error < 0.01


def test_a_model_that_fixes_its_batch_trains_in_its_own_pieces(runtime) -> None:
    def flat(exact: bool) -> Graph:
        graph = classifier(16, exact=exact)
        graph.inputs[0].shape = (2, WIDTH)
        size = graph.add_constant("size", np.asarray([2, CLASSES, 1], np.int64))
        out = graph.outputs[0]
        made = graph.add_node("Reshape", [out, size]).outputs[0]  # the batch stands in the graph
        made.dtype, made.shape = out.dtype, (2, CLASSES, 1)
        graph.outputs = [made]
        return graph

    class Pairs(Rows):
        def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray]]:
            return super().batches(2)

    student, given = flat(False), context(flat(True), labelled=False)
    given.training, given.held_out, given.calibration = Pairs(64, 1), Pairs(16, 2), Pairs(8, 3)
    outcome = trained(Distill(steps=20, batch=8, lr=0.02), student, given)
    (record,) = outcome.trainings
    assert record.batch == 8
    assert record.held_out[-1][1] < record.held_out[0][1]


def test_the_same_seed_gives_the_same_bytes(runtime) -> None:
    models = []
    for _ in range(2):
        student = classifier(16, exact=False)
        trained(Distill(steps=5), student, context(classifier()))
        models.append(to_bytes(student))
    assert models[0] == models[1]


# -- what it keeps --


def test_zeros_bounds_and_frozen_weights_stay(runtime) -> None:
    student = classifier(16, exact=False)
    first, second = (c for c in student.constants() if len(c.shape) == 2)
    pruned = np.array(first.values)
    pruned[np.abs(pruned) < 0.2] = 0
    first.values = pruned
    second.values = np.clip(second.values, -0.1, 0.1)
    outcome = trained(Distill(steps=40, lr=0.02), student, context(classifier()))
    assert ((first.values == 0) == (pruned == 0)).all()
    assert np.abs(second.values).max() == np.float32(0.1)
    assert any("zeros stay zero" in note and "bounds" in note for note in outcome.notes)
    other = classifier(16, exact=False)
    weights = {c.name: c.values for c in other.constants()}
    trained(Distill(steps=5, freeze=(first.name,)), other, context(classifier()))
    changed = {c.name for c in other.constants() if (c.values != weights[c.name]).any()}
    assert changed == set(weights) - {first.name}
    only = classifier(16, exact=False)
    trained(Distill(steps=5, train=(first.name,)), only, context(classifier()))
    assert {c.name for c in only.constants() if (c.values != weights[c.name]).any()} == {first.name}
    with pytest.raises(UsageError, match="matches no"):
        trained(Distill(steps=5, freeze=("nothing*",)), only, context(classifier()))


def test_differences_from_the_start_shrink_under_decay(runtime) -> None:
    moves = []
    for decay in (0.0, 20.0):
        student = classifier(16, exact=False)
        before = {c.name: c.values for c in student.constants() if len(c.shape) == 2}
        item = Distill(steps=60, lr=0.02, anchor=True, weight_decay=decay)
        trained(item, student, context(classifier()))
        moves.append(
            sum(float(np.abs(c.values - before[c.name]).sum()) for c in student.constants() if c.name in before)
        )
    assert 0 < moves[1] < 0.7 * moves[0]


# -- few bits, and pruning on the way --


@pytest.mark.parametrize(("bits", "activation_bits"), [(8, 8), (4, 8), (2, 0), (1, 8)])
def test_few_bits_are_trained_and_written(runtime, bits: int, activation_bits: int) -> None:
    student = classifier()
    item = Distill(epochs=10, lr=0.02, bits=bits, activation_bits=activation_bits)
    outcome = trained(item, student, context(classifier()))
    assert outcome.metrics["written_agreement"] >= 0.99
    assert accuracy(student) > 0.9
    assert any("weights" in change.what for change in outcome.changes)
    assert not any(c.dtype == np.float32 and len(c.shape) == 2 for c in student.constants() if c.size > 200)


def test_gradual_pruning_ends_at_the_asked_share(runtime) -> None:
    student = classifier()
    outcome = trained(Distill(epochs=6, lr=0.02, sparsity=0.75, rounds=3), student, context(classifier()))
    weights = [c for c in student.constants() if len(c.shape) == 2]
    share = 1 - sum(np.count_nonzero(c.values) for c in weights) / sum(c.size for c in weights)
    assert share == pytest.approx(0.75, abs=0.01)
    assert len(outcome.trainings) == 3
    assert accuracy(student) > 0.9


def test_rounds_follow_the_cube() -> None:
    assert [gradual.cubic(x) for x in (0, 0.5, 1)] == [0, 0.875, 1]
    asked = [str(item) for _, item in gradual.rounds(0.8, None, 2)]
    assert asked == ["prune-weights{ratio=0.7000000000000001}", "prune-weights{ratio=0.8}"]
    shares = [item.macs for _, item in gradual.rounds(None, 0.5, 4) if item is not None]
    assert np.prod(shares) == pytest.approx(0.5)
    assert list(gradual.rounds(None, None, 4)) == [(1.0, None)]


def test_group_lasso_empties_units_that_drop_zero_channels_cuts(runtime) -> None:
    def cut(graph: Graph) -> tuple[Graph, int]:
        found = PassManager(Pipeline.parse("drop-zero-channels")).run(graph).graph
        return found, next(c.shape[0] for c in found.constants() if len(c.shape) == 2 and c.shape[1] == WIDTH)

    student, given = classifier(), context(classifier(), labelled=False)
    second = next(c for c in student.constants() if c.shape == (CLASSES, 24))
    second.values = second.values + np.random.default_rng(0).normal(size=second.shape).astype(np.float32) * 0.02
    assert cut(student)[1] == 24
    (record,) = trained(Distill(epochs=12, lr=0.02, group_lasso=1.0), student, given).trainings
    assert f"-> {record.held_out[-1][1]:.4g} in" in record.words, "the loss of the weights that were kept"
    assert record.held_out[-1][1] > min(loss for _, loss in record.held_out)
    smaller, left = cut(student)
    assert 2 <= left < 20
    before = accuracy(smaller)
    trained(Distill(epochs=6, lr=0.02), smaller, given)
    assert accuracy(smaller) >= before > 0.6


# -- what it reads --


def test_views_are_the_teachers_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(20, 1, 6, 6)).astype(np.float32)
    net = Net()
    x = net.input("n", 1, 6, 6)
    teacher = decode(net.model(net.op("Mul", x, net.const(2.0, np.float32))))
    samples = open_data({"x0": images}, [spec_of(teacher)]).samples()
    augment = Augment(("flip", "crop"), 2)
    rows = write_rows(samples, samples.head(4), tmp_path, views=3, augment=augment, seed=1, progress=SILENT)
    assert len(rows) == 64 and rows.arrays["x0"].shape == (64, 1, 6, 6)
    assert (rows.arrays["x0"][60:] == images[:4]).all(), "held-out samples are not augmented"
    assert not (rows.arrays["x0"][:20] == rows.arrays["x0"][20:40]).all()
    name = teacher.outputs[0].name
    found, known = answers(teacher, [name], rows, threads=1, progress=SILENT)
    assert not known and (found[name] == 2 * rows.arrays["x0"]).all()
    again, known = answers(teacher, [name], rows, threads=1, progress=SILENT)
    assert known and (again[name] == found[name]).all()
    teacher.constants()[0].values = np.asarray(3.0, np.float32)
    _, known = answers(teacher, [name], rows, threads=1, progress=SILENT)
    assert not known, "another teacher has other answers"


def spec_of(graph: Graph):
    from onnxcomp.data.inputs import InputSpec

    return InputSpec(graph.inputs[0].name, graph.inputs[0].dtype, graph.inputs[0].shape)


def test_views_hold_the_picture_shifted_and_mirrored() -> None:
    picture = np.arange(1, 26, dtype=np.float32).reshape(1, 1, 5, 5)
    seen = set()
    for seed in range(60):
        view = Augment(("flip", "crop"), 1).views({"x": picture}, np.random.default_rng(seed))["x"]
        inner = view[0, 0][view[0, 0].any(1)][:, view[0, 0].any(0)]
        assert inner.shape[0] >= 4 and inner.shape[1] >= 4
        steps = set(np.diff(inner, axis=1).reshape(-1).tolist())
        assert steps in ({1.0}, {-1.0})
        seen.add((steps.pop(), inner.shape))
    assert len(seen) == 8
    assert spatial_axes(np.zeros((2, 8, 8, 3), np.float32)) == (1, 2)
    with pytest.raises(DataError, match="no pictures"):
        Augment(("flip",)).views({"x": np.zeros((2, 5), np.float32)}, np.random.default_rng(0))


def test_every_epoch_reads_every_sample_in_its_own_view(tmp_path: Path) -> None:
    rows = write_rows(Rows(50, 0), Rows(9, 1), tmp_path, progress=SILENT)
    rows.views = 3
    order = material.order(rows, 15, 10, 0)
    for epoch in range(3):
        part = order[epoch * 5 : epoch * 5 + 5].reshape(-1)
        assert sorted(part.tolist()) == list(range(epoch * 50, epoch * 50 + 50))
    assert material.held_out(rows, 4).tolist() == [[150, 151, 152, 153], [154, 155, 156, 157]]
    assert material.held_out(rows, 20).shape == (1, 20)


# -- what it chooses --

AUTO = Aim("auto", 4.0, 0.9, (), 1.0)


def chosen(answer: np.ndarray, labels: np.ndarray | None = None, outputs: int = 1) -> list[str]:
    shape = (8, *answer.shape[1:])
    found, _ = terms([Pair("y", "t", True)] * outputs, AUTO, {"y": shape}, {"t": answer}, labels)
    return [term.kind for term in found]


def test_the_loss_follows_from_the_outputs() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(100, 10)) * 5
    embedding = rng.normal(size=(100, 64))
    labels = rng.integers(0, 10, 100)
    assert chosen(logits) == ["kl"]
    assert chosen(logits, labels) == ["kl", "labels"]
    assert chosen(embedding) == ["cosine"]
    assert chosen(embedding / np.linalg.norm(embedding, axis=1, keepdims=True)) == ["cosine"]
    assert chosen(rng.normal(size=(100, 1))) == ["mse"]
    assert chosen(rng.normal(size=(100, 20, 6))) == ["mse"]
    assert chosen(embedding, outputs=2) == ["mse", "mse"]
    assert class_axis((4, 5, 7, 7), np.zeros((9, 7, 7), int)) == 1
    with pytest.raises(DataError, match="a label is 10"):
        chosen(logits, labels + 1)


def test_features_are_matched_where_they_fit() -> None:
    teacher, student = classifier(24), classifier(16)
    aim = Aim("auto", 4.0, 1.0, ("*Relu*", "*Gemm*"), 2.0)
    found = pairs(student, teacher, aim)
    assert [p.student for p in found if not p.output] == ["n2_Relu.0", "n1_Gemm.0"]
    shapes = {p.student: (8, CLASSES if p.output else 16) for p in found}
    rng = np.random.default_rng(0)
    answers = {p.teacher: rng.normal(size=(50, CLASSES if p.output else 24)).astype(np.float32) * 5 for p in found}
    chosen_terms, notes = terms(found, aim, shapes, answers, None)
    assert [t.kind for t in chosen_terms] == ["kl"] and len([n for n in notes if "not matched" in n]) == 2
    same = terms(found, aim, shapes, {n: a[:, : shapes[n][1]] for n, a in answers.items()}, None)[0]
    assert [(t.kind, t.weight) for t in same] == [("kl", 1.0), ("mse", 1.0), ("mse", 1.0)]
    with pytest.raises(UsageError, match="no tensor"):
        pairs(student, teacher, Aim("auto", 4.0, 1.0, ("nothing*",), 1.0))
    with pytest.raises(UsageError, match="the teacher computes no"):
        pairs(student, teacher, Aim("auto", 4.0, 1.0, ("n2_Relu.0=other",), 1.0))


def test_what_was_clipped_is_seen_and_what_was_not_is_not() -> None:
    rng = np.random.default_rng(0)
    net = Net()
    x = net.input("n", 30)
    free, clipped = rng.normal(size=(2, 30, 30)).astype(np.float32)
    y = net.op("MatMul", net.op("MatMul", x, net.const(free, np.float32)), net.const(clipped.clip(-1, 1), np.float32))
    graph = decode(net.model(y))
    found = kept(graph.constants(), zeros=True, bounds=True)
    assert list(found.constraints) == [graph.constants()[1].name]
    assert found.constraints[graph.constants()[1].name].high == 1
    assert found.zeros == 0 and found.bounded == 1


# -- students --


def test_a_new_head_has_new_classes() -> None:
    student = classifier(exact=True)
    new_head(student, 3, load_operators(), seed=1)
    session = ort.InferenceSession(to_bytes(student), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x0": np.zeros((2, WIDTH), np.float32)})[0].shape == (2, 3)
    net = Net()
    x = net.input("n", WIDTH)
    with pytest.raises(ModelError, match="no last layer"):
        new_head(decode(net.model(net.op("Relu", x))), 3, load_operators())


def test_the_command_trains_a_narrower_student(runtime, digits: Path, digits_data: tuple[Path, Path], tmp_path) -> None:
    output, report = tmp_path / "s.onnx", tmp_path / "s.json"
    arguments = ["distill", str(digits), "--teacher", str(digits), "--width", "0.25", "--data", str(digits_data[0])]
    arguments += [
        "--eval-data",
        str(digits_data[1]),
        "--calib-samples",
        "96",
        "--epochs",
        "4",
        "--batch",
        "32",
        "--lr",
        "0.003",
        "-o",
        str(output),
    ]
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--report", str(report), "--html", str(tmp_path / "s.html"), "--no-bench"])
    assert left.value.code == 0
    found = json.loads(report.read_text())
    assert found["after"]["parameters"] < 0.6 * found["before"]["parameters"]
    (training,) = found["training"]
    assert training["held_out"][-1][1] < training["held_out"][0][1]
    assert found["teacher"]["path"] == str(digits)
    assert found["accuracy"]["drop"] < 0.1
    assert 'id="training"' in (tmp_path / "s.html").read_text()


def test_the_command_transfers_to_other_labels(runtime, digits: Path, digits_data: tuple[Path, Path], tmp_path) -> None:
    with np.load(digits_data[0]) as stored:
        images, labels = stored["images"], stored["labels"]
    np.savez(tmp_path / "new.npz", images=images, labels=(labels >= 5).astype(np.int64))
    arguments = ["distill", str(digits), "--classes", "2", "--data", str(tmp_path / "new.npz"), "--epochs", "6"]
    arguments += [
        "--train",
        "fc*",
        "-o",
        str(tmp_path / "o.onnx"),
        "--report",
        str(tmp_path / "o.json"),
    ]
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--no-bench", "-q"])
    assert left.value.code == 0
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["teacher"] is None
    assert found["accuracy"]["before"] < 0.7
    assert found["accuracy"]["after"] > 0.8


@pytest.mark.parametrize("labelled", [True, False])
def test_the_command_says_that_a_student_got_worse(
    runtime, digits: Path, digits_data: tuple[Path, Path], tmp_path, capsys, labelled: bool
) -> None:
    student = load(digits)
    head = next(node for node in student.nodes if node.op == "Gemm").inputs[1]
    head.values = np.asarray(head.values * 1.1)  # another file, nearly as good
    save(student, tmp_path / "student.onnx")
    data = tmp_path / "data.npz"
    with np.load(digits_data[0]) as stored:
        np.savez(data, **{key: stored[key][:500] for key in ("images", *["labels"] * labelled)})
    arguments = ["distill", str(tmp_path / "student.onnx"), "--teacher", str(digits), "--data", str(data)]
    arguments += ["--steps", "8", "--lr", "2", "--keep-best", "false", "--no-bench", "-o", str(tmp_path / "o.onnx")]
    arguments += ["--report", str(tmp_path / "o.json")]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    assert "worse than before" in capsys.readouterr().out
    found = json.loads((tmp_path / "o.json").read_text())["teacher"]
    (was,), (is_,) = (found[key]["outputs"].values() for key in ("fidelity_before", "fidelity"))
    assert was["sqnr_db"] > 15 > is_["sqnr_db"]


def test_the_command_says_why_training_brought_nothing(
    runtime, digits: Path, digits_data: tuple[Path, Path], tmp_path, capsys
) -> None:
    arguments = ["distill", str(digits), "--teacher", str(digits), "--data", str(digits_data[0]), "--steps", "4"]
    arguments += ["--lr", "0.5", "--no-bench", "-o", str(tmp_path / "o.onnx"), "--report", str(tmp_path / "o.json")]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 13
    assert not (tmp_path / "o.onnx").exists()
    said = " ".join(capsys.readouterr().out.split())
    assert "training brought nothing" in said
    assert "the loss was lowest before the first step" in said
    assert len(json.loads((tmp_path / "o.json").read_text())["training"]) == 1, "its loss curve stands in the report"


def test_teacher_and_student_must_take_and_give_the_same(
    digits: Path, digits_data: tuple[Path, Path], tmp_path, capsys
) -> None:
    other = tmp_path / "other.onnx"
    save(classifier(), other)
    with pytest.raises(SystemExit) as left:
        main(
            [
                "distill",
                str(digits),
                "--teacher",
                str(other),
                "--data",
                str(digits_data[0]),
                "-o",
                str(tmp_path / "o.onnx"),
            ]
        )
    assert left.value.code == 3
    assert "other inputs" in capsys.readouterr().err
    assert load(digits).inputs
