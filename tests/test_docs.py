"""Every fenced Python example in README.md and docs/ runs as shown, an indented one imports what there is, and every command
line is one that exists."""

import ast
import re
import shlex
import textwrap
from pathlib import Path

import pytest

import main
from scorefield.configs.loading import load_config, override

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples(language):
    for page in PAGES:
        for i, (name, code) in enumerate(re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)):
            if name == language:
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
            if (ROOT / package).is_dir() or (ROOT / f"{package}.py").is_file():
                exec(ast.unparse(node), {})


def commands():
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(r"^\s*(?:\$ )?(python main\.py .*)$", text, re.MULTILINE)
        for line in lines + re.findall(r"`(python main\.py [^`]+)`", text):      # those in prose and in tables
            yield pytest.param(line.partition("#")[0], id=f"{page.stem}:{line[15:70]}")


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_line_has_only_flags_and_files_that_exist(line):
    words, overrides = main.split_overrides(shlex.split(line)[1:])
    given = dict(re.match(r"--(\w+)(?:=(.*))?$", word).groups() for word in words if word.startswith("--"))
    assert set(given) <= {*main.FLAGS, "help"}
    config = next((words[i + 1] for i, word in enumerate(words) if word == "--config"), "configs/default.py")
    loaded = load_config(str(ROOT / config))
    for field, text in overrides:
        override(loaded, field, text)
    mode = next((words[i + 1] for i, word in enumerate(words) if word == "--mode"), None)
    for name in set(given) & {flag for flags in main.MODE_FLAGS.values() for flag in flags}:
        assert name in main.MODE_FLAGS[mode]


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
