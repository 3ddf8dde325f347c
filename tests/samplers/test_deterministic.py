"""Deterministic samplers against ground truth: the authors' own results, orders of convergence, diffusers."""

import numpy as np
import pytest
import torch

from scorefield.models import GaussianMixture
from scorefield.samplers import SAMPLERS, make_sampler, prior_sample
from scorefield.sde_lib import VESDE, VPSDE, CosineVPSDE, DDPMChain, FlowSDE, SubVPSDE

T_END = 0.01


def settings_of(key):
    """Sampler and options of an entry of the oracle file."""
    name, *rest = key.split("|")
    words = [word for word in rest if "=" not in word]
    values = dict(word.split("=") for word in rest if "=" in word)
    options = {"t_end": float(values["t_end"])}
    if name == "edm_heun":
        return "edm", {"steps": int(values["steps"])}
    options |= {"steps": int(values["nfe"]), "grid": {"time_uniform": "uniform"}.get(values["grid"], values["grid"])}
    if name.startswith("dpm_solver"):
        options |= {"order": int(values["order"]), "method": words[0]}
        if words[0] == "multistep" and int(values["order"]) == 3:
            options["published"] = True
    if name == "unipc":
        options |= {"order": int(values["order"]), "prediction": words[0], "variant": words[1]}
    return name, options


@pytest.mark.parametrize("family, entries", [("ddim", 4), ("dpm_solver|multistep", 8), ("dpm_solver|singlestep", 8),
                                             ("dpm_solver++", 12), ("unipc", 24), ("edm_heun", 4)])
def test_end_points_are_those_of_the_reference_implementations(family, entries, oracle):
    model = GaussianMixture(VPSDE(), oracle["mu"], oracle["var"], oracle["weights"])
    keys = [key for key in oracle if key.startswith(family + "|")]
    assert len(keys) == entries
    for key in keys:
        name, options = settings_of(key)
        result = make_sampler(name, **options)(model, oracle["x_T"])
        assert float((result.x - oracle[key]).abs().max()) < 1e-9, key
        assert result.nfe == (2 * options["steps"] - 1 if name == "edm" else options["steps"]), key


SOLVERS = [
    ("ddim", {}, 1),
    *[("dpm_solver" + plus, {"order": k, "method": method}, k) for plus in ("", "++") for k in (1, 2, 3)
      for method in ("multistep", "singlestep")],
    *[("unipc", {"order": k, "prediction": p, "variant": b}, k + 1) for k in (1, 2, 3) for p in ("data", "noise")
      for b in ("bh1", "bh2")],
    *[(name, {"scaling": scaling}, k) for name, k in (("euler", 1), ("heun", 2), ("rk4", 4)) for scaling in ("x", "ve")],
    *[("auto", {"order": k, "data_std": std, "correct": corrector}, k + corrector) for k in (1, 2, 3)
      for std in (0.0, 1.0) for corrector in (False, True)],
    *[("deis", {"order": k, "variable": variable}, k) for k in (1, 2, 3) for variable in ("t", "rho", "log_rho")],
    *[("ipndm", {"order": k}, min(k, 2)) for k in (1, 2, 4)],      # its weights are those of equal steps in rho
    *[("sa_solver", {"order": k, "tau": 0.0, "correct": corrector}, k + corrector) for k in (1, 2, 3)
      for corrector in (False, True)],
    *[("er_sde", {"order": k, "phi": "ode"}, min(k, 2)) for k in (1, 2, 3)],      # its slope is a backward difference
]


@pytest.fixture(scope="module")
def smooth():
    """A mixture without fine structure, its start, and the flow's end solved tightly."""
    model = GaussianMixture(VPSDE(), torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]),
                            torch.tensor([0.3, 0.5, 0.4]), torch.tensor([1.0, 2.0, 1.5]))
    x_T = prior_sample(VPSDE(), (2,), range(16), dtype=torch.float64)
    return model, x_T, make_sampler("ode", method="dopri8", t_end=T_END, rtol=1e-13, atol=1e-13)(model, x_T).x


def slope(problem, name, steps, **options):
    model, x_T, exact = problem
    errors = [float((make_sampler(name, steps=n, t_end=T_END, grid="logsnr", **options)(model, x_T).x - exact)
                    .square().mean().sqrt()) for n in steps]
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize("name, options, order", SOLVERS)
def test_the_order_of_convergence_is_the_stated_one(name, options, order, smooth):
    steps = [80, 161, 320]      # single steps of order 3 end with one of order 2
    assert slope(smooth, name, steps, **options) > order - 0.15


@pytest.mark.slow
def test_the_order_of_edm_is_two(smooth):
    """To t = 0, whose exact end is that of a much finer grid."""
    model, x_T, _ = smooth
    exact = make_sampler("edm", steps=4000, t_end=1e-4)(model, x_T).x
    errors = [float((make_sampler("edm", steps=n, t_end=1e-4)(model, x_T).x - exact).square().mean().sqrt())
              for n in (60, 120, 240)]
    assert -np.polyfit(np.log([60, 120, 240]), np.log(errors), 1)[0] > 1.85


def test_the_published_third_order_update_is_of_order_two_and_the_corrected_of_three(smooth):
    for name in ("dpm_solver", "dpm_solver++"):
        assert 1.85 < slope(smooth, name, [80, 160, 320], order=3, published=True) < 2.3
        assert slope(smooth, name, [80, 160, 320], order=3) > 2.8


@pytest.mark.parametrize("plus", ["", "++"])
@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_dpm_solver_is_more_accurate_at_smaller_tolerances(plus, order, smooth):
    model, x_T, exact = smooth
    errors, costs = [], []
    for tolerance in (0.05, 0.001):
        result = make_sampler("dpm_solver" + plus, method="adaptive", order=order, rtol=tolerance,
                              atol=tolerance / 10, t_end=T_END)(model, x_T)
        errors.append(float((result.x - exact).square().mean().sqrt()))
        costs.append(result.nfe)
    assert errors[1] < errors[0] / 4 and errors[1] < 0.01 and costs[1] > costs[0]
    with pytest.raises(ArithmeticError, match="stopped after .* evaluations"):
        make_sampler("dpm_solver" + plus, method="adaptive", order=order, max_evaluations=8)(model, x_T)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("ode", "torchsde")])
@pytest.mark.parametrize("grid", ["uniform", "quadratic", "logsnr", "karras", "sinh", "strided", [0.99, 0.6, 0.3, 0.05]])
def test_every_sampler_runs_on_every_grid_and_sde(name, grid, mixture):
    if name == "ancestral" and isinstance(mixture.sde, SubVPSDE | FlowSDE):
        pytest.skip("ancestral sampling refuses sub-VP and flow, which are no chain's limits")
    x_T = prior_sample(mixture.sde, (1, 2, 1), range(4), dtype=torch.float64)
    options = {"grid": grid} if not isinstance(grid, str) else {"grid": grid, "steps": 12}
    options |= {"order": 3} if name == "ipndm" else {}
    result = make_sampler(name, **options)(mixture, x_T, seeds=range(4))
    assert result.x.shape == x_T.shape and bool(result.x.isfinite().all())
    if name in ("auto", "ddim", "deis", "dpm_solver", "dpm_solver++", "er_sde", "euler", "ipndm", "sa_solver", "unipc"):
        assert result.nfe == (12 if isinstance(grid, str) else 3)


@pytest.mark.parametrize("name, settings, message", [
    ("dpm_solver", {"order": 4}, "order"), ("dpm_solver", {"method": "sde"}, "method"),
    ("dpm_solver", {"order": 3, "steps": 2}, "order 3 needs at least 3 steps"),
    ("dpm_solver", {"order": 3, "steps": 2, "method": "singlestep"}, "at least 3 evaluations"),
    ("dpm_solver", {"rtol": 0.1}, "takes no 'rtol'"), ("dpm_solver", {"published": True}, "takes no 'published'"),
    ("dpm_solver", {"method": "adaptive", "steps": 30}, "takes no 'steps'"),
    ("dpm_solver++", {"method": "singlestep", "lower_order_final": True}, "takes no 'lower_order_final'"),
    ("ddim", {"grid": [1.0, 0.5, 0.1], "steps": 7}, "steps"), ("ddim", {"grid": [1.0, 0.1], "t_end": 0.01}, "t_end"),
    ("ddim", {"grid": "strided_leading", "t_end": 0.01}, "t_end"), ("auto", {"order": 5, "steps": 2}, "at least 5 steps"),
    ("edm", {"steps": 0}, "got 0"), ("edm", {"s_noise": -0.1}, "s_noise"), ("edm", {"s_min": -0.1}, "s_min"),
    ("edm", {"s_min": 2.0, "s_max": 1.0}, "s_max"), ("edm", {"churn": float("inf")}, "churn"),
    *[("dpm_solver", {"method": "adaptive", option: value}, "rtol and atol") for option, values in (
        ("rtol", (0.0, 1.0)), ("atol", (0.0, 1.0)), ("max_evaluations", (0,))) for value in values],
    ("dpm_solver++", {"order": 3, "method": "sde"}, "order 1 or 2"),
    ("dpm_solver", {"order": 1, "method": "adaptive"}, "order 2 or 3"), ("unipc", {"order": 0}, "order"),
    ("deis", {"variable": "x"}, "t, rho, log_rho"), ("deis", {"order": 5}, "order"), ("ipndm", {"steps": 3}, "at least 4"),
    ("sa_solver", {"tau": -1.0}, "tau"), ("sa_solver", {"s_min": 2.0, "s_max": 1.0}, "s_max"),
    ("sa_solver", {"order": 4, "steps": 3}, "at least 4"), ("er_sde", {"phi": "x"}, "er, sde, ode"),
    ("er_sde", {"order": 4}, "order"), ("er_sde", {"steps": 2}, "at least 3"), ("restart", {"intervals": "3,2"}, "N,K"),
    ("restart", {"intervals": "3,2,0.5,0.1"}, "N,K"), ("restart", {"intervals": "3,2,1,1e5"}, "below the grid's first"),
    ("restart", {"steps": 1}, "no level near"), ("restart", {"denoise": True}, "denoise"),
    ("unipc", {"order": 3, "steps": 2}, "order 3 needs at least 3 steps"), ("unipc", {"variant": "bh3"}, "variant"),
    ("unipc", {"prediction": "v"}, "prediction"), ("edm", {"churn": -1.0}, "churn"),
    ("edm", {"denoise": True}, "denoise"), ("euler", {"scaling": "log"}, "scaling"), ("auto", {"order": 9}, "order"),
    ("auto", {"data_std": -1.0}, "data_std"), ("ddim", {"steps": 0}, "steps"), ("rk4", {"t_end": 1.0}, "t_end"),
])
def test_settings_that_cannot_be_are_refused_before_the_first_evaluation(name, settings, message, mixture):
    with pytest.raises(ValueError, match=message):
        make_sampler(name, **settings)(mixture, None)


@pytest.mark.parametrize("name, options", [
    ("unipc", {}), ("auto", {}), ("dpm_solver", {}), ("dpm_solver++", {"method": "singlestep"})])
def test_as_many_steps_as_the_order_are_enough(name, options, mixture):
    x_T = prior_sample(mixture.sde, (2,), range(2), dtype=torch.float64)
    assert make_sampler(name, order=3, steps=3, **options)(mixture, x_T).nfe == 3


def test_limits_of_settings_are_taken():
    make_sampler("dpm_solver", method="adaptive", max_evaluations=1)
    make_sampler("edm", churn=1.0, s_min=1.0, s_max=1.0, s_noise=0.0)
    for name in ("ddim", "euler_maruyama", "torchsde"):
        make_sampler(name, eta=1.0)
    for name in ("euler_maruyama", "torchsde"):
        make_sampler(name, eta=100.0)


def test_a_list_of_times_may_be_told_the_steps_and_the_end_that_it_has(mixture):
    grid = [mixture.sde.t_max, 0.6, 0.3, 0.05]
    for options in ({}, {"steps": 3}, {"t_end": 0.05}):
        assert make_sampler("ddim", grid=grid, **options).times(mixture).tolist() == grid


@pytest.mark.parametrize("steps, order", [(2, 2), (14, 2), (15, 3), (40, 3)])
def test_the_default_order_of_auto_follows_from_the_steps(steps, order, mixture):
    x_T = prior_sample(mixture.sde, (1, 2, 1), range(4), dtype=torch.float64)
    default, chosen = (make_sampler("auto", steps=steps, **o)(mixture, x_T).x for o in ({}, {"order": order}))
    assert torch.equal(default, chosen)


def mixture_16d(sde, seed):
    """The 16-D mixture of the benchmark, and its start."""
    rng = np.random.default_rng(seed)
    mu, std, weights = rng.normal(size=(8, 16)), rng.uniform(0.15, 0.45, 8), rng.uniform(0.5, 1.5, 8)
    x_T = torch.from_numpy(np.random.default_rng(123).normal(size=(64, 1, 4, 4))) * sde.prior.std
    return GaussianMixture(sde, *(torch.from_numpy(a) for a in (mu, std**2, weights))), x_T


@pytest.mark.slow
def test_the_default_is_several_times_more_accurate_than_dpm_solver_plus_plus_2m(oracle):
    """At 8 to 50 evaluations on mixtures: geometric mean of the ratios at most .25, none above .75, on any SDE."""
    problems = [(GaussianMixture(VPSDE(), oracle["mu"], oracle["var"], oracle["weights"]), oracle["x_T"])]
    problems += [mixture_16d(sde, seed) for sde, seed in ((VPSDE(), 0), (VPSDE(), 1), (VESDE(), 0), (CosineVPSDE(), 0))]
    ratios = []
    for model, x_T in problems:
        exact = make_sampler("ode", t_end=1e-3, rtol=1e-9, atol=1e-9)(model, x_T).x
        for n in (8, 10, 15, 20, 50):
            ours = make_sampler("auto", steps=n, t_end=1e-3)(model, x_T)
            theirs = make_sampler("dpm_solver++", steps=n, t_end=1e-3, lower_order_final=False)(model, x_T)
            assert ours.nfe == theirs.nfe == n
            ratios.append(float((ours.x - exact).norm() / (theirs.x - exact).norm()))
    assert np.exp(np.mean(np.log(ratios))) < 0.25 and max(ratios) < 0.75


def test_churn_keeps_the_marginals():
    model = GaussianMixture(VPSDE(), torch.zeros(1, 16), torch.tensor([0.25]))
    x_T = prior_sample(VPSDE(), (16,), range(1000), dtype=torch.float64)
    result = make_sampler("edm", steps=200, churn=40.0, t_end=1e-4)(model, x_T, seeds=range(1000))
    assert result.nfe == 399 and float(result.x.var()) == pytest.approx(0.25, rel=0.04)


# ---- diffusers -------------------------------------------------------------------------------------------------------


def diffusers_run(scheduler, model, chain, x_T, steps):
    """diffusers' loop with the exact eps at its integer labels."""
    scheduler.set_timesteps(steps)
    x = x_T.clone()
    for label in scheduler.timesteps:
        eps = model.eps(x, (label.double() + 1) / chain.steps)
        x = scheduler.step(eps, label, x).prev_sample
    return x


@pytest.fixture(scope="module")
def ddpm():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is a test extra: pip install '.[test]' in a clone")
    chain = DDPMChain.from_schedule("linear", 1000)
    model = GaussianMixture(chain.to_sde(), torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]),
                            torch.tensor([0.04, 0.1, 0.02]))
    x_T = prior_sample(VPSDE(), (2,), range(8), dtype=torch.float64)
    common = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    return diffusers, chain, model, x_T, common


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_agrees_with_diffusers_on_its_strided_grids(spacing, ddpm):
    diffusers, chain, model, x_T, common = ddpm
    scheduler = diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing)
    theirs = diffusers_run(scheduler, model, chain, x_T, 20)
    sampler = make_sampler("ddim", steps=19, grid=f"strided_{spacing}", denoise=True)
    assert (sampler.times(model) * 1000 - 1).round().long().tolist() == scheduler.timesteps.tolist()
    result = sampler(model, x_T)
    assert result.nfe == 20
    torch.testing.assert_close(result.x, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_multistep_dpm_solver_agrees_with_diffusers(algorithm, order, ddpm):
    diffusers, chain, model, x_T, common = ddpm
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **common, algorithm_type=algorithm, solver_order=order, lower_order_final=False, timestep_spacing="linspace",
        final_sigmas_type="sigma_min")
    theirs = diffusers_run(scheduler, model, chain, x_T, 20)
    times = [*((scheduler.timesteps.double() + 1) / 1000).tolist()]
    if times[-1] > 1 / 1000:
        times.append(1 / 1000)
    name = "dpm_solver++" if algorithm == "dpmsolver++" else "dpm_solver"
    ours = make_sampler(name, order=order, grid=times, lower_order_final=False, published=order == 3)(model, x_T)
    torch.testing.assert_close(ours.x, theirs, rtol=2e-4, atol=2e-4)


def test_ddpm_ancestral_steps_agree_with_diffusers(ddpm):
    """The mean of each step, which noise hides: our rule against their step with its noise taken away."""
    diffusers, chain, model, x_T, common = ddpm
    scheduler = diffusers.DDPMScheduler(**common, clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(1000)
    for index in (999, 500, 37):
        t, s = (torch.tensor([index + 1, index], dtype=torch.float64) / 1000)
        sampler = make_sampler("ancestral", grid=[float(t), float(s)])
        keep, of_eps, of_noise = sampler.coefficients(model.sde, torch.stack([t, s]))
        eps = model.eps(x_T, t)
        generator = torch.Generator().manual_seed(0)
        theirs = scheduler.step(eps, index, x_T, generator=generator).prev_sample
        z = torch.randn(x_T.shape, generator=torch.Generator().manual_seed(0), dtype=x_T.dtype)
        torch.testing.assert_close(keep * x_T + of_eps * eps + of_noise * z, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_agrees_with_diffusers(variant, order, ddpm):
    diffusers, chain, model, x_T, common = ddpm
    scheduler = diffusers.UniPCMultistepScheduler(
        **common, solver_order=order, solver_type=variant, predict_x0=True, lower_order_final=False,
        timestep_spacing="linspace", final_sigmas_type="sigma_min")
    theirs = diffusers_run(scheduler, model, chain, x_T, 20)
    times = [*((scheduler.timesteps.double() + 1) / 1000).tolist()]
    if times[-1] > 1 / 1000:
        times.append(1 / 1000)
    ours = make_sampler("unipc", order=order, variant=variant, grid=times)(model, x_T)
    torch.testing.assert_close(ours.x, theirs, rtol=2e-4, atol=2e-4)
