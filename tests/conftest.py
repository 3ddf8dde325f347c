"""Fixtures that several test files share, and the machine that tests run as.

`SCOREFIELD_MACHINE=avx2 python -m pytest` runs them as on a machine without bf16 arithmetic; `bf16` and `amx` are machines
with some (machines/sitecustomize.py). A test whose outcome may depend on the machine has the mark `machine`.
"""

import os
import runpy
import shutil
import sys
from collections import Counter
from pathlib import Path

MACHINES = Path(__file__).parent / "machines"
WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:      # has one core, so one thread, and so have the processes that it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if "SCOREFIELD_MACHINE" in os.environ:      # before torch is imported, and again in every process that a test starts
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(MACHINES), os.environ.get("PYTHONPATH")]))
    runpy.run_path(str(MACHINES / "sitecustomize.py"))

import numpy as np
import pytest
import torch
from helpers import made_once, train_briefly

from scorefield.cli import main
from scorefield.models import GaussianMixture
from scorefield.sde_lib import VESDE, VPSDE, CosineVPSDE, FlowSDE, SubVPSDE

ROOT = Path(__file__).parents[1]
asked_for_capabilities = []
capabilities = getattr(torch.cpu, "get_capabilities", dict)      # older versions of PyTorch have none
torch.cpu.get_capabilities = lambda: asked_for_capabilities.append(True) or capabilities()


MANY, KEPT = 12, 4      # of a test with more than MANY cases, or the mark `costly`, `make test` runs one in KEPT
EACH_IS_ANOTHER = ("test_layout.py", "test_docs.py", "test_options.py")      # whose cases are files and options
ANOTHER = os.environ.get("SCOREFIELD_MACHINE", "avx2") != "avx2"
READS_AND_WRITES = [ROOT / "tests" / name for name in ("cli", "evaluation", "faults", "checkpoints", "test_convert.py")]


def pytest_ignore_collect(collection_path):
    """One kind of machine is enough for what a command reads and writes."""
    return True if ANOTHER and collection_path in READS_AND_WRITES else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A run depends on the machine that trained it, and so do the tests of one. Of many cases some are slow tests."""
    cases = Counter(item.nodeid.partition("[")[0] for item in items)
    seen = Counter()
    for item in items:
        machine = "digits_run" in item.fixturenames or any(
            mark.name in ("machine", "one_machine") for mark in item.iter_markers())
        if machine:
            item.add_marker(pytest.mark.machine)
        if ANOTHER and item.get_closest_marker("one_machine"):
            item.add_marker(pytest.mark.skip(reason="one kind of machine is enough for what a command reads and writes"))
        test = item.nodeid.partition("[")[0]
        many = cases[test] > MANY and item.path.name not in EACH_IS_ANOTHER
        if (many or item.get_closest_marker("costly")) and seen[test] % KEPT:      # the first one is kept
            item.add_marker(pytest.mark.slow)
        seen[test] += 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test that runs what goes by the processor's capabilities fails, unless it has the mark `machine`."""
    asked_for_capabilities.clear()
    result = yield
    if asked_for_capabilities and not item.get_closest_marker("machine"):
        pytest.fail("what this test runs depends on the processor; mark it with @pytest.mark.machine, and `make test` runs "
                    "it as every kind of machine", pytrace=False)
    return result


SDES = {"vp": VPSDE(), "cosine": CosineVPSDE(), "subvp": SubVPSDE(), "ve": VESDE(), "flow": FlowSDE()}


@pytest.fixture(params=SDES)
def any_sde(request):
    return SDES[request.param]


@pytest.fixture
def oracle():
    """Ground truth: a 2-D mixture, exact scores, and end points of the reference implementations (oracles/README.md)."""
    with np.load(Path(__file__).parent / "oracles" / "gmm2_vp_linear.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


@pytest.fixture
def mixture(any_sde):
    """A 2-D mixture of three Gaussians under each SDE."""
    return GaussianMixture(any_sde, torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]),
                           torch.tensor([0.04, 0.1, 0.02]), torch.tensor([1.0, 2.0, 1.5]))


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, standard output, standard error)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, words)])
        try:
            main.run()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def trained_digits(tmp_path_factory):
    """A run of four steps on the digits, made by the command line."""
    folder = made_once(tmp_path_factory, "digits", lambda folder: train_briefly("vp_digits", folder / "vp_digits"))
    return folder / "vp_digits"


@pytest.fixture(scope="module")
def digits_run(trained_digits, tmp_path_factory):
    """A copy of that run for the tests of a module, which may go on with it."""
    return shutil.copytree(trained_digits, tmp_path_factory.mktemp("runs") / "vp_digits")
