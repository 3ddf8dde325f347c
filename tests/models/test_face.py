"""The package: what importing it adds to processes, and that the examples in its docstrings run as shown."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scorefield import models
from scorefield.models.bridge import Bridge
from scorefield.models.gaussian_bridge import GaussianBridge
from scorefield.models.networks.outputs import doubled

FACE = [models.Denoiser, models.Dequantizer, models.DiT, models.GaussianMixture, models.MLP, models.UNet,
        models.ScoreModel.given, models.wrap, doubled, models.FullMixture, models.measured, models.Autoencoder,
        models.Discriminator, Bridge, GaussianBridge]
HEAVY = ("ml_collections", "absl", "scipy", "safetensors", "matplotlib", "sklearn", "tensorboard", "torchsde", "torchdiffeq",
         "PIL", "tqdm", "scorefield.training", "scorefield.samplers", "scorefield.likelihood", "scorefield.cli",
         "scorefield.checkpoints", "scorefield.data", "scorefield.evaluation", "scorefield.configs")


@pytest.mark.parametrize("shown", FACE, ids=lambda shown: shown.__qualname__)
def test_the_example_in_the_docstring_runs_as_shown(shown):
    examples = doctest.DocTestFinder(recurse=False).find(shown, globs={"torch": torch})
    assert sum(len(test.examples) for test in examples) >= 2, "no example"
    runner = doctest.DocTestRunner(verbose=False)
    report = []
    for test in examples:
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_every_example_of_a_module_is_one_of_these():
    marked = [path for path in Path(models.__file__).parent.rglob("*.py") if ">>> " in path.read_text()]
    names = {shown.__module__ for shown in FACE}
    assert {".".join(("scorefield", *path.relative_to(Path(models.__file__).parents[1]).with_suffix("").parts))
            for path in marked} == names


def test_importing_the_models_loads_nothing_heavy_beyond_what_processes_load():
    script = ("import scorefield.sde_lib, sys; before = set(sys.modules); import scorefield.models; "
              f"print([m for m in {HEAVY} if m in sys.modules and m not in before])")
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                            cwd=Path(models.__file__).parents[1])
    assert output.stdout.strip() == "[]"
