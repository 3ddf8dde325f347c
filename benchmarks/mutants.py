"""Whether the tests can fail: `python -m benchmarks.mutants` breaks the code in random places and runs the tests.

A mutant is one change of the source: another operator, constant or comparison, and / or, a sign or a `not` less. Texts of
errors, annotations, f-strings and __repr__ stay. A seeded sample of mutants runs one after the other in a scratch copy of
the repository: first the tests of the mutated file's folder, then, if all of these pass, the rest. Number 0 is the
unchanged code, which must pass. Each result is a line of benchmarks/results/mutants.jsonl; a run that was stopped goes on.
With --own a survivor of its folder's tests is left at that, which saves most of the time; a run without it goes on there.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, count
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ["torch", "scipy.interpolate", "scipy.integrate", "torchdiffeq", "torchsde", "hypothesis", "matplotlib.pyplot",
             "sklearn.datasets", "tensorboard", "absl.flags", "ml_collections", "diffusers"]
FOLDERS = ["sde_lib", "samplers", "likelihood", "models"]
OTHERS: dict[type[ast.AST], list[type[ast.AST]]] = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.FloorDiv: [ast.Mult],
    ast.Mod: [ast.Mult], ast.Pow: [ast.Mult], ast.And: [ast.Or], ast.Or: [ast.And],
    ast.Lt: [ast.LtE, ast.Gt], ast.LtE: [ast.Lt, ast.GtE], ast.Gt: [ast.GtE, ast.Lt], ast.GtE: [ast.Gt, ast.LtE],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn], ast.NotIn: [ast.In],
}

STAMPS = count(1)


@dataclass(frozen=True)
class Mutant:
    """One change of one file: bytes start to stop of it become `text`."""

    path: Path
    line: int
    column: int
    start: int
    stop: int
    text: str
    change: str

    def source(self) -> bytes:
        content = (ROOT / self.path).read_bytes()
        return content[:self.start] + self.text.encode() + content[self.stop:]


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Those of a tree that decide what the code does."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST) and not isinstance(node, ast.Raise | ast.JoinedStr) \
                    and getattr(node, "name", None) != "__repr__":
                yield node
                yield from nodes(node)


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        for other in OTHERS.get(type(node.op), []):
            yield replaced(node, op=other())
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in OTHERS[type(op)]:
                yield replaced(node, ops=[*node.ops[:i], other(), *node.ops[i + 1:]])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(value := node.value, int | float):
        yield replaced(node, value=not value if isinstance(value, bool) else
                       value + 1 if isinstance(value, int) else 2 * value or 1.0)


def replaced(node: ast.AST, **fields: object) -> ast.AST:
    return type(node)(**vars(node) | fields)


def mutants_of(path: Path) -> list[list[Mutant]]:
    """The mutants at each place of a file, in its order."""
    content = (ROOT / path).read_bytes()
    starts = list(accumulate((len(line) for line in content.splitlines(keepends=True)), initial=0))
    places = []
    for node in nodes(ast.parse(content)):
        found = []
        for other in variants(node):
            new = ast.unparse(other)
            found.append(Mutant(path, node.lineno, node.col_offset, starts[node.lineno - 1] + node.col_offset,
                                starts[node.end_lineno - 1] + node.end_col_offset,
                                new if isinstance(node, ast.stmt) else f"({new})", f"{ast.unparse(node)} -> {new}"))
        if found:
            places.append(found)
    return places


def sample(folders: list[str], number: int, seed: int) -> list[Mutant]:
    """So many mutants at as many places: those whose lines hash lowest with the seed.

    So an edit of the source, or a move of a file, changes little of the sample but what lies on the edited lines.
    """
    seen: Counter[str] = Counter()
    drawn = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            lines = path.read_bytes().splitlines()
            for place in mutants_of(path.relative_to(ROOT)):
                line = lines[place[0].line - 1]
                column = place[0].column - len(line) + len(line.lstrip())
                key = f"{seed} {path.name} {line.strip().decode()} {column} {place[0].stop - place[0].start}"
                digest = int(hashlib.sha256(f"{key} {seen[key]}".encode()).hexdigest(), 16)
                seen[key] += 1
                drawn.append((digest, place[digest % len(place)]))
    return [mutant for _, mutant in sorted(drawn, key=lambda pair: pair[0])[:number]]


def tests_of(path: Path, scratch: Path) -> list[str]:
    """The test files of the folder of a source file, those that name it most often first."""
    folder = next(folder for parent in path.parents if (folder := scratch / "tests" / parent).is_dir())
    files = sorted(folder.rglob("test_*.py"), key=lambda file: -file.read_text().count(path.stem))
    return [str(file.relative_to(scratch)) for file in files]


def scratch_copy(folder: Path) -> None:
    """Every file of the repository that git does not ignore."""
    listed = subprocess.check_output(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


class ShortFirst:
    """A plugin of pytest's: tests that are known to take over half a second come after the others."""

    def __init__(self, file: Path):
        self.file, self.seconds = file, json.loads(file.read_text()) if file.exists() else {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.seconds.get(item.nodeid, 0.0) > 0.5)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = max(report.duration, self.seconds.get(report.nodeid, 0.0))

    def pytest_sessionfinish(self) -> None:
        self.file.write_text(json.dumps(self.seconds))


def run_tests(scratch: Path, arguments: list[str], output: int) -> None:
    """Pytest in the scratch copy, told to a file; nothing of this checkout is left in this process, a fork."""
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]
    os.chdir(scratch)
    for stream in (1, 2):
        os.dup2(output, stream)
    options = ["-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", *arguments]
    sys.exit(pytest.main(options, plugins=[ShortFirst(scratch.with_suffix(".json"))]))


def first_failure(scratch: Path, arguments: list[str], limit: float) -> str | None:
    """The first test that fails, or what else went wrong; None where all pass."""
    with tempfile.TemporaryFile("w+") as output:
        process = multiprocessing.get_context("fork").Process(target=run_tests, args=(scratch, arguments, output.fileno()))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            return "the time limit"
        output.seek(0)
        failed = [line.split()[1] for line in output if line.startswith(("FAILED ", "ERROR "))]
    return None if process.exitcode == 0 else failed[0] if failed else f"an import (pytest's exit code {process.exitcode})"


def write(file: Path, content: bytes) -> None:
    """With a time of its own, so that Python takes no compiled file of what stood there before."""
    file.write_bytes(content)
    os.utime(file, (stamp := next(STAMPS), stamp))


def run(mutant: Mutant | None, scratch: Path, limit: float, own_alone: bool) -> str | None:
    """What kills a mutant in the scratch copy, which is as it was after; None where it survives."""
    if mutant is None:
        return first_failure(scratch, ["tests"], 10 * limit)
    write(scratch / mutant.path, mutant.source())
    own = tests_of(mutant.path, scratch)
    try:
        killer = first_failure(scratch, own, limit)
        if killer is None and not own_alone:
            killer = first_failure(scratch, ["tests", *(f"--ignore={file}" for file in own)], limit)
        return killer
    finally:
        write(scratch / mutant.path, (ROOT / mutant.path).read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", nargs="+", default=FOLDERS, help="where to mutate")
    parser.add_argument("--number", type=int, default=100, help="of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="run mutants of these numbers alone, again if need be")
    parser.add_argument("--own", action="store_true", help="run the tests of the mutated file's folder alone")
    parser.add_argument("--limit", type=float, default=600, help="seconds for the tests of a folder, and for the rest")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "mutants.jsonl")
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    for library in LIBRARIES:      # once, for all the processes that are forked from this one
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {(row["place"], row["change"]) for row in known if row["killed_by"] or args.own or not row["own"]}
    with tempfile.TemporaryDirectory() as folder, args.results.open("a") as results:
        scratch = Path(folder) / "scratch"
        scratch_copy(scratch)
        for number, mutant in enumerate([None, *sample(args.folders, args.number, args.seed)]):
            place, change = "unchanged code", ""
            if mutant:
                place, change = f"{mutant.path}:{mutant.line}:{mutant.column + 1}", mutant.change
            if number not in args.only if args.only else (place, change) in done:
                continue
            start = time.monotonic()
            killer = run(mutant, scratch, args.limit, args.own)
            row = {"number": number, "place": place, "change": change, "killed_by": killer, "own": args.own,
                   "seconds": round(time.monotonic() - start)}
            results.write(json.dumps(row) + "\n")
            results.flush()
            print(f"{number:3d}  {place}  {change[:100]}  {'killed by ' + killer if killer else 'SURVIVED'}", flush=True)
            if mutant is None and killer:
                sys.exit(f"the unchanged code does not pass: {killer}")


if __name__ == "__main__":
    main()
