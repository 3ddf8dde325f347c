import math

import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from scorefield.likelihood import chain_elbo, elbo, log_prob
from scorefield.likelihood.elbo import discretised_log_prob, gaussian_kl
from scorefield.models import MLP, Denoiser, GaussianMixture, ScoreModel
from scorefield.sde_lib import VESDE, VPSDE, Chain, DDPMChain, SMLDChain, SubVPSDE

# ---- the bound in continuous time ------------------------------------------------------------------------------------


def mean_log_density(sde, t, x, mean, variance):
    """E log N(x_t; alpha mean, (alpha^2 variance + sigma^2) I) over q(x_t given x), (batch,)."""
    a, s, d = sde.alpha(t), sde.sigma(t), x.shape[1]
    v = a**2 * variance + s**2
    return -0.5 * (d * torch.log(2 * math.pi * v) + (a**2 * (x - mean).square().sum(1) + d * s**2) / v)


def test_the_bound_of_a_gaussian_is_its_density_but_for_prior_and_smoothing(any_sde):
    """With p the true joint density and E over q, bound = E[log prior(x_1) - log p(x_1)] + E log p(x_t) + D log alpha."""
    mean, variance, d = torch.tensor([[0.4, -0.2, 0.1]], dtype=torch.float64), 0.3, 3
    model = GaussianMixture(any_sde, mean, torch.tensor([variance]))
    x = GaussianMixture(VPSDE(), mean, torch.tensor([variance])).sample(100, 0.0, torch.Generator().manual_seed(0))
    a, s, p = any_sde.alpha(any_sde.t_max), any_sde.sigma(any_sde.t_max), any_sde.prior.std
    prior = -0.5 * (d * math.log(2 * math.pi * p**2) + (a**2 * x.square().sum(1) + d * s**2) / p**2)
    t = any_sde.t_min
    expected = (prior - mean_log_density(any_sde, any_sde.t_max, x, mean, variance)
                + mean_log_density(any_sde, t, x, mean, variance) + d * any_sde.log_alpha(t))
    result = elbo(model, x, draws=128, seeds=range(100))
    pooled = float(result.error.square().sum().sqrt()) / 100
    assert abs(float((result.value - expected).mean())) < 3 * pooled < 0.3
    assert float(((result.value - expected).abs() < 4 * result.error).double().mean()) > 0.97

    exact = mean_log_density(VPSDE(), 0.0, x, mean, variance)
    gap = float((exact - expected).mean())      # over data this is a divergence, so not negative but for 100 draws' noise
    # Smoothing costs D sigma^2 / (alpha^2 v): 1e-3 under VE, 1e-5 under VP; the prior E ||x||^2 alpha^2 / (2 p^2): 2e-4
    assert -1e-4 < gap < 3e-3


def test_the_bound_of_a_mixture_lies_below_its_density_and_that_of_the_probability_flow(mixture):
    x = GaussianMixture(VPSDE(), mixture.means, mixture.variances, mixture.weights).sample(
        100, 0.0, torch.Generator().manual_seed(1))
    result = elbo(mixture, x, draws=128, seeds=range(100))
    exact = GaussianMixture(VPSDE(), mixture.means, mixture.variances, mixture.weights).log_prob(x)
    flow = log_prob(mixture, x, rtol=1e-5, atol=1e-5).value
    pooled = float(result.error.square().sum().sqrt()) / 100
    smoothing = 0.02 if isinstance(mixture.sde, VESDE) else 1e-3      # 2 sigma^2 / v = 0.01 for v = 0.02
    for density in (exact, flow):
        gap = density - result.value
        assert float(gap.mean()) > -3 * pooled - smoothing
        assert float(gap.mean()) < 3 * pooled + smoothing       # the score is exact, so the bound is tight
        assert float((gap > -4 * result.error - smoothing).double().mean()) > 0.97


def integrated_bound(model, x):
    """The bound at one x (1, 1) by quadrature over t and eps, with g^2 / (2 sigma^2) dt instead of dlambda."""
    sde = model.sde
    t = torch.logspace(math.log10(sde.t_min), math.log10(sde.t_max), 4001, dtype=torch.float64)
    eps = torch.linspace(-8, 8, 401, dtype=torch.float64)
    weight = norm.pdf(eps.numpy())
    weight = torch.from_numpy(weight / weight.sum())
    error = torch.empty_like(t)
    for i, at in enumerate(t.split(500)):
        x_t = (sde.alpha(at)[:, None] * x + sde.sigma(at)[:, None] * eps).reshape(-1, 1)
        predicted = model.eps(x_t, at.repeat_interleave(len(eps))).reshape(len(at), -1)
        error[500 * i:500 * i + len(at)] = (eps - predicted).square() @ weight
    diffusion = torch.trapezoid(sde.g2(t) / (2 * sde.sigma(t).square()) * error * t, t.log())
    a, s, p = sde.alpha(sde.t_max), sde.sigma(sde.t_max), sde.prior.std
    prior = torch.log(p / s) + (s**2 + (a * x).square()) / (2 * p**2) - 0.5
    start = torch.tensor(sde.t_min)
    return float(-prior - diffusion - 0.5 * torch.log(2 * math.pi * math.e * (sde.sigma(start) / sde.alpha(start))**2))


@pytest.mark.parametrize("draws", [8, 32])
def test_the_estimate_is_unbiased_and_its_error_bar_covers(any_sde, draws):
    model = GaussianMixture(any_sde, torch.tensor([[-0.6], [0.5]]), torch.tensor([0.04, 0.1]))
    x = torch.full((1000, 1), 0.3, dtype=torch.float64)
    result = elbo(model, x, draws, seeds=range(1000))
    z = result.value - integrated_bound(model, x[:1])
    assert abs(float(z.mean())) < 3.5 * float(z.std()) / 1000**0.5
    assert 0.85 < float(result.error.square().mean().sqrt() / z.std()) < 1.4
    t95 = {8: 2.776, 32: 2.12}[draws]                    # of Student's t with a degree of freedom for each pair of draws
    assert 0.9 < float((z.abs() < t95 * result.error).double().mean()) < 0.995


@pytest.mark.parametrize("d", [2, 64])
def test_the_control_variate_removes_most_of_the_variance(d):
    """Without it ||eps||^2 alone would contribute 2 D w^4 a draw, for data of variance v with w its share of signal."""
    model = GaussianMixture(VPSDE(), torch.zeros(1, d), torch.tensor([0.5]))
    x, draws = torch.full((200, d), 0.3, dtype=torch.float64), 32
    ends = VPSDE().half_log_snr(torch.tensor([1.0, 1e-5]))
    at = ends[0] + (ends[1] - ends[0]) * (torch.arange(draws) + 0.5) / draws
    raw = float((2 * d * torch.sigmoid(2 * at + math.log(0.5))**4).sum().sqrt() * (ends[1] - ends[0]) / draws)
    assert float(elbo(model, x, draws, seeds=range(200)).value.std()) < 0.6 * raw


# ---- the bound of a chain --------------------------------------------------------------------------------------------


def digits_of(sde, weights):
    """The exact model of integers 0 .. K - 1 with these weights, at their places in [-1, 1]."""
    k = len(weights)
    return GaussianMixture(sde, torch.linspace(-1, 1, k, dtype=torch.float64)[:, None], torch.zeros(k), weights)


@pytest.mark.costly
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_a_chain_of_integers_costs_at_least_their_entropy_and_fewer_steps_cost_more(any_sde, variance):
    """The posterior's variance is the right one for point masses: with it little is lost in 1000 steps."""
    weights = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64)
    model, chain = digits_of(any_sde, weights), Chain.from_sde(any_sde, 1000)
    k = torch.arange(5).repeat_interleave(30)[:, None]
    entropy, gap, error = -float((weights * weights.log()).sum()), {}, {}
    for steps in (1000, 100, 10):
        value = chain_elbo(model, k, 5, chain, steps, variance, seeds=range(150)).value.double().view(5, 30)
        gap[steps] = -float((weights * value.mean(1)).sum()) - entropy
        error[steps] = float((weights * value.std(1) / 30**0.5).square().sum().sqrt())
    assert -3 * error[1000] < gap[1000] < gap[100] < gap[10]
    if variance == "beta_tilde":
        assert gap[1000] < 3 * error[1000] + 0.05 and error[1000] < 0.04


def test_a_chain_of_two_steps_agrees_with_its_calculation_by_hand():
    """alpha 0.9, 0.5, sigma 0.3, 0.8, levels -1, 0, 1; k = 2 is x = 1, and x_0 is always predicted as 0.2."""
    class Constant(ScoreModel):
        sde = VPSDE()

        def predict(self, x, t, kind):
            assert kind == "x0" and float(t) in (0.5, 1.0)
            return torch.full_like(x, 0.2)

    def cdf(z):
        return 0.5 * (1 + math.erf(z / 2**0.5))

    chain, k = Chain(torch.tensor([0.9, 0.5]), torch.tensor([0.3, 0.8])), torch.tensor([[2]])
    a = 0.5 / 0.9
    v = 0.64 - a**2 * 0.09                                # of q(x_2 given x_1)
    tilde = v * 0.09 / 0.64                               # of q(x_1 given x_2, x_0)
    shift = 0.9 * v / 0.64 * (1 - 0.2)
    prior = 0.5 * (0.25 + 0.64 - 1 - math.log(0.64))
    for variance, of_reverse, std in (("beta", v, 0.3), ("beta_tilde", tilde, tilde**0.5)):
        step = 0.5 * (shift**2 / of_reverse + tilde / of_reverse - 1 - math.log(tilde / of_reverse))
        decoder = -math.log(1 - cdf((0.5 - 0.2) / std))
        result = chain_elbo(Constant(), k, 3, chain, variance=variance, seeds=[0], dtype=torch.float64)
        assert float(result.value) == pytest.approx(-(prior + step + decoder), rel=1e-6)
        assert [float(result.terms[name]) for name in ("prior", "diffusion", "decoder")] == pytest.approx(
            [-prior, -step, -decoder], rel=1e-6)
        assert result.per_step.shape == (1, 1) and result.nfe == 2 and result.error is None
    clipped = chain_elbo(Constant(), k, 3, chain, low=-0.1, high=0.1, clip_x0=True, seeds=[0])     # 0.2 becomes x = 0.1
    assert float(clipped.per_step) == pytest.approx(-0.5 * (tilde / v - 1 - math.log(tilde / v)), rel=1e-4)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [1e-3, 0.03, 1.0])
@pytest.mark.parametrize("dequantized", [False, True])
def test_the_decoder_sums_to_one_over_the_levels(levels, std, dequantized):
    means = torch.tensor([-3.0, -1.0, -0.4, 0.0, 1 / 255, 0.77, 1.0, 1.5], dtype=torch.float64)
    k = torch.arange(levels).repeat(len(means), 1)
    log_p = discretised_log_prob(k.reshape(-1, 1), means.repeat_interleave(levels)[:, None], std, levels,
                                 dequantized=dequantized)
    assert bool(log_p.isfinite().all())
    assert float((log_p.view(-1, levels).exp().sum(1) - 1).abs().max()) < 1e-6


def test_the_decoder_is_accurate_in_the_tails_and_places_levels_as_the_data_do():
    mean, std = torch.zeros(1, 1, dtype=torch.float64), 0.02
    for k, dequantized, cell in ((200, False, (2 * 199.5 / 255 - 1, 2 * 200.5 / 255 - 1)),
                                 (200, True, (400 / 256 - 1, 402 / 256 - 1)),
                                 (255, False, (2 * 254.5 / 255 - 1, math.inf)), (255, True, (510 / 256 - 1, math.inf))):
        a, b = norm.logsf([edge / std for edge in cell])
        expected = a + math.log(-math.expm1(b - a))
        for sign, level in ((1, k), (-1, 255 - k)):
            log_p = discretised_log_prob(torch.tensor([[level]]), sign * mean, std, 256, dequantized=dequantized)
            assert float(log_p) == pytest.approx(expected, rel=1e-12) and expected < -300


def test_bytes_of_256_levels_are_taken_as_they_are():
    k = torch.tensor([[[0, 128, 255]]], dtype=torch.uint8).expand(2, 2, 3)
    model = denoiser()
    for integers in (k, k.long()):
        assert bool(chain_elbo(model, integers, 256, steps=5, seeds=range(2)).value.isfinite().all())
    assert torch.equal(*(chain_elbo(model, i, 256, steps=5, seeds=range(2)).value for i in (k, k.long())))
    with pytest.raises(ValueError, match="0 .. 254, got 0 .. 255"):
        chain_elbo(model, k, 255, steps=5, seeds=range(2))


def test_levels_stand_where_the_data_put_them():
    """A model that knows the data pays next to nothing at the decoder and a wrong placement would pay all of it."""
    k = torch.arange(9)[:, None]
    for dequantized, x in ((True, (k + 0.5) / 9 * 4 - 1), (False, k / 8 * 4 - 1)):
        model = GaussianMixture(VPSDE(), x, torch.zeros(9))
        result = chain_elbo(model, k, 9, steps=20, low=-1.0, high=3.0, dequantized=dequantized, seeds=range(9))
        assert float(result.terms["decoder"].min()) > -1e-4


def test_the_divergence_between_gaussians_is_that_of_torch():
    shift = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for v, w in ((0.3, 0.3), (0.3, 2.0), (4.0, 0.1), (1.0, 1.0 + 1e-9)):
        p, q = (Independent(Normal(mean, std**0.5 * torch.ones_like(shift)), 2)
                for mean, std in ((shift, v), (torch.zeros_like(shift), w)))
        mine = gaussian_kl(shift, torch.tensor(v, dtype=torch.float64), w)
        torch.testing.assert_close(mine, kl_divergence(p, q), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", [DDPMChain.from_schedule("linear", 100).to_sde(), SMLDChain.from_schedule(60).to_sde()])
def test_the_chain_that_an_sde_was_made_of_is_its_own(sde):
    chain = Chain.from_sde(sde, sde.steps)
    model, k = digits_of(sde, torch.ones(3)), torch.arange(3)[:, None]
    mine, given = (chain_elbo(model, k, 3, c, seeds=range(3)) for c in (None, chain))
    assert torch.equal(mine.value, given.value) and mine.nfe == sde.steps == len(mine.per_step) + 1


# ---- both ------------------------------------------------------------------------------------------------------------


class CountingNetwork(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.calls, self.dropout = network, 0, nn.Dropout(0.5)

    def forward(self, x, time):
        self.calls += 1
        return self.dropout(self.network(x, time))


def denoiser(sde=None):
    torch.manual_seed(0)
    network = MLP((2, 3), width=16, layers=2)
    for p in network.parameters():
        nn.init.normal_(p, std=0.3)
    return Denoiser(CountingNetwork(network), sde or VPSDE())


def levels(n=4, count=8):
    return torch.randint(count, (n, 2, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()])
def test_terms_add_up_and_evaluations_are_counted(sde):
    model, x = denoiser(sde), torch.randn(4, 2, 3)
    continuous = elbo(model, x, 6, seeds=range(4))
    assert continuous.nfe == model.network.calls == 6 and continuous.per_step is None
    discrete = chain_elbo(model, levels(), 8, steps=7, draws=3, seeds=range(4))
    assert discrete.nfe == model.network.calls - 6 == 21 and discrete.per_step.shape == (6, 4)
    torch.testing.assert_close(discrete.per_step.sum(0), discrete.terms["diffusion"])
    for result in (continuous, discrete):
        torch.testing.assert_close(sum(result.terms.values()), result.value)
        assert list(result.terms) == ["prior", "diffusion", "decoder"]
        assert result.value.shape == result.error.shape == (4,) and result.value.dtype == torch.float32
        assert not result.value.requires_grad and bool((result.error > 0).all())
    assert model.training and model.network.dropout.training
    model.eval()                                         # dropout was off all the same
    assert torch.equal(elbo(model, x, 6, seeds=range(4)).value, continuous.value)
    assert torch.equal(chain_elbo(model, levels(), 8, steps=7, draws=3, seeds=range(4)).value, discrete.value)


def test_the_error_bar_of_a_chain_is_the_spread_of_its_draws():
    model, k = denoiser(), levels(1).expand(300, 2, 3)
    single = chain_elbo(model, k, 8, steps=5, seeds=range(300)).value
    several = chain_elbo(model, k, 8, steps=5, draws=4, seeds=range(300))
    assert float(several.value.std()) == pytest.approx(float(single.std()) / 2, rel=0.2)
    assert float(several.error.square().mean().sqrt()) == pytest.approx(float(several.value.std()), rel=0.2)


def test_what_an_example_draws_depends_on_its_seed_alone():
    model, x, k, seeds = denoiser(), torch.randn(4, 2, 3, dtype=torch.float64), levels(), [(3, i) for i in range(4)]
    bounds = (lambda at: elbo(model, x[at], 4, [seeds[i] for i in at]),
              lambda at: chain_elbo(model, k[at], 8, steps=5, draws=2, seeds=[seeds[i] for i in at]))
    for bound in bounds:
        together = bound([0, 1, 2, 3])
        for order in ([2], [3, 0]):
            other = bound(order)
            torch.testing.assert_close(other.value, together.value[order], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(other.error, together.error[order], rtol=1e-4, atol=1e-4)
    assert len(set(elbo(model, x[:1].expand(4, 2, 3), 4, seeds).value.tolist())) == 4


@pytest.mark.parametrize("settings, message", [
    ({"draws": 0}, "draws"), ({"draws": 3}, "even"), ({"t_min": 0.0}, "t_min"), ({"t_min": 1.0}, "t_min"),
    ({"seeds": None}, "one for each of the 4 samples, got none"), ({"seeds": range(3)}, "got 3"),
])
def test_settings_that_the_continuous_bound_cannot_use_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        elbo(denoiser(), torch.zeros(4, 2, 3), **({"seeds": range(4)} | settings))


@pytest.mark.parametrize("settings, message", [
    ({"levels": 1}, "at least 2"), ({"levels": 7}, r"0 \.\. 6, got 0 \.\. 7"), ({"k": -levels()}, r"0 \.\. 7, got -7"),
    ({"k": levels().float()}, "integers, got torch.float32"), ({"k": levels() > 3}, "integers, got torch.bool"),
    ({"variance": "betas"}, "beta, beta_tilde"), ({"draws": 0}, "draws"), ({"low": 1.0}, "low < high"),
    ({"steps": 1}, r"2 \.\. 1000, got 1"), ({"steps": 11, "chain": Chain.from_sde(VPSDE(), 10)}, r"2 \.\. 10"),
    ({"seeds": None}, "got none"), ({"seeds": range(5)}, "got 5"), ({"dtype": torch.bfloat16}, "float32 or float64"),
])
def test_settings_that_the_bound_of_a_chain_cannot_use_are_refused(settings, message):
    arguments = {"k": levels(), "levels": 8, "seeds": range(4)} | settings
    with pytest.raises(ValueError, match=message):
        chain_elbo(denoiser(), **arguments)


def test_numbers_that_are_not_finite_and_reduced_precision_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        elbo(denoiser(), torch.full((4, 2, 3), torch.inf), seeds=range(4))
    with pytest.raises(ValueError, match="float32 or float64"):
        elbo(denoiser(), torch.zeros(4, 2, 3, dtype=torch.bfloat16), seeds=range(4))
    model = denoiser()
    model.autocast = torch.bfloat16
    bounds = (lambda: elbo(model, torch.zeros(4, 2, 3), 4, range(4)),
              lambda: chain_elbo(model, levels(), 8, steps=4, clip_x0=True, seeds=range(4)))
    for bound in bounds:
        with pytest.raises(ValueError, match="precision"):
            bound()
    model.autocast = None
    nn.init.constant_(next(model.network.parameters()), math.nan)
    for bound in bounds:
        with pytest.raises(ArithmeticError, match=r"not finite at t = [01]"):
            bound()


@pytest.mark.slow
def test_the_chains_bound_on_a_density_is_nearly_the_density_for_an_exact_score():
    model = GaussianMixture(VPSDE(), torch.tensor([[0.4, -0.2, 0.1]]), torch.tensor([0.3]))
    x = model.sample(64, 0.0, torch.Generator().manual_seed(0))
    gaps = {n: model.log_prob(x) - chain_elbo(model, x, None, steps=n, draws=4, seeds=range(64)).value for n in (1000, 50)}
    assert -0.01 < float(gaps[1000].mean()) < 0.1 < float(gaps[50].mean())
    with pytest.raises(ValueError, match="not finite"):
        chain_elbo(model, torch.full((2, 3), torch.nan), None, seeds=range(2))
    with pytest.raises(ValueError, match="float32 or float64"):
        chain_elbo(model, torch.ones(2, 3, dtype=torch.long), None, seeds=range(2))
