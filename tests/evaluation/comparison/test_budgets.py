"""Each sampler takes the most steps that keep to a budget of evaluations."""

import pytest
import torch

from scorefield.evaluation.comparison.budgets import Asked, OverBudget, evaluations_of, within
from scorefield.guidance import classifier_free
from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.models.networks.outputs import doubled
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import SAMPLERS, make_sampler, prior_sample
from scorefield.sde_lib import VPSDE, DDPMChain, FlowSDE

MIXTURE = GaussianMixture(VPSDE(), torch.eye(2), torch.tensor([0.1, 0.2]), labels=[0, 1])
FIXED = [name for name in SAMPLERS if not Asked(name).adaptive]
ALSO = ["dpm_solver++:order=3:method=singlestep", "dpm_solver:order=3:method=singlestep", "dpm_solver:order=1",
        "heun:denoise=true", "predictor_corrector:corrector_steps=2", "ddim:eta=0.5", "torchsde:method=euler"]


@pytest.mark.parametrize("text", FIXED + ALSO)
@pytest.mark.parametrize("budget", [11, 30])
def test_a_budget_is_kept_and_one_step_more_would_break_it(text, budget):
    asked = Asked.parse(text)
    sampler, nfe = within(asked, MIXTURE, budget)
    x = prior_sample(MIXTURE.sde, (2,), range(3))
    assert sampler(MIXTURE, x, range(3)).nfe == nfe <= budget
    for more in range(sampler.steps + 1, 2 * sampler.steps + 1):
        try:
            bigger = make_sampler(asked.name, steps=more, **asked.options)
        except ArgumentError:      # torchsde takes powers of two
            continue
        assert evaluations_of(bigger, MIXTURE) > budget
        break


def test_a_learned_variance_of_a_chain_keeps_a_budget_whose_last_step_goes_to_the_data():
    model = Denoiser(doubled(MLP((2,))), DDPMChain.from_schedule("linear", 50).to_sde(), learned_variance=True)
    sampler, nfe = within(Asked.parse("ancestral:variance=learned"), model, 7)
    assert sampler.steps == nfe == sampler(model, prior_sample(model.sde, (2,), range(3)), range(3)).nfe == 7


@pytest.mark.parametrize("text, nfe", [("auto", 20), ("heun", 19), ("edm", 19), ("rk4", 20), ("predictor_corrector", 20),
                                       ("langevin", 20), ("dpm_solver++:order=3:method=singlestep", 20)])
def test_the_evaluations_of_twenty(text, nfe):
    assert within(Asked.parse(text), MIXTURE, 20)[1] == nfe


def test_guidance_costs_two_evaluations_a_step_and_in_an_interval_only_there():
    guided = classifier_free(MIXTURE, 2.0, label=1)
    sampler, nfe = within(Asked("auto"), guided, 20)
    assert (sampler.steps, nfe) == (10, 20)
    partly = classifier_free(MIXTURE, 2.0, (0.0, 0.5), label=1)
    sampler, nfe = within(Asked("ddim"), partly, 20)
    x = prior_sample(guided.sde, (2,), range(2))
    assert 10 < sampler.steps < 20 and sampler(partly, x).nfe == nfe <= 20


def test_a_sampler_that_no_step_count_brings_under_the_budget_says_why():
    for name, words in (("rk4", "fewest evaluations are 4"), ("auto", "order 2 needs at least 2 steps"),
                        ("langevin", "fewest evaluations are 5")):
        with pytest.raises(OverBudget, match=words):
            within(Asked(name), MIXTURE, 1)
    with pytest.raises(OverBudget, match="DDPM and SMLD"):
        within(Asked("ancestral"), GaussianMixture(FlowSDE(), torch.eye(2), torch.ones(2)), 20)


@pytest.mark.parametrize("text, words", [
    ("dim", "did you mean 'ddim'"), ("ddim:steps=3", "the budgets set the steps"), ("ddim:order=3", "takes no 'order'"),
    ("ddim:eta", "OPTION=VALUE"), ("ddim:eta=x", "eta"), ("ddim:eta=2", "eta of DDIM"), ("auto:order=9", "order must lie"),
])
def test_a_wrong_sampler_is_refused(text, words):
    with pytest.raises(ArgumentError, match=words):
        Asked.parse(text)


def test_adaptive_samplers_choose_their_own_evaluations():
    assert Asked("ode").adaptive and Asked.parse("dpm_solver:method=adaptive").adaptive and not Asked("auto").adaptive
