"""The package that `pip install .` makes: one importable name, whole, whatever lies in the user's own folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, f'build_{sys.argv[1]}')(sys.argv[2])"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source distribution, built from a copy of the repository's files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, source / "scorefield", ignore=ignored)
    for kind in ("wheel", "sdist"):
        subprocess.run([sys.executable, "-c", BUILD, kind, str(out)], cwd=source / "scorefield", check=True,
                       capture_output=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_holds_one_package_with_every_module(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
        tops = wheel.read(next(name for name in names if name.endswith("top_level.txt"))).decode().split()
    assert tops == ["scorefield"] and "scorefield/py.typed" in names
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    folders = {name.split("/")[1] for name in names if name.startswith("scorefield/") and name.count("/") > 1}
    for file in tracked:
        if file.partition("/")[0] in folders:
            assert f"scorefield/{file}" in names
    assert "Project-URL" in metadata
    assert {f"scorefield/evaluation/page/{name}" for name in ("page.html", "page.css", "page.js", "svg.css")} <= names
    assert "scorefield/evaluation/metrics/weights/digits.safetensors" in names


def test_the_source_distribution_holds_docs_and_tests(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "main.py", "Makefile", "docs/samplers.md", "tests/test_package.py", "tests/conftest.py",
            "benchmarks/samplers.py", "numerics/noise.py"} <= names


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The Python of a fresh environment with the wheel in it; what Scorefield needs is that of this environment."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    packages = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                              capture_output=True, text=True).stdout.strip()
    here = next(path for path in sys.path if path.endswith("site-packages"))
    Path(packages, "needed.pth").write_text(here + "\n")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", packages,
                    built[0]], check=True, capture_output=True)
    return python


@pytest.mark.costly
def test_the_installed_command_works_beside_a_users_own_modules_of_our_names(installed, tmp_path):
    hostile = "raise RuntimeError('a module of the user was imported')\n"
    for name in ("models", "configs", "samplers", "numerics"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(hostile)
    for name in ("data", "training", "main", "likelihood", "evaluation"):
        (tmp_path / f"{name}.py").write_text(hostile)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def scorefield(*words):
        done = subprocess.run([installed, "-m", "scorefield", *words], cwd=tmp_path, capture_output=True, text=True,
                              env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = ["--config.training.steps=50", "--config.data.size=500", "--config.model.width=16"]
    assert "wrote" in scorefield("--config", "configs/vp_swiss_roll.py", "--mode", "train", *small)
    assert "8 evaluations" in scorefield("--workdir", "runs/vp_swiss_roll", "--mode", "sample", "--steps", "8")
    assert "bits/dim" in scorefield("--workdir", "runs/vp_swiss_roll", "--mode", "likelihood", "--method", "exponential",
                                    "--steps", "8", "--num_images", "10")
    assert scorefield("--version").startswith("scorefield ")
    where = "import scorefield.samplers; print(scorefield.samplers.__file__)"
    out = subprocess.run([installed, "-c", where], cwd=tmp_path, capture_output=True, text=True, env=environment).stdout
    assert out.strip().endswith("site-packages/scorefield/samplers/__init__.py")
