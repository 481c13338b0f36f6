"""Do the imports go in one direction only? The layers below are the house's plan; a forbidden arrow fails here.

Everything is read from the source with ast, lazy imports inside functions too, so nothing has to be imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# from the bottom; packages in one row do not know each other, except in the first row
LAYERS: list[set[str]] = [
    {"errors", "results", "drawn", "ordered", "seal", "files", "lock", "settings", "sources", "toml", "_version"},
    {"graph", "ops"},
    {"layers"},
    {"data", "runtime", "targets"},
    {"manager"},
    {"passes", "verify", "report", "distill"},
    {"job"},
    {"config"},
    {"recipes", "places"},
    {"work"},
    {"explanation"},
    {"driver", "inspection", "planning", "students", "testing", "benchmark", "comparison", "diagnosis"},
    {"build"},
    {"search"},
    {"api"},
    {"cli"},
    {"__main__"},
]
LEVEL = {package: level for level, row in enumerate(LAYERS) for package in row}
ALLOWED_BESIDE = {
    ("passes", "distill"),  # a pass may use the distillation client
    ("ops", "graph"),  # records stand on the graph and on what rules see of it; engines read records:
    ("graph", "ops"),  # module by module it goes one way, see below
}

# a third-party package -> where alone it may be imported (prefixes of module names)
HOMES = {
    "onnx_graphsurgeon": ("onnxcomp.graph.ir",),
    "onnxruntime": ("onnxcomp.runtime", "onnxcomp.distill.worker"),
    "PIL": ("onnxcomp.data",),
    "click": ("onnxcomp.cli",),
    "optuna": ("onnxcomp.search.ledger", "onnxcomp.search.strategies"),
    "sqlalchemy": ("onnxcomp.search.ledger",),
    "distributed": ("onnxcomp.search.cluster",),
    "cloudpickle": ("onnxcomp.search.cluster",),
    "rich": ("onnxcomp.cli", "onnxcomp.report"),
}
# functions that read or write whole model files -> the modules that may call them
READERS = ("onnxcomp.graph.io", "onnxcomp.runtime.profile")  # the second looks at the graph that ONNX Runtime wrote
WRITERS = ("onnxcomp.graph.io",)
MODEL_FILES = {
    "onnx.load": READERS,
    "onnx.load_model": READERS,
    "onnx.save": WRITERS,
    "onnx.save_model": WRITERS,
    "onnx_graphsurgeon.import_onnx": (),
    "onnx_graphsurgeon.export_onnx": (),
}
MOST_LINES = 600


@dataclass(frozen=True)
class Module:
    """One source file of the package under its importable name."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The room it belongs to: `graph` for onnxcomp.graph.io, empty for onnxcomp itself."""
        return room_of(self.name)


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def read(path: Path, name: str) -> Module:
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))


def name_of(path: Path, base: Path, prefix: str) -> str:
    parts = [prefix, *path.relative_to(base).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> list[Module]:
    """All of onnxcomp; the passes are read through their real folder, not the symlink."""
    package, passes = ROOT / "onnxcomp", ROOT / "passes"
    found = [
        read(path, name_of(path, package, "onnxcomp"))
        for path in sorted(package.rglob("*.py"))
        if "passes" not in path.relative_to(package).parts[:1]
    ]
    return found + [read(p, name_of(p, passes, "onnxcomp.passes")) for p in sorted(passes.rglob("*.py"))]


MODULES = modules()


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """Full names of what a module imports, with the line; `from a import b` gives a.b, which may be a module."""
    inside = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = inside.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def forbidden(module: Module) -> list[str]:
    """The arrows of one module that the layers do not allow."""
    found = []
    for target, line in imports(module):
        if target != "onnxcomp" and not target.startswith("onnxcomp."):
            continue
        here, there = module.package, room_of(target)
        if here not in LEVEL and here != "":
            found.append(f"{module.name} is in no room of the house")
        elif there not in LEVEL:
            if here != "":  # names of the public API are for users; the inside imports from the homes
                found.append(f"{module.name}:{line} imports {target}, which is no room of the house")
        elif here in (there, "") or (here, there) in ALLOWED_BESIDE:
            continue
        elif LEVEL[there] > LEVEL[here] or (LEVEL[there] == LEVEL[here] != 0):
            found.append(f"{module.name}:{line} imports {target}")
        elif there == "passes":
            found.append(f"{module.name}:{line} imports {target}: passes are reached by name, through the registry")
    return found


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def calls(module: Module) -> Iterator[tuple[str, int]]:
    """Full names of the functions that a module calls, import aliases resolved."""
    aliases: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and (name := dotted(node.func)):
            head, _, tail = name.partition(".")
            full = aliases.get(head, head)
            yield (f"{full}.{tail}" if tail else full), node.lineno


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def test_every_room_has_its_place_in_the_layers() -> None:
    unknown = sorted({m.name for m in MODULES if m.package and m.package not in LEVEL})
    assert not unknown, f"add to LAYERS, after a look at DESIGN: {unknown}"


def test_imports_go_down_only() -> None:
    arrows = [arrow for module in MODULES for arrow in forbidden(module)]
    assert not arrows, "\n".join(arrows)


def at_once(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported: not those of functions, nor for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or checked:
            continue
        if isinstance(node, ast.stmt):
            yield node
        yield from at_once(node)


def test_modules_of_the_graph_and_of_operators_stand_in_one_order() -> None:
    """Two rooms that know each other: records use the graph, engines use records, and no module needs itself."""
    here = {m.name: m for m in MODULES if m.package in ("graph", "ops")}
    needs: dict[str, set[str]] = {}
    for name, module in here.items():
        body = [node for node in at_once(module.tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        found = {target for target, _ in imports(Module(name, module.path, ast.Module(list(body), [])))}
        needs[name] = {t if t in here else t.rpartition(".")[0] for t in found} & set(here) - {name}
    while free := {name for name, below in needs.items() if not below & needs.keys()}:
        needs = {name: below for name, below in needs.items() if name not in free}
    assert not needs, f"modules that import each other: {sorted(needs)}"


@pytest.mark.parametrize("package", HOMES)
def test_third_party_packages_stay_at_home(package: str) -> None:
    strays = [
        f"{module.name}:{line} imports {target}"
        for module in MODULES
        for target, line in imports(module)
        if target.split(".")[0] == package and not under(module.name, HOMES[package])
    ]
    assert not strays, "\n".join(strays)


def test_the_training_worker_needs_nothing_of_onnxcomp() -> None:
    """It runs in another environment, where neither onnxcomp nor most packages are."""
    allowed = {"numpy", "onnx", "onnxruntime", "google", "worker", *sys.stdlib_module_names}
    strays = [
        f"{module.name}:{line} imports {target}"
        for module in MODULES
        if under(module.name, ("onnxcomp.distill.worker",))
        for target, line in imports(module)
        if target.split(".")[0] not in allowed and not under(target, ("onnxcomp.distill.worker",))
    ]
    absolute = [
        f"{module.name}: {node.module}"
        for module in MODULES
        if under(module.name, ("onnxcomp.distill.worker",))
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("onnxcomp")
    ]
    assert not strays + absolute, "\n".join(strays + absolute)


def test_model_files_are_read_and_written_in_one_place() -> None:
    strays = [
        f"{module.name}:{line} calls {name}"
        for module in MODULES
        for name, line in calls(module)
        if name in MODEL_FILES and module.name not in MODEL_FILES[name]
    ]
    assert not strays, "\n".join(strays)


OPENERS = {f"onnxcomp.runtime.{name}" for name in ("session.open_session", "session.open_graph", "taps.tapped")}


def opened(module: Module) -> list[str]:
    """Where a module reaches for a function that opens a session."""
    return [f"{module.name}:{line} imports {target}" for target, line in imports(module) if target in OPENERS]


def test_no_pass_opens_a_session_of_its_own() -> None:
    """It asks `context.sessions`, or what runs graphs for it: statistics, references, chains."""
    strays = [line for module in MODULES if under(module.name, ("onnxcomp.passes",)) for line in opened(module)]
    assert not strays, "\n".join(strays)
    stray = Module("onnxcomp.passes.x", Path("x.py"), ast.parse("from onnxcomp.runtime.taps import stream, tapped"))
    assert opened(stray) == ["onnxcomp.passes.x:1 imports onnxcomp.runtime.taps.tapped"]


def test_every_module_says_first_which_question_it_answers() -> None:
    files = [m.path for m in MODULES] + [p for d in ("tests", "benchmarks", "models") for p in (ROOT / d).rglob("*.py")]
    silent = []
    for path in files:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if not doc.splitlines() or doc.splitlines()[0].strip()[-1:] not in (".", "?", ";", ":"):
            silent.append(str(path.relative_to(ROOT)))
    assert not silent, f"no docstring, or its first line is no sentence: {silent}"


def test_files_stay_readable() -> None:
    lengths = {str(m.path.relative_to(ROOT)): len(m.path.read_text(encoding="utf-8").splitlines()) for m in MODULES}
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("onnxcomp.graph.x", "from onnxcomp.manager import base"),
        ("onnxcomp.data.x", "import onnxcomp.runtime.session"),
        ("onnxcomp.runtime.x", "def f():\n    from onnxcomp.targets.cpu import CPU"),
        ("onnxcomp.verify.x", "from ..driver import optimize"),
        ("onnxcomp.driver", "from onnxcomp.passes.cleanup import Cleanup"),
        ("onnxcomp.manager.x", "from onnxcomp import load"),
        ("onnxcomp.report.x", "from onnxcomp.cli.main import group"),
    ],
)
def test_a_forbidden_arrow_is_seen(name: str, source: str) -> None:
    assert forbidden(Module(name, Path(f"{name}.py"), ast.parse(source)))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("onnxcomp.passes.x", "from onnxcomp.passes.shared import helper\nfrom onnxcomp.distill import client"),
        ("onnxcomp.ops.x", "from ..graph.ir import Graph\nfrom onnxcomp.errors import ModelError"),
        ("onnxcomp.driver", "from onnxcomp import recipes\nfrom onnxcomp.manager.pipeline import Pipeline"),
        ("onnxcomp.files", "from onnxcomp.errors import OutputError"),
    ],
)
def test_an_allowed_arrow_passes(name: str, source: str) -> None:
    assert not forbidden(Module(name, Path(f"{name}.py"), ast.parse(source)))


def test_calls_are_found_behind_aliases() -> None:
    source = (
        "import onnx as o\nfrom onnx import load_model as lm\nimport onnx_graphsurgeon as gs\no.load('x')\nlm('x')\n"
    )
    module = Module("onnxcomp.x", Path("x.py"), ast.parse(source + "gs.import_onnx(m)"))
    assert {name for name, _ in calls(module)} == {"onnx.load", "onnx.load_model", "onnx_graphsurgeon.import_onnx"}
