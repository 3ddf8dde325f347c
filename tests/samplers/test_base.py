"""What holds for every sampler."""

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch

from scorefield.models import GaussianMixture
from scorefield.models.denoiser import ScoreModel
from scorefield.samplers import EDM, SAMPLERS, Restart, make_sampler, prior_sample, sampler_options
from scorefield.samplers.base import CountedModel
from scorefield.sde_lib import VPSDE, FlowSDE, SubVPSDE

ROOT = Path(__file__).parents[2]
FAST = {name: {"steps": 12} for name in SAMPLERS} | {"ode": {"rtol": 1e-4, "atol": 1e-4}, "torchsde": {"steps": 8}}


class Counting(ScoreModel):
    """A model that counts the calls that reach it."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.sde, self.calls = model, model.sde, 0

    def predict(self, x, t, kind):
        self.calls += 1
        return self.inner.predict(x, t, kind)


@pytest.fixture
def mixture(mixture, request):
    """The mixture under every SDE, but for those that ancestral sampling refuses."""
    if isinstance(mixture.sde, SubVPSDE | FlowSDE) and "ancestral" in request.node.name:
        pytest.skip("ancestral sampling refuses sub-VP and flow, which are no chain's limits")
    return mixture


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    return make_sampler(request.param, **FAST[request.param])


def start(model, n=6, shape=(2,)):
    return prior_sample(model.sde, shape, range(n), dtype=torch.float64)


DENOISING = [name for name in SAMPLERS if name not in ("edm", "restart")]      # which end at the data


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("name", DENOISING)
def test_nfe_is_the_number_of_network_calls(name, denoise, mixture):
    model = Counting(mixture)
    result = make_sampler(name, denoise=denoise, **FAST[name])(model, start(model), seeds=range(6))
    assert result.nfe == model.calls > 0


@pytest.mark.parametrize("name", DENOISING)
def test_denoising_returns_the_predicted_data_at_the_last_time(name, mixture):
    x_T = start(mixture)
    plain, denoised = (make_sampler(name, denoise=denoise, **FAST[name])(mixture, x_T, seeds=range(6))
                       for denoise in (False, True))
    torch.testing.assert_close(denoised.x, mixture.x0(plain.x, plain.times[-1]))
    assert denoised.nfe == plain.nfe + 1


def test_any_event_shape_gives_the_same_numbers(sampler):
    means, variances = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.full((3,), 0.1)
    model = GaussianMixture(VPSDE(), means, variances)
    x_T = start(model, shape=(8,))
    flat = sampler(model, x_T, seeds=range(6)).x
    shaped = sampler(model, x_T.reshape(6, 2, 2, 2), seeds=range(6)).x
    torch.testing.assert_close(shaped.reshape(6, 8), flat, rtol=1e-12, atol=1e-12)


def test_the_trajectory_includes_both_ends_and_the_callback_sees_every_step(sampler, mixture):
    x_T, seen = start(mixture), []
    result = sampler(mixture, x_T, seeds=range(6), trajectory=True,
                     callback=lambda step, t, x: seen.append((step, t)))
    assert len(result.trajectory) == len(result.times) == len(seen) + 1
    assert torch.equal(result.trajectory[0], x_T) and torch.equal(result.trajectory[-1], result.x)
    assert [step for step, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] == result.times[-1] == (0 if isinstance(sampler, EDM | Restart) else mixture.sde.t_sample)


def test_a_sampler_stays_as_it_is_and_takes_its_options_by_name_alone(sampler):
    option = next(iter(sampler_options("ddim")))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(sampler, option, 0.1)
    assert not [field.name for field in dataclasses.fields(sampler) if not field.kw_only]


def test_every_sampler_says_its_order_of_convergence():
    """Strong for torchsde and deterministic ones, weak for the others (test_deterministic.py, test_one_step.py)."""
    orders = {"ddim": 1, "edm": 2, "euler": 1, "heun": 2, "rk4": 4, "euler_maruyama": 1, "ancestral": 1,
              "reverse_diffusion": 1, "predictor_corrector": 1, "langevin": 1,
              "restart": 2}
    assert {name: make_sampler(name).order for name in orders} == orders
    assert [make_sampler("ode", method=method).order for method in ("bosh3", "dopri5", "dopri8")] == [3, 5, 8]
    assert [make_sampler("torchsde", method=m).order for m in ("euler", "milstein", "srk")] == [0.5, 1.0, 1.5]
    for name in {*SAMPLERS} - {*orders, "ode", "torchsde"}:
        assert make_sampler(name, order=3).order == 3, name


def test_nothing_is_kept_that_was_not_asked_for(sampler, mixture):
    result = sampler(mixture, start(mixture), seeds=range(6))
    assert result.trajectory is None and result.predictions is None


def test_predictions_are_the_data_predicted_by_each_evaluation(sampler, mixture):
    seen = []

    class Watching(ScoreModel):
        sde = mixture.sde

        def predict(self, x, t, kind):
            seen.append(mixture.x0(x.clone(), t))
            return mixture.predict(x, t, kind)

    result = sampler(Watching(), start(mixture), seeds=range(6), predictions=True)
    assert len(result.predictions) == result.nfe
    torch.testing.assert_close(result.predictions, torch.stack(seen), rtol=1e-6, atol=1e-6)


def test_the_start_is_left_as_it_was(sampler, mixture):
    x_T = start(mixture)
    before = x_T.clone()
    sampler(mixture, x_T, seeds=range(6))
    assert torch.equal(x_T, before)


def test_a_score_that_turns_nan_is_reported_with_step_and_time():
    class Broken(ScoreModel):
        sde = VPSDE()

        def predict(self, x, t, kind):
            return torch.full_like(x, torch.nan) if t < 0.5 else torch.zeros_like(x)

    sampler = make_sampler("euler_maruyama", steps=10, t_end=1e-3)
    with pytest.raises(ArithmeticError, match=r"6 of 6 samples are not finite after step 7 of 10, at t = 0\.3"):
        sampler(Broken(), torch.zeros(6, 2), seeds=range(6))
    with pytest.raises(ArithmeticError, match="NaN"):
        make_sampler("ode")(Broken(), torch.zeros(6, 2))


def test_a_denoising_step_that_is_not_finite_is_an_error():
    class Broken(ScoreModel):
        sde = VPSDE()

        def predict(self, x, t, kind):
            return torch.full_like(x, torch.nan) if kind == "x0" else torch.zeros_like(x)

    with pytest.raises(ArithmeticError, match="denoising step"):
        make_sampler("ddim", denoise=True)(Broken(), torch.zeros(6, 2))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("ode", "torchsde", "ancestral")])
def test_a_model_that_returns_its_input_gives_what_one_that_copies_it_does(name):
    class Identity(ScoreModel):
        def __init__(self, copy):
            super().__init__()
            self.sde, self.copy = SubVPSDE(), copy

        def predict(self, x, t, kind):
            return x.clone() if self.copy else x

    x_T = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    same, copied = (make_sampler(name, steps=10)(Identity(copy), x_T, seeds=range(3)).x for copy in (False, True))
    assert torch.equal(same, copied)


def test_an_unknown_sampler_or_option_is_refused_with_what_exists():
    with pytest.raises(ValueError, match="did you mean 'euler_maruyama'.*ode"):
        make_sampler("euler_maruama")
    with pytest.raises(ValueError, match="takes no 'steps'.*rtol"):
        make_sampler("ode", steps=10)
    assert sampler_options("euler_maruyama")["eta"].default == 1.0


def test_a_stochastic_sampler_asks_for_one_seed_a_sample(mixture):
    for seeds in (None, range(5)):
        with pytest.raises(ValueError, match="one for each of the 6"):
            make_sampler("euler_maruyama")(mixture, start(mixture), seeds=seeds)


def test_dropout_is_off_while_sampling_and_back_on_after():
    class Dropping(ScoreModel):
        sde = VPSDE()

        def predict(self, x, t, kind):
            return torch.nn.functional.dropout(x, 0.5, self.training)

    model = Dropping().train()
    results = [make_sampler("euler_maruyama", steps=5, eta=0.0)(model, torch.ones(4, 3)).x for _ in range(2)]
    assert torch.equal(*results) and model.training


def test_every_option_says_its_type_and_in_a_line_what_it_does():
    for name in SAMPLERS:
        for option, field in sampler_options(name).items():
            words = field.metadata["help"]
            assert words and "\n" not in words and len(words) < 140, (name, option)
            kinds = typing.get_args(field.type) or (field.type,)
            assert all(isinstance(kind, type) or typing.get_origin(kind) for kind in kinds), (name, option)
            assert field.default is None if type(None) in kinds else isinstance(field.default, kinds[0]), (name, option)


class Twice(ScoreModel):
    """A score model that calls another one twice for each prediction, as guidance does."""

    evaluations = 2

    def __init__(self, model):
        super().__init__()
        self.inner, self.sde = model, model.sde

    def predict(self, x, t, kind):
        return (self.inner.predict(x, t, kind) + self.inner.predict(x, t, kind)) / 2


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("name", DENOISING)
def test_a_prediction_that_calls_its_network_twice_counts_twice(name, denoise):
    inner = Counting(GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1)))
    result = make_sampler(name, denoise=denoise, **FAST[name])(Twice(inner), start(inner), seeds=range(6))
    assert result.nfe == inner.calls > 0


HEAVY = "torchsde scipy torchdiffeq matplotlib sklearn absl ml_collections tensorboard safetensors".split()


@pytest.mark.slow
def test_importing_samplers_likelihoods_and_processes_loads_nothing_that_they_do_not_need():
    code = f"""
import importlib, sys
for package in ("sde_lib", "likelihood", "samplers"):
    importlib.import_module("scorefield." + package)
    print(*(f"{{package}} loads {{name}}" for name in {HEAVY} if name in sys.modules), sep=chr(10), end="")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == ""


def test_a_posterior_is_counted_and_kept_as_a_prediction_is(mixture):
    counted = CountedModel(mixture, keep=True)
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    posterior = counted.posterior(x, t)
    assert counted.nfe == 1 and torch.equal(posterior.mean, mixture.x0(x, t)) and posterior.variance is not None
    assert torch.equal(counted.predictions[0], posterior.mean)
