"""A table and series with a known truth are learned by the command line alone; benchmarks/arrays.py has more of it."""

import pytest

from benchmarks.arrays import series, table

QUICK = ("--config.training.warmup=20", "--config.training.sample_every=0", "--config.training.eval_every=0",
         "--config.training.ema_decay=0.98")


@pytest.fixture
def run(command):
    def call(*words):
        code, _, err = command(*words)
        assert code == 0, err

    return call


@pytest.mark.slow
def test_mean_covariance_and_density_of_a_5_d_gaussian_are_recovered(run, tmp_path):
    """Within 0.05 standard deviations, 0.1 of correlation and 0.05 nats, and 4 standard errors."""
    figures = table(tmp_path, run, 1000, 3000, "--config.training.steps=1500", "--config.model.width=64",
                    "--config.model.layers=3", "--config.training.batch_size=256", *QUICK)
    assert figures["mean"].within(0.05) and figures["covariance"].within(0.1) and figures["log p"].within(0.05), figures
    assert figures["log p"].error < 0.03


@pytest.mark.slow
def test_samples_of_sine_waves_have_their_frequency_and_power(run, tmp_path):
    """Half of the samples have 0.9 of their power where the data have all of it; its mean is right within a quarter."""
    figures = series(tmp_path, run, 200, 1000, "--config.training.steps=250", "--config.model.width=8",
                     "--config.model.multipliers=(1,2)", *QUICK)
    assert figures["power"].within(0.25) and figures["share"].within(0.1), figures
    assert figures["share"].truth > 0.98 and figures["power"].error < 0.05
