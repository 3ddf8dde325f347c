"""Every fenced Python example in README.md and docs/ runs as shown, an indented one imports what there is, and every command
line is one that exists."""

import ast
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from scorefield.cli import main
from scorefield.configs.loading import apply, load_config
from scorefield.configs.sections import declared

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = r"(?:python main\.py|python -m scorefield|scorefield|(?:srun )?torchrun(?: --\S+[^\S\n]*)+main\.py)"
FOLDERS = {file.parent.name for file in ROOT.glob("*/__init__.py")} - {"scorefield"}
ELSEWHERE = {"extending"}      # its examples change the registries, so test_extending.py runs them


def examples(language):
    for page in PAGES:
        for i, (name, code) in enumerate(re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)):
            if name == language and page.stem not in ELSEWHERE:
                yield pytest.param(code, id=f"{page.stem}-{i}")


@pytest.mark.parametrize("code", list(examples("python")))
def test_a_python_example_runs_as_shown(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {})


def indented_examples():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for i, block in enumerate(re.findall(r"^\n((?:    .*\n|\n)+)", text, re.MULTILINE)):
            code = textwrap.dedent(block)
            if code.startswith(("from ", "import ")):
                yield pytest.param(code, id=f"{page.stem}-{i}")


@pytest.mark.parametrize("code", list(indented_examples()))
def test_an_indented_python_example_compiles_and_imports_what_there_is(code):
    """Not run: such examples need files from elsewhere, and may import packages that are not installed here."""
    compile(code, "example", "exec")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            package = (getattr(node, "module", None) or node.names[0].name).partition(".")[0]
            assert package not in FOLDERS, "the parts are imported below scorefield"
            if package == "scorefield":
                exec(ast.unparse(node), {})


def commands():
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(rf"^\s*(?:\$ )?{PROGRAM} (.*)$", text, re.MULTILINE)
        for line in lines + re.findall(rf"`{PROGRAM} ([^`]+)`", text):      # those in prose and in tables
            yield pytest.param(line.partition("#")[0], id=f"{page.stem}:{line[:55]}")


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_line_has_only_flags_and_files_that_exist(line):
    words, overrides = main.split_overrides(shlex.split(line))
    every = main.table()
    given, rest = every.parse([word for word in words if word not in ("--help", "--version")])      # Error for a wrong flag
    mode = given.get("mode")
    assert rest == [] and mode in (None, *main.MODES)
    assert all(name in every.common or mode in every.takers(name) for name in given)
    loaded = load_config(str(ROOT / given.get("config", "configs/default.py")))
    if "config" in given or mode == "train":
        apply(loaded, overrides)
    for field, _ in overrides:      # those beside a checkpoint may belong to a class that the checkpoint names
        declared(field)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
