"""
A measure of the tests: puts small faults into copies of the code, and counts those that survive.

    mutants.py SAMPLE SEED PATH ...

A fault is a turned comparison or condition, an omitted call, a changed number, or C{and} for C{or}.
For each fault, the tests that run its statement are run, and then the random lives, until one
fails. Prints each fault that no test notices. The same seed chooses the same faults in the same
code.

mutmut and cosmic-ray do not fit. Neither omits a call. mutmut skips decorated functions and the
code outside of functions, and cosmic-ray changes the checkout.
"""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, NamedTuple

from lines import Runs

_PAIRS: list[tuple[type[Any], type[Any]]] = [
    *[(ast.Lt, ast.GtE), (ast.LtE, ast.Gt), (ast.Eq, ast.NotEq)],
    *[(ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.And, ast.Or)],
]
_OPPOSITE = dict([*_PAIRS, *((other, one) for one, other in _PAIRS)])

_PYTEST = (
    *(sys.executable, "-m", "pytest"),
    *("-q", "--disable-warnings", "-p", "no:cacheprovider"),
)
_LIVES = "tests/lives/test_lives.py"


class Mutant(NamedTuple):
    """
    A fault: the lines of its statement, some bytes of the file, and the text that replaces them.
    """

    path: Path
    lines: range
    begin: int
    end: int
    text: str


def change(node: ast.AST, parent: ast.AST) -> ast.AST | None:
    """A faulty copy of a node, if a small fault fits there."""
    match node:
        case ast.Compare(left, [operator], right):
            return ast.Compare(left, [_OPPOSITE[type(operator)]()], right)
        case ast.BoolOp(operator, values):
            return ast.BoolOp(_OPPOSITE[type(operator)](), values)
        case ast.Expr(ast.Call() | ast.Await(ast.Call())):
            return ast.Pass()
        case ast.Constant(int() | float() as number) if not isinstance(number, bool):
            return ast.Constant(number * 2 or 1)
        case ast.UnaryOp(ast.Not(), operand):
            return operand
        case ast.Name() | ast.Attribute() | ast.Call() if node is getattr(parent, "test", None):
            return ast.UnaryOp(ast.Not(), node)
    return None


def findMutants(path: Path) -> Iterator[Mutant]:
    """Each fault that a module may have."""
    source = path.read_bytes()
    begins = [0]
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))

    def walk(parent: ast.AST, lines: range) -> Iterator[Mutant]:
        for node in ast.iter_child_nodes(parent):
            place: Any = node
            if isinstance(node, ast.stmt):
                lines = range(place.lineno, place.end_lineno + 1)
            changed: Any = change(node, parent)
            if changed is not None:
                begin = begins[place.lineno - 1] + place.col_offset
                end = begins[place.end_lineno - 1] + place.end_col_offset
                yield Mutant(path, lines, begin, end, ast.unparse(changed))
            if not isinstance(node, ast.JoinedStr):  # Python 3.11 lacks its parts' positions
                yield from walk(node, lines)

    return walk(ast.parse(source), range(0))


def findTests(mutant: Mutant, runs: Runs) -> list[str]:
    """
    The tests that run a fault's statement, quick ones first, and the lives.

    A statement that runs at the import, such as a constant, meets all tests that run or name its
    module.
    """
    path, lines = str(mutant.path), set(mutant.lines)
    chosen = [test for test in runs if not lines.isdisjoint(runs[test][1].get(path, ()))]
    if not chosen:
        naming = [str(test) for test in findNaming([path])]
        chosen = [test for test in runs if path in runs[test][1] or test.split("::")[0] in naming]
    lives = [test for test in runs if test.startswith(_LIVES)]
    return sorted({*chosen} - {*lives}, key=lambda test: runs[test][0]) + lives


def passes(root: Path, tests: list[str], seconds: float) -> bool:
    """Whether tests pass in time; timeout(1) also kills the processes they started."""
    command = ["timeout", "--signal=KILL", str(seconds), *_PYTEST, "-x", *tests]
    return subprocess.run(command, cwd=root, capture_output=True).returncode == 0


def survives(root: Path, mutant: Mutant, runs: Runs) -> bool:
    """Put a fault into a copy of the tree for a while, and return whether no test notices it."""
    module = root / mutant.path
    whole = module.read_bytes()
    compiled = Path(cache_from_source(str(module)))
    tests = findTests(mutant, runs)
    module.write_bytes(whole[: mutant.begin] + mutant.text.encode() + whole[mutant.end :])
    compiled.unlink(missing_ok=True)  # a fault may keep the size and the time in seconds
    try:
        return passes(root, tests, 30 + 5 * sum(runs[test][0] for test in tests))
    finally:
        module.write_bytes(whole)
        compiled.unlink(missing_ok=True)


def describe(mutant: Mutant) -> str:
    """A fault's place, the original text, and its replacement."""
    source = mutant.path.read_bytes()
    before = " ".join(source[mutant.begin : mutant.end].decode().split())
    return f"{mutant.path}:{source[: mutant.begin].count(10) + 1}: {before} -> {mutant.text}"


def findNaming(paths: list[str]) -> list[Path]:
    """The test modules that name the modules at some paths."""
    names = [path.removesuffix(".py").replace("/", ".") for path in paths]
    tests = {path: path.read_text() for path in sorted(Path("tests").glob("test_*.py"))}
    return [path for path in tests if any(name in tests[path] for name in names)]


def record(root: Path, paths: list[str]) -> Runs:
    """Run the tests that name the modules at some paths, and the lives."""
    command = [*_PYTEST, "-p", "lines", *map(str, findNaming(paths)), _LIVES]
    subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": "tests"})
    runs: Runs = json.loads((root / "lines.json").read_text())
    return runs


def main(sample: int, seed: int, paths: list[str]) -> None:
    """Try faults in the modules at and below some paths, one on each core at a time."""
    places = {
        module: path
        for path in paths
        for module in (Path(path), *sorted(Path(path).rglob("*.py")))
        if module.is_file()
    }
    mutants = [mutant for module in places for mutant in findMutants(module)]
    random.Random(seed).shuffle(mutants)
    tried: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder, str(core)) for core in range(os.cpu_count() or 1)]
        for copy in copies:
            shutil.copytree(".", copy, ignore=shutil.ignore_patterns(".*", "build", "dist"))
        runs = record(copies[0], paths)

        def attempt(mutant: Mutant) -> None:
            copy = copies.pop()
            if survives(copy, mutant, runs):
                survived[places[mutant.path]] += 1
                print(describe(mutant), flush=True)
            tried[places[mutant.path]] += 1
            copies.append(copy)

        with ThreadPoolExecutor(len(copies)) as pool:
            list(pool.map(attempt, mutants[:sample]))
    for path in paths:
        print(f"{survived[path]:4} of {tried[path]:4} survive in {path}")
    print(f"{survived.total():4} of {tried.total():4} survive")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
