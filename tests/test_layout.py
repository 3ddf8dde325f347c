"""The house: which package may import which, what an import loads, and that the installed package holds every file."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each part may import besides itself: other parts, with what is below them. A longer name is a part of its own.
MAY = {
    "numerics": "",
    "data": "numerics",
    "sde_lib": "numerics",
    "models.layers": "numerics",
    "models.conditions": "numerics",
    "models.networks": "numerics models.layers models.conditions",
    "models": "numerics sde_lib",
    "samplers": "numerics sde_lib models",
    "likelihood": "numerics sde_lib models",
    "guidance": "numerics sde_lib models",
    "training.draws": "numerics",
    "training.weightings": "numerics sde_lib models",
    "training.times": "numerics sde_lib training.weightings",
    "training.objectives": "numerics sde_lib models training.draws training.times training.weightings",
    "training.optimizers": "numerics",
    "training.schedules": "numerics",
    "configs": "numerics data sde_lib models training.objectives training.optimizers training.schedules",
    "checkpoints": "numerics data sde_lib models configs",
    "training": "numerics data sde_lib models configs checkpoints",
    "evaluation": "numerics data sde_lib models samplers likelihood guidance configs checkpoints training",
    "cli": "numerics data sde_lib models samplers likelihood guidance configs checkpoints training evaluation",
}
FOLDERS = {name.partition(".")[0] for name in MAY}
FILES = sorted(file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def part_of(module):
    """The part that a dotted name below scorefield belongs to: the longest name of MAY that begins it."""
    return max((name for name in MAY if module == name or module.startswith(f"{name}.")), key=len, default=None)


def imported(file):
    """The dotted names below scorefield that a file imports, also within functions."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scorefield."):
            module = node.module.removeprefix("scorefield.")
            for alias in node.names:      # a name may be a module of its own
                below = ROOT / module.replace(".", "/") / f"{alias.name}.py"
                yield f"{module}.{alias.name}" if below.is_file() else module
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("scorefield.") for alias in node.names
                        if alias.name.startswith("scorefield."))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_run_downwards_only(file):
    own = part_of(".".join(file.with_suffix("").parts))
    for module in imported(file):
        other = part_of(module)
        allowed = (own, *MAY[own].split())
        assert any(other == name or other.startswith(f"{name}.") for name in allowed), f"{file} imports scorefield.{module}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_code_imports_its_own_packages_below_scorefield(file):
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        assert not [name for name in names if name.partition(".")[0] in FOLDERS]


def test_setup_cfg_lists_every_package():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = set(settings["options"]["packages"].split())
    folders = {".".join(file.parent.parts) for file in FILES if file.name == "__init__.py"}
    assert listed == {"scorefield", *(f"scorefield.{folder}" for folder in folders)}
    assert all((ROOT / file).parent.joinpath("__init__.py").is_file() for file in FILES)


HEAVY = ("absl", "diffusers", "matplotlib", "ml_collections", "PIL", "safetensors", "scipy", "sklearn", "tensorboard",
         "torchdiffeq", "torchsde", "tqdm", "yaml", "scorefield.cli", "scorefield.configs", "scorefield.checkpoints",
         "scorefield.training", "scorefield.evaluation", "scorefield.data")


@pytest.mark.parametrize("package", ["sde_lib", "models", "samplers", "likelihood", "guidance"])
def test_importing_a_package_loads_only_what_it_computes_with(package):
    code = f"import sys, numpy, torch; old = set(sys.modules); import scorefield.{package}; print(*set(sys.modules) - old)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert [name for name in HEAVY if name in loaded.split()] == []


def test_importing_scorefield_loads_no_torch():
    code = "import sys, scorefield; print(scorefield.__version__, *sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "torch" not in out.split() and out[0].isdigit()


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] not in ("cli",)], ids=str)
def test_library_texts_name_arguments_and_no_flags(file):
    texts = [node.value for node in ast.walk(ast.parse((ROOT / file).read_text()))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    docs = {ast.get_docstring(node, clean=False) for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)}
    found = [text for text in texts if text not in docs and re.search(r"--\w", text)]
    assert not found
