"""Do the tests notice when the choice between results is changed? Mutants of its code, drawn by a seed, each tested.

    python benchmarks/choice_mutants.py [MODULE]... [--share S] [--seed N]

A mutant is a module with one comparison, operator, constant or jump changed. A process of its own imports it in place
of the module and runs the tests of the choice; one that passes them all survives, and wants a test. Nothing in the
checkout is written. Needs os.fork.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from common import ROOT, table

TESTS = {
    "onnxcomp.work.choice": ("test_choice.py",),
    "onnxcomp.work.strategies": ("test_strategies.py", "test_choice.py"),
    "onnxcomp.work.escalation": ("test_strategies.py", "test_escalation.py"),
}
LIMIT_S = 300  # a mutant that takes longer never ends
OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
OPPOSITE = {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt}


@dataclass(frozen=True)
class Site:
    """A place that can be changed: the node's number in `ast.walk`, what is done there, and the line."""

    number: int
    how: str
    line: int
    part: int = 0


def sites(tree: ast.AST) -> Iterator[Site]:
    """All places of a module."""
    for number, node in enumerate(ast.walk(tree)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Compare):
            for part, op in enumerate(node.ops):
                if type(op) in OTHER:
                    yield Site(number, "other comparison", line, part)
                if type(op) in OPPOSITE:
                    yield Site(number, "opposite comparison", line, part)
        elif isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in OTHER:
            yield Site(number, "other operator", line)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield Site(number, "no not", line)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            yield Site(number, "other constant", line)
        elif isinstance(node, ast.If | ast.IfExp):
            yield Site(number, "always", line)
        elif isinstance(node, ast.Break | ast.Continue):
            yield Site(number, "no jump", line)


def mutant(tree: ast.Module, site: Site) -> ast.Module:
    """The module with one place changed."""
    changed = copy.deepcopy(tree)
    node = list(ast.walk(changed))[site.number]
    match node, site.how:
        case ast.Compare(), "other comparison":
            node.ops[site.part] = OTHER[type(node.ops[site.part])]()  # type: ignore[call-overload]
        case ast.Compare(), _:
            node.ops[site.part] = OPPOSITE[type(node.ops[site.part])]()  # type: ignore[index]
        case ((ast.BoolOp() | ast.BinOp()), _):
            node.op = OTHER[type(node.op)]()  # type: ignore[assignment]
        case ast.UnaryOp(), _:
            node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
        case ast.Constant(value=bool(value)), _:
            node.value = not value
        case ast.Constant(value=int(value)), _:
            node.value = value + 1
        case ast.Constant(value=float(value)), _:
            node.value = value * 1.3 if value else 1.0
        case ((ast.If() | ast.IfExp()), _):
            node.test = ast.Constant(True)
        case _:
            _replace(changed, node, ast.Pass())
    return ast.fix_missing_locations(changed)


def _replace(tree: ast.AST, node: ast.AST, other: ast.AST) -> None:
    for parent in ast.walk(tree):
        for _, value in ast.iter_fields(parent):
            if isinstance(value, list) and node in value:
                value[value.index(node)] = other


@dataclass
class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives a changed module where that name is imported."""

    name: str
    path: Path
    tree: ast.Module

    def find_spec(
        self, fullname: str, path: object, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def passes(instead: Instead) -> bool:
    """Whether the tests take the module for right."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    import pytest

    signal.alarm(LIMIT_S)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.meta_path.insert(0, instead)
    tests = [str(ROOT / "tests" / name) for name in TESTS[instead.name]]
    os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests])))


def survivors(name: str, share: float, seed: int) -> list[tuple[str, Site, str]]:
    """Mutants of a module that no test notices, each with the line that it changes."""
    path = ROOT / (name.replace(".", "/") + ".py")
    source = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    if not passes(Instead(name, path, tree)):
        raise SystemExit(f"the tests of {name} fail as it is")
    every = list(sites(tree))
    drawn = random.Random(seed).sample(every, round(share * len(every)))
    found = []
    for site in sorted(drawn, key=lambda site: site.line):
        if passes(Instead(name, path, mutant(tree, site))):
            found.append((name, site, lines[site.line - 1].strip()))
            print(f"survives: {name}:{site.line} {site.how}: {found[-1][2]}", file=sys.stderr, flush=True)
    print(f"{name}: {len(drawn)} of {len(every)} mutants, {len(found)} survive", file=sys.stderr, flush=True)
    return found


def rows(found: Sequence[tuple[str, Site, str]]) -> list[list[str]]:
    return [[name.rpartition(".")[2], str(site.line), site.how, line] for name, site, line in found]


def main() -> None:
    """Try the mutants of some modules, and print those that survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(TESTS), choices=[*TESTS, []], metavar="MODULE")
    parser.add_argument("--share", type=float, default=1.0, help="of all mutants")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.chdir(ROOT)
    import onnx  # noqa: F401 (once for all, and nothing of the package itself)
    import onnxruntime  # noqa: F401
    import pytest  # noqa: F401

    found = [one for name in asked.modules for one in survivors(name, asked.share, asked.seed)]
    print(table(("module", "line", "change", "code"), rows(found)))


if __name__ == "__main__":
    main()
