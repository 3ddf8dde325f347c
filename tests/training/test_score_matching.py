import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, norm, truncnorm
from torch import nn

from scorefield.likelihood import chain_elbo
from scorefield.models import PARAMETRIZATIONS, Denoiser
from scorefield.models.denoiser import TIME_INPUTS
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VESDE, VPSDE, DDPMChain, SMLDChain
from scorefield.training.draws import Draws, HeldOutDraws
from scorefield.training.objectives import Batch, ScoreMatching, build_objective
from scorefield.training.objectives.score_matching import NoisyTimes
from scorefield.training.times import TIME_SAMPLERS
from scorefield.training.weightings import WEIGHTINGS, make_weighting

STD = 0.5      # of the data, for "edm"
CONTINUOUS = [word for word in WEIGHTINGS if word != "bound"]


def of_error_in_f(sde, t):
    """What a squared error of 1 in eps is as one in EDM's F: V / (alpha s)^2."""
    return 1 + (sde.sigma(t) / (sde.alpha(t) * STD)).square()


class Zero(nn.Module):
    """A network that answers 0."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x, time):
        return 0 * self.unused * x


class Half(Zero):
    """A network that answers half of its input."""

    def forward(self, x, time):
        return 0.5 * x


@pytest.mark.costly
@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("time_sampling", TIME_SAMPLERS)
@pytest.mark.parametrize("weighting", CONTINUOUS)
def test_every_way_of_drawing_times_has_the_same_expected_weight(weighting, time_sampling, importance, any_sde):
    """E[w/p h(t)] = int w h dt / (t_max - t_min) for a test function h, for every weighting and SDE."""
    objective = ScoreMatching(any_sde, weighting, time_sampling, importance, data_std=STD)
    t, weight = objective.times.draw(200_000, torch.Generator().manual_seed(0))
    lowest, last = any_sde.t_min, any_sde.t_max
    assert float(t.min()) >= lowest and float(t.max()) <= last

    def h(s):        # such that w h / p has no heavy tail
        if weighting == "edm":
            return 1 / of_error_in_f(any_sde, s)
        return (lowest / s) ** 0.1 if importance else any_sde.sigma(s).square()

    def integrand(log_t):
        s = torch.tensor(math.exp(log_t), dtype=torch.float64)
        return float(objective.times.weighting(s) * h(s) * s)

    expected = quad(integrand, math.log(lowest), math.log(last), limit=500)[0] / (last - lowest)
    values = weight * h(t)
    # low discrepancy is far more accurate than this
    allowed = 5 * float(values.std()) / math.sqrt(len(t)) + 1e-9
    assert abs(float(values.mean()) - expected) < allowed + 1e-4 * expected


@pytest.mark.parametrize("weighting", [w for w in CONTINUOUS if w != "edm"])
def test_importance_sampling_makes_the_weight_constant(weighting, any_sde):
    _, weight = ScoreMatching(any_sde, weighting, importance=True).times.draw(5000, torch.Generator().manual_seed(0))
    assert float(weight.std() / weight.mean()) < 0.02


def test_likelihood_importance_is_uniform_in_log_snr(any_sde):
    t, weight = ScoreMatching(any_sde, "likelihood", importance=True).times.draw(4096, torch.Generator().manual_seed(0))
    ends = any_sde.half_log_snr(torch.tensor([any_sde.t_max, any_sde.t_min], dtype=torch.float64))
    place = ((any_sde.half_log_snr(t) - ends[0]) / (ends[1] - ends[0])).sort().values
    torch.testing.assert_close(place, (torch.arange(4096).double() + 0.5) / 4096, rtol=0, atol=1.1 / 4096)
    torch.testing.assert_close(weight, (2 * (ends[1] - ends[0]) / (any_sde.t_max - any_sde.t_min)).expand(4096),
                               rtol=1e-6, atol=0)


def test_low_discrepancy_puts_one_time_in_each_cell_and_uniform_does_not():
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 2, 64):
        u = TIME_SAMPLERS["low_discrepancy"](batch, generator)
        assert sorted((u * batch).long().tolist()) == list(range(batch))
    counts = (TIME_SAMPLERS["uniform"](64, generator) * 64).long().bincount(minlength=64)
    assert int(counts.max()) > 1


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("chain", [DDPMChain.from_schedule("cosine", 50), SMLDChain.from_schedule(50, 0.01, 5.0)],
                         ids=["ddpm", "smld"])
def test_on_a_chain_times_are_its_indices_with_the_mean_weight_kept(chain, importance):
    sde = chain.to_sde()
    objective = ScoreMatching(sde, "uniform", "uniform", importance)
    t, weight = objective.times.draw(100_000, torch.Generator().manual_seed(0))
    index = t * chain.steps - 1
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-9)
    assert index.round().unique().numel() > (1 if importance else 49)
    h = sde.sigma(t).square() * (1 + t)          # E[w h] = mean over the chain of (1 + t)
    expected = float((1 + chain.times).mean())
    assert abs(float((weight * h).mean()) - expected) < 5 * float((weight * h).std()) / math.sqrt(len(t)) + 1e-6


def noisy(sde, parametrization, margin=0.01):
    """A denoiser that answers 0, and examples (50, 3) with their noise and times (50,) in [margin, 1 - margin]."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(50, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    t = torch.rand(50, dtype=torch.float64, generator=generator) * (1 - 2 * margin) + margin
    return Denoiser(Zero(), sde, parametrization, input_std=STD), x0, eps, t


OF_X0 = {      # what a squared error in x_0 counts, by the papers, of the signal-to-noise ratio
    "x0": lambda snr: 1.0, "snr": lambda snr: snr, "truncated_snr": lambda snr: snr.clamp(min=1),
    "snr_plus_one": lambda snr: snr + 1, "min_snr": lambda snr: snr.clamp(max=5),
    "min_snr:gamma=2": lambda snr: snr.clamp(max=2),
    "p2": lambda snr: snr / (1 + snr), "p2:k=2:gamma=0.5": lambda snr: snr / (2 + snr).sqrt(),
}


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("weighting", OF_X0)
def test_the_loss_is_the_error_of_x0_weighted_as_its_paper_says(weighting, parametrization, any_sde):
    denoiser, x0, eps, t = noisy(any_sde, parametrization)
    objective = ScoreMatching(any_sde, weighting, data_std=STD)
    loss = objective.loss(denoiser, Batch(x0), NoisyTimes(t, objective.times.weighting(t), eps))
    error = (denoiser.x0(any_sde.perturb(x0, t, eps), t) - x0).square().mean(1)
    snr = (any_sde.alpha(t) / any_sde.sigma(t)).square()
    torch.testing.assert_close(loss, OF_X0[weighting](snr) * error, rtol=1e-8, atol=0)


def test_a_sigmoid_weighs_each_unit_of_log_snr(any_sde):
    t = torch.linspace(0.01, 0.95, 40, dtype=torch.float64).requires_grad_()
    log_snr = 2 * any_sde.half_log_snr(t)
    slope, = torch.autograd.grad(log_snr.sum(), t)
    weight = make_weighting("sigmoid:bias=-1", any_sde)(t)
    torch.testing.assert_close(weight, torch.sigmoid(-1 - log_snr) * -slope, rtol=1e-6, atol=0)


CHAINS = {"ddpm": DDPMChain.from_schedule("linear", 50), "cosine": DDPMChain.from_schedule("cosine", 50),
          "smld": SMLDChain.from_schedule(50)}


def of_chain(chain, weighting, network=None):
    """Losses (steps,) of one example at every index, with its noise, and the predicted x_0 (steps, 2)."""
    generator = torch.Generator().manual_seed(0)
    sde = chain.to_sde()
    denoiser = Denoiser(network or Zero(), sde, "eps")
    x0, eps = (torch.randn(1, 2, dtype=torch.float64, generator=generator).expand(chain.steps, 2) for _ in range(2))
    objective = ScoreMatching(sde, weighting)
    loss = objective.loss(denoiser, Batch(x0), NoisyTimes(chain.times, objective.times.weighting(chain.times), eps))
    return loss, x0, denoiser.x0(sde.perturb(x0, chain.times, eps), chain.times)


@pytest.mark.parametrize("name", CHAINS)
def test_mu_is_the_unweighted_error_of_the_mean_of_a_step_back(name):
    chain = CHAINS[name]
    loss, x0, predicted = of_chain(chain, "mu")
    for i in range(chain.steps):
        error = chain.posterior(predicted[i:i + 1] - x0[i:i + 1], torch.zeros(1, 2, dtype=torch.float64), i)[0]
        assert float(loss[i]) == pytest.approx(float(error.square().mean()), rel=1e-9)


def test_mu_of_ddpm_is_ho_et_al_equation_10_without_its_weight():
    chain = CHAINS["ddpm"]
    loss, _, _ = of_chain(chain, "mu")
    beta, alpha_bar = chain.betas, (1 - chain.betas).cumprod(0)
    weight = make_weighting("mu", chain.to_sde())(chain.times)
    torch.testing.assert_close(weight, beta**2 / ((1 - beta) * (1 - alpha_bar)), rtol=1e-9, atol=0)
    assert loss.shape == (50,)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.parametrize("name", CHAINS)
def test_the_bound_is_that_of_the_chain_but_for_a_constant(name, variance):
    """The difference between two networks, with the same noise, is that of their bounds."""
    chain, x = CHAINS[name], torch.randn(1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def both(network):
        sde = chain.to_sde()
        denoiser, eps = Denoiser(network, sde, "eps"), []
        predict = denoiser.predict

        def noted(x_t, t, kind):
            eps.append((x_t - sde.alpha(t) * x) / sde.sigma(t))
            return predict(x_t, t, kind)

        denoiser.predict = noted
        bound = chain_elbo(denoiser, x, None, chain, variance=variance, seeds=[0], dtype=torch.float64)
        objective = ScoreMatching(sde, f"bound:variance={variance}")
        draw = NoisyTimes(chain.times, objective.times.weighting(chain.times), torch.cat(eps))
        loss = objective.loss(Denoiser(network, sde, "eps"), Batch(x.expand(chain.steps, 2)), draw)
        return float(bound.value), float(loss.mean())

    first, second = both(Zero()), both(Half())
    assert (first[0] - second[0]) / 2 == pytest.approx(second[1] - first[1], rel=1e-9)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_huber_loss_is_that_of_errors_in_eps_and_that_of_squares_for_a_large_c(parametrization, any_sde):
    denoiser, x0, eps, t = noisy(any_sde, parametrization, 0.05)
    draw, error = NoisyTimes(t, t + 1, eps), denoiser.eps(any_sde.perturb(x0, t, eps), t) - eps

    def loss(distance):
        return ScoreMatching(any_sde, distance=distance).loss(denoiser, Batch(x0), draw)

    c = 0.3
    expected = (2 * c * ((error**2 + c**2).sqrt() - c)).mean(1) * (t + 1)
    torch.testing.assert_close(loss("huber:c=0.3"), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss("huber:c=1e4"), loss("squared"), rtol=1e-4, atol=0)
    for text, part in (("huber:c=0", "above 0"), ("hubber", "did you mean"), ("squared:c=1", "no options")):
        with pytest.raises(ArgumentError, match=part):
            loss(text)


def test_a_weighting_of_a_chain_or_with_a_wrong_option_is_refused():
    for text, part in (("bound", "sde.name=ddpm"), ("min_snr:gama=3", "gamma"), ("p2:k=0", "above 0"), ("p2:k=x", "number"),
                       ("simple:gamma=1", "no options"), ("min_snrr", "did you mean 'min_snr'")):
        with pytest.raises(ArgumentError, match=part) as error:
            make_weighting(text, VPSDE())
        assert error.value.arguments == ("weighting",)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("weighting", ["simple", "likelihood", "uniform", "edm"])
def test_the_loss_is_the_weighted_error_of_the_score(weighting, parametrization, any_sde):
    """Against its definition: lambda(t) || score_theta - grad log q(x_t given x_0) ||^2 / D with lambda = w sigma^2."""
    denoiser, x0, eps, t = noisy(any_sde, parametrization)
    objective = ScoreMatching(any_sde, weighting, data_std=STD)
    loss = objective.loss(denoiser, Batch(x0), NoisyTimes(t, objective.times.weighting(t), eps))
    x_t = any_sde.perturb(x0, t, eps)
    sigma = any_sde.sigma(t)[:, None]
    error = denoiser.score(x_t, t) + eps / sigma
    g2 = any_sde.g2(t)[:, None]
    log_level = (sigma / any_sde.alpha(t)[:, None]).log()
    ends = -any_sde.half_log_snr(torch.tensor([any_sde.t_min, any_sde.t_max], dtype=torch.float64))
    normal = norm(-1.2, 1.2)
    mass = (normal.cdf(ends[1]) - normal.cdf(ends[0])) / (any_sde.t_max - any_sde.t_min)
    density = torch.as_tensor(normal.pdf(log_level)) / mass
    lam = {"simple": sigma**2, "likelihood": g2, "uniform": torch.ones_like(sigma),
           "edm": density * g2 / 2 * of_error_in_f(any_sde, t)[:, None]}[weighting]
    torch.testing.assert_close(loss, (lam * error.square()).mean(1), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("time_input", [k for k in TIME_INPUTS if not k.startswith("index")])
def test_gradients_are_finite_at_the_smallest_time(parametrization, time_input, any_sde):
    from scorefield.models import MLP
    denoiser = Denoiser(MLP((3,), 16, 2), any_sde, parametrization, time_input, input_std=STD)
    objective = ScoreMatching(any_sde, "likelihood", importance=True)
    t = torch.full((8,), any_sde.t_min, dtype=torch.float64)
    weight = objective.times.draw(8, torch.Generator().manual_seed(0))[1]
    objective.loss(denoiser, Batch(torch.randn(8, 3)), NoisyTimes(t, weight, torch.randn(8, 3))).mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in denoiser.parameters() if p.grad is not None)


def test_unknown_words_are_refused(any_sde):
    with pytest.raises(ValueError, match="simple, likelihood, uniform, edm"):
        ScoreMatching(any_sde, "likelyhood")
    with pytest.raises(ValueError, match="uniform, low_discrepancy"):
        ScoreMatching(any_sde, time_sampling="stratified")


# EDM's loss


class Wave(nn.Module):
    """A smooth function of input and time."""

    def forward(self, x, time):
        return torch.sin(2 * x + time.to(x)[:, None])


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.002, 80.0), VESDE(0.1, 1.0)], ids=["vp", "edm", "cut"])
def test_edm_draws_log_normal_noise_levels(sde):
    objective = ScoreMatching(sde, "edm", "uniform", importance=True, data_std=STD)
    t, _ = objective.times.draw(20_000, torch.Generator().manual_seed(0))
    ends = -sde.half_log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    low, high = ((ends + 1.2) / 1.2).tolist()
    assert kstest(-sde.half_log_snr(t).numpy(), truncnorm(low, high, -1.2, 1.2).cdf).pvalue > 0.01


@pytest.mark.parametrize("time_sampling", TIME_SAMPLERS)
def test_edm_with_importance_is_its_papers_loss(time_sampling, any_sde):
    """lambda(l) || D(z; l) - x_0 ||^2, lambda = (l^2 + s^2) / (l s)^2, in their z = x / alpha and l = sigma / alpha."""
    generator = torch.Generator().manual_seed(0)
    objective = ScoreMatching(any_sde, "edm", time_sampling, importance=True, data_std=STD)
    t, weight = objective.times.draw(500, generator)
    x0, eps = STD * torch.randn(500, 3, dtype=torch.float64, generator=generator), torch.randn(500, 3).double()
    level = (any_sde.sigma(t) / any_sde.alpha(t))[:, None]
    denoiser = Denoiser(Wave(), any_sde, "edm", "c_noise", input_std=STD)
    z = x0 + level * eps
    c_skip, c_out = STD**2 / (level**2 + STD**2), level * STD / (level**2 + STD**2).sqrt()
    c_noise = (level.log()[:, 0] / 4).float()
    denoised = c_skip * z + c_out * Wave()(z / (level**2 + STD**2).sqrt(), c_noise)
    expected = (level**2 + STD**2) / (level * STD) ** 2 * (denoised - x0).square()
    loss = objective.loss(denoiser, Batch(x0), NoisyTimes(t, weight, eps))
    torch.testing.assert_close(loss, expected.mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chain", [None, DDPMChain.from_schedule("linear", 200), SMLDChain.from_schedule(200)],
                         ids=["continuous", "ddpm", "smld"])
def test_edms_expected_loss_is_the_same_with_and_without_importance(chain):
    sde = VPSDE() if chain is None else chain.to_sde()
    generator, n = torch.Generator().manual_seed(0), 100_000
    denoiser = Denoiser(Wave(), sde, "edm", "c_noise", input_std=STD)
    means, errors = [], []
    for importance in (False, True):
        objective = ScoreMatching(sde, "edm", "uniform", importance, data_std=STD)
        t, weight = objective.times.draw(n, generator)
        x0, eps = torch.randn(2, n, 1, dtype=torch.float64, generator=generator)
        loss = objective.loss(denoiser, Batch(STD * x0), NoisyTimes(t, weight, eps))
        means.append(float(loss.mean()))
        errors.append(float(loss.std()) / math.sqrt(n))
    assert abs(means[0] - means[1]) < 4 * math.hypot(*errors)
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("chain", [DDPMChain.from_schedule("linear", 1000), SMLDChain.from_schedule(1000)],
                         ids=["ddpm", "smld"])
def test_on_a_chain_edm_weighs_every_error_in_f_alike(chain):
    """Its noise levels stand closely enough for their sum to be the log-normal's integral."""
    sde = chain.to_sde()
    objective = ScoreMatching(sde, "edm", importance=True, data_std=STD)
    t, weight = objective.times.draw(4096, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weight / of_error_in_f(sde, t), torch.ones_like(t), rtol=2e-3, atol=0)
    levels = -sde.half_log_snr(t)
    assert abs(float(levels.mean()) + 1.2) < 0.02 and abs(float(levels.std()) - 1.2) < 0.02


def test_edm_needs_the_standard_deviation_of_the_data():
    with pytest.raises(ValueError, match="'edm' needs the standard deviation of the data"):
        ScoreMatching(VPSDE(), "edm")


def test_edm_is_refused_where_the_sde_has_none_of_its_noise_levels():
    with pytest.raises(ValueError, match="-1.2 .* 1.2, where VESDE.* has no time"):
        ScoreMatching(VESDE(1e6, 1e7), "edm", data_std=STD)


# Conditions


class Told(nn.Module):
    """A network that keeps what it is told and answers 0."""

    conditions, classes = ("label",), 4

    def forward(self, x, time, condition):
        self.labels = condition["label"]
        return 0 * x


def told(**settings):
    network, objective = Told(), ScoreMatching(VPSDE(), **settings)
    batch = Batch(torch.zeros(4000, 1), {"label": torch.arange(4000) % 4, "unknown_to_it": torch.zeros(4000)})
    draw = objective.draw(batch, Draws(4000, 0, torch.device("cpu")))
    objective.loss(Denoiser(network, VPSDE()), batch, draw)
    return network.labels


def test_a_network_is_told_the_conditions_that_it_takes():
    assert torch.equal(told(label_dropout=0), torch.arange(4000) % 4)
    batch = Batch(torch.zeros(3, 1), {"label": torch.arange(3)})
    objective = ScoreMatching(VPSDE())
    draw = objective.draw(batch, Draws(3, 0, torch.device("cpu")))
    assert objective.loss(Denoiser(Wave(), VPSDE()), batch, draw).shape == (3,)      # it takes none, and is told none


def test_held_out_examples_keep_their_labels():
    draws = HeldOutDraws(3, torch.arange(3), torch.Generator().manual_seed(0), torch.device("cpu"), None)
    draw = ScoreMatching(VPSDE(), label_dropout=0.9).draw(Batch(torch.zeros(3, 1), {"label": torch.arange(3)}), draws)
    assert draw.dropped is None


def test_a_model_without_labels_draws_nothing_for_their_dropout():
    section = {"objective": "score_matching", "weighting": "simple", "label_dropout": 0.3}
    assert build_objective(Denoiser(Wave(), VPSDE()), section).label_dropout == 0
    assert build_objective(Denoiser(Told(), VPSDE(), label_dropout=True), section).label_dropout == 0.3


def test_label_dropout_tells_a_share_of_the_examples_no_label():
    labels = told(label_dropout=0.2)
    dropped = labels == Told.classes
    assert abs(float(dropped.double().mean()) - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 4000)
    assert torch.equal(labels[~dropped], (torch.arange(4000) % 4)[~dropped])
    with pytest.raises(ValueError, match=r"label_dropout must lie in \[0, 1\), got 1"):
        ScoreMatching(VPSDE(), label_dropout=1)
