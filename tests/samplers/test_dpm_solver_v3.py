"""DPM-Solver-v3: its special cases, its order, the integrals of its bias, and the statistics of known models."""

from functools import cache

import numpy as np
import pytest
import torch

from scorefield.evaluation.statistics import measure
from scorefield.models import GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import write_arrays
from scorefield.samplers import DPMSolverV3, Statistics, make_sampler, prior_sample
from scorefield.sde_lib import VESDE, VPSDE, CosineVPSDE

SDES = [VPSDE(), CosineVPSDE(), VESDE()]
PLAIN = {"lower_order_final": False}


def mixture(sde):
    means = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(sde, means, torch.full((5,), 0.05))


def ends(sde):
    return sde.half_log_snr(torch.tensor([sde.t_max, sde.t_sample], dtype=torch.float64))


def statistics(sde, l, s, b=lambda lam: 0 * lam, nodes=2):      # noqa: E741      # the paper's letter
    """Of functions of lambda, alike for all four elements."""
    low, high = ends(sde).tolist()
    lam = torch.linspace(low, high, nodes, dtype=torch.float64)
    return Statistics(lam, *((of(lam) + 0 * lam)[:, None].repeat(1, 4) for of in (l, s, b)), repr(sde))


def starts(sde):
    return prior_sample(sde, (4,), range(20), dtype=torch.float64)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_with_l_one_and_no_scaling_it_is_exponential_adams_for_the_data(sde, order):
    made = statistics(sde, lambda lam: 1.0, lambda lam: 0.0)
    mine = DPMSolverV3.of(made, steps=9, order=order, correct=False, **PLAIN)(mixture(sde), starts(sde))
    adams = make_sampler("auto", order=order, steps=9, grid="logsnr", data_std=0.0, correct=False)(mixture(sde), starts(sde))
    torch.testing.assert_close(mine.x, adams.x, rtol=0, atol=1e-11)
    assert mine.nfe == 9


@pytest.mark.parametrize("sde", SDES)
def test_with_the_coefficients_of_auto_it_is_auto(sde):
    """l of data N(0, I) is not linear between nodes, so as many are taken as 1e-7 needs."""
    def of(lam):
        return torch.exp(-2 * lam) / (1 + torch.exp(-2 * lam))

    made = statistics(sde, of, lambda lam: of(lam) - 1, nodes=8001)
    mine = DPMSolverV3.of(made, steps=10, order=2, correct=False, **PLAIN)(mixture(sde), starts(sde)).x
    auto = make_sampler("auto", order=2, steps=10, grid="logsnr", correct=False)(mixture(sde), starts(sde)).x
    torch.testing.assert_close(mine, auto, rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", [2, 3])
def test_the_corrector_puts_the_polynomial_at_the_predicted_point(order):
    """The paper's equations with l = 1 and s = b = 0, written anew: f = -x_0, and a corrected point keeps its f."""
    sde, n = VPSDE(), 7
    model, x = mixture(sde), starts(sde)
    made = DPMSolverV3.of(statistics(sde, lambda lam: 1.0, lambda lam: 0.0), steps=n, order=order, **PLAIN)
    times = made.times(model)
    alpha, sigma, lam = sde.alpha(times), sde.sigma(times), sde.half_log_snr(times)
    places, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(40))

    def stepped(x, i, nodes, values):
        half = (lam[i + 1] - lam[i]) / 2
        at = lam[i] + half * (1 + places)
        total = 0
        for j in nodes:
            lagrange = torch.ones_like(at)
            for k in nodes:
                lagrange = lagrange if k == j else lagrange * (at - lam[k]) / (lam[j] - lam[k])
            total = total + half * (weights * torch.exp(at - lam[i]) * lagrange).sum() * values[j]
        return alpha[i + 1] * torch.exp(lam[i] - lam[i + 1]) * (x / alpha[i] + total)

    x_0, before = {}, None
    for i in range(n):
        x_0[i] = (x - sigma[i] * model.eps(x, times[i])) / alpha[i]
        if i > 1:      # the first step is of order 1, which has no corrector
            nodes = [i, *range(i - 1, i - min(order, i), -1)]
            x = stepped(before, i - 1, nodes, x_0)
        before = x
        x = stepped(x, i, range(i, i - min(order, i + 1), -1), x_0)
    torch.testing.assert_close(made(model, starts(sde)).x, x, rtol=0, atol=1e-10)


def test_the_bias_is_integrated_exactly_for_a_flow_of_which_it_is_all():
    """With any constant l and s, and b = f' - s f along one path of a point mass, g is constant along it."""
    sde = VPSDE()
    model = GaussianMixture(sde, torch.full((1, 4), 0.7), torch.full((1,), 1e-12))
    nodes = 4001
    low, high = ends(sde).tolist()
    lam = torch.linspace(low, high, nodes, dtype=torch.float64)
    l, s = 0.6, -0.3      # noqa: E741
    y = 0.7 + 1.3 * torch.exp(-lam)      # the path x = alpha 0.7 + sigma 1.3, whose eps is 1.3
    f = 1.3 * torch.exp(-lam) - l * y
    slope = -1.3 * torch.exp(-lam) * (1 - l)
    made = Statistics(lam, *(v[:, None].repeat(1, 4) for v in (0 * lam + l, 0 * lam + s, slope - s * f)), repr(sde))
    x_T = (sde.alpha(torch.tensor(sde.t_max)) * 0.7 + sde.sigma(torch.tensor(sde.t_max)) * 1.3).double().expand(1, 4)
    for order in (1, 3):
        result = DPMSolverV3.of(made, steps=4, order=order)(model, x_T)
        t = result.times[-1]
        torch.testing.assert_close(result.x, (sde.alpha(t) * 0.7 + sde.sigma(t) * 1.3).expand(1, 4), rtol=0, atol=1e-5)


@cache
def solved():
    return make_sampler("auto", order=3, steps=300)(mixture(VPSDE()), starts(VPSDE())).x


@pytest.mark.costly
@pytest.mark.parametrize("order, correct, least", [(2, False, 1.7), (1, False, 0.8), (3, False, 2.6), (3, True, 2.6)])
def test_it_has_the_order_that_it_says(order, correct, least):
    """l and s go from those of data prediction to those of noise prediction, so first steps, of lower order, err little."""
    sde = VPSDE()
    made = statistics(sde, lambda lam: torch.sigmoid(-2 * lam), lambda lam: -0.7 * torch.sigmoid(2 * lam),
                      lambda lam: 0.1 * torch.sigmoid(3 * lam), nodes=1001)
    reference = solved()
    errors = [float((DPMSolverV3.of(made, steps=n, order=order, correct=correct, **PLAIN)(mixture(sde), starts(sde)).x
                     - reference).square().mean(1).sqrt().median()) for n in (40, 80)]
    assert np.log2(errors[0] / errors[1]) > least, errors


def test_statistics_of_gaussian_data_are_those_by_formula():
    """Data N(0, diag v): sigma d eps / dx = sigma^2 / (alpha^2 v + sigma^2) is l."""
    sde, std = VPSDE(), torch.tensor([0.3, 1.0, 2.0])
    from scorefield.models.analytic_full import FullMixture

    model = FullMixture(sde, torch.zeros(1, 3), torch.diag(std.square())[None])
    made, evaluations = measure(model, (3,), starts=32, dense=16, dtype=torch.float64)
    t = sde.time(made.lam)
    wanted = sde.sigma(t).square()[:, None] / (sde.alpha(t).square()[:, None] * std.double().square()
                                              + sde.sigma(t).square()[:, None])
    torch.testing.assert_close(made.l, wanted, rtol=1e-6, atol=1e-7)
    assert evaluations == 32 * (4 * 16 + 3)


@pytest.mark.parametrize("sde", SDES)
def test_measured_statistics_make_few_steps_better_than_dpm_solver_plus_plus(sde):
    model = mixture(sde)
    made, _ = measure(model, (4,), starts=64, dense=48, dtype=torch.float64)
    x_T = starts(sde)
    end = make_sampler("auto", order=3, steps=120)(model, x_T).x

    def median(sampler):
        return float((sampler(model, x_T).x - end).square().mean(1).sqrt().median())

    for steps in (8, 12):
        assert median(DPMSolverV3.of(made, steps=steps)) < 0.7 * median(make_sampler("dpm_solver++", steps=steps))


def test_statistics_in_a_file_are_the_same_and_refuse_what_they_were_not_made_for(tmp_path):
    sde, path = VPSDE(), tmp_path / "v3.npz"
    made, _ = measure(mixture(sde), (4,), starts=16, dense=8, dtype=torch.float64)
    write_arrays(path, made.stored())
    read = make_sampler("dpm_solver_v3", steps=4, statistics=str(path))(mixture(sde), starts(sde))
    assert torch.equal(read.x, DPMSolverV3.of(made, steps=4)(mixture(sde), starts(sde)).x)
    for options, words in (({}, "needs statistics of the model"), ({"statistics": str(tmp_path / "no")}, "there are no st"),
                           ({"statistics": str(path), "order": 4}, "order must lie between 1 and 3")):
        with pytest.raises(ArgumentError, match=words):
            make_sampler("dpm_solver_v3", **options)
    with pytest.raises(ArgumentError, match="measured for VPSDE.*, and the model has CosineVPSDE"):
        DPMSolverV3.of(made)(mixture(CosineVPSDE()), starts(sde))
    with pytest.raises(ArgumentError, match="cover times from .* to 1, and the grid goes from 1 to 1e-05"):
        DPMSolverV3.of(made, t_end=1e-5)(mixture(sde), starts(sde))
    other = GaussianMixture(sde, torch.zeros(1, 3), torch.ones(1))
    with pytest.raises(ArgumentError, match=r"of samples of shape \(4,\), and these have \(3,\)"):
        DPMSolverV3.of(made)(other, prior_sample(sde, (3,), range(2)))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArgumentError, match="is damaged"):
        make_sampler("dpm_solver_v3", statistics=str(path))
    for options, words in (({"starts": 4}, "at least 16 starts"), ({"dense": 2}, "dense must be at least 4")):
        with pytest.raises(ArgumentError, match=words):
            measure(mixture(sde), (4,), **options)
