"""--compile in the modes that draw and score: the same results but for rounding, under a name of their own."""

import json

import numpy as np
import pytest
import torch
from helpers import randomised, small_checkpoint
from torch import nn

from scorefield.checkpoints import Checkpoint
from scorefield.checkpoints.formats import run as run_format
from scorefield.configs import vp_swiss_roll
from scorefield.models import build_denoiser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of an MLP for points on the swiss roll, its weights random."""
    config = vp_swiss_roll.get_config()
    config.model.update(width=8, layers=1)
    torch.manual_seed(0)
    weights = randomised(build_denoiser(config, (2,)).network).state_dict()
    stored = small_checkpoint().config | config.to_dict() | {"config": "vp_swiss_roll", "class_names": [], "standard": None}
    folder = tmp_path_factory.mktemp("compiled") / "run"
    run_format.write(Checkpoint(stored, weights, step=3, ema_updates=3), folder)
    return folder


@pytest.mark.slow
@pytest.mark.one_machine
def test_samples_of_a_compiled_network_are_the_same_but_for_rounding(command, run):
    for flags in ([], ["--compile"]):
        code, _, err = command("--mode=sample", f"--workdir={run}", "--num_samples=8", "--steps=3", *flags)
        assert code == 0, err
    plain, compiled = (np.load(run / "samples" / f"auto_steps3{suffix}.npz")["x"] for suffix in ("", "_fp32_compiled"))
    np.testing.assert_allclose(compiled, plain, rtol=1e-4, atol=1e-5)
    assert json.loads((run / "samples/auto_steps3_fp32_compiled.json").read_text())["precision"] == "fp32_compiled"


def test_likelihoods_of_a_compiled_network_are_the_same_but_for_rounding(command, run, monkeypatch):
    compiled, bits, compiles = nn.Module.compile, [], []

    def compile_quickly(self):      # its program is run as it is, since making it machine code takes a minute
        compiles.append(type(self).__name__)
        compiled(self, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    for flags in ([], ["--compile"]):
        code, out, err = command("--mode=likelihood", f"--workdir={run}", "--num_images=6", "--method=exponential",
                                 "--divergence=hutchinson", "--steps=8", *flags)
        assert code == 0, err
        assert ("_compile" in out) == bool(flags)
        bits.append(float(out.split(" +- ")[0].split()[-1]))
    assert bits[0] == pytest.approx(bits[1], rel=1e-4) and compiles == ["MLP"]


def test_an_exact_divergence_of_a_compiled_network_is_refused(command, run):
    code, _, err = command("--mode=likelihood", f"--workdir={run}", "--num_images=2", "--divergence=exact", "--compile")
    assert code == 1 and "choose divergence=hutchinson" in err and "--compile" in err


def test_without_a_compiler_it_is_refused_before_anything_is_done(command, run, monkeypatch):
    monkeypatch.setattr("scorefield.numerics.devices.shutil.which", lambda name: None)
    code, _, err = command("--mode=sample", f"--workdir={run}", "--num_samples=2", "--steps=2", "--compile")
    assert code == 1 and "needs a C++ compiler" in err and "--compile" in err and "\n" not in err.strip()


@pytest.mark.one_machine
def test_bf16_that_was_asked_for_is_said_to_be_slow_in_one_line(command, run, monkeypatch):
    monkeypatch.setattr("scorefield.numerics.devices._cpu", lambda capability: False)
    for precision, lines in (("bf16", 1), ("auto", 0)):
        code, out, err = command("--mode=sample", f"--workdir={run}", "--num_samples=2", "--steps=2",
                                 f"--precision={precision}")
        assert code == 0 and out.count("has no instructions for bf16") == lines, err
