"""Every option of every sampler, at a value that is not its default, against its paper's formulas (paper_formulas.py).

CASES says which options each comparison sets; the last test asks that no option of any sampler is missing from it.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from paper_formulas import (
    Problem,
    adaptive,
    analytic,
    ancestral,
    auto,
    corrected,
    ddim,
    deis,
    edm,
    er_sde,
    euler,
    euler_maruyama,
    fixed,
    heun,
    ipndm,
    multistep,
    ode,
    on_a_path,
    quadratic,
    restart,
    reverse_diffusion,
    rk4,
    sa_solver,
    shifted,
    singlestep,
    stepwise,
    unipc,
)

from scorefield.samplers import SAMPLERS, make_sampler, sampler_options
from scorefield.samplers.reference_sde import BrownianPaths


def defaults(name):
    return {option: field.default for option, field in sampler_options(name).items()}


def end(steps):
    return {"steps": steps, "grid": "quadratic", "t_end": 0.02, "denoise": True}


TOLERANT = {"t_end": 0.03, "denoise": True, "rtol": 1e-3, "atol": 1e-4}
CASES = [
    ("ddim", {"eta": 0.5} | end(6), stepwise(ddim)),
    ("ddim", {"eta": 1.0, "variance": "beta"} | end(6), stepwise(ddim)),
    *[(name, {"variance": "analytic", "last_noise": 0.02} | more | end(6), stepwise(analytic))
      for name, more in (("ancestral", {}), ("ddim", {"eta": 0.5}))],
    ("euler_maruyama", {"eta": 0.6} | end(6), stepwise(euler_maruyama)),
    ("reverse_diffusion", end(6), stepwise(reverse_diffusion)),
    ("ancestral", {"variance": "beta"} | end(6), stepwise(ancestral)),
    *[("ancestral", {"variance": variance, "mean_shift": True, "steps": 6, "grid": "quadratic", "t_end": 0.02},
       stepwise(shifted)) for variance in ("beta", "beta_tilde")],
    *[("predictor_corrector", {"predictor": name, "snr": 0.3, "corrector_steps": 2, "corrector": corrector} | end(6),
       corrected(rule)) for name, rule in (("euler_maruyama", euler_maruyama), ("ancestral", ancestral))
      for corrector in ("annealed", "langevin")],
    ("predictor_corrector", {"corrector_steps": 0} | end(6), corrected(reverse_diffusion)),
    ("langevin", {"snr": 0.3, "corrector_steps": 3, "corrector": "langevin"} | end(6), corrected(None)),
    *[(name, {"scaling": scaling} | end(6), fixed(step))
      for name, step in (("euler", euler), ("heun", heun), ("rk4", rk4)) for scaling in ("ve", "x")],
    *[("ode", {"scaling": scaling, "method": method, "points": 4} | TOLERANT, ode)
      for scaling in ("ve", "x") for method in ("bosh3", "dopri8")],
    *[("edm", {"churn": churn, "s_min": 0.1, "s_max": 3.0, "s_noise": 0.9, "steps": 8, "grid": "quadratic",
               "t_end": 0.02}, edm) for churn in (2.0, 10.0)],
    *[("edm", {"churn": churn, "steps": 8, "grid": "quadratic"}, edm) for churn in (0.0, 2.0)],
    *[("auto", {"order": order, "data_std": std, "correct": correct} | end(7), auto)
      for order, std, correct in ((3, 0.6, False), (1, 0.0, True), (4, 2.0, True))],
    *[(name, {"order": order, "method": "multistep"} | options, multistep(kind))
      for name, kind in (("dpm_solver", "noise"), ("dpm_solver++", "data")) for order, options in (
          (1, end(6)), (2, {"lower_order_final": False} | end(6)), (3, {"lower_order_final": True} | end(12)),
          (3, {"published": True} | end(9)), (3, end(10)))],
    *[("dpm_solver++", {"order": order, "method": "sde", "lower_order_final": False} | end(6), multistep("data"))
      for order in (1, 2)],
    *[(name, {"order": max(orders), "method": "singlestep"} | end(sum(orders)), singlestep(kind, orders))
      for name, kind in (("dpm_solver", "noise"), ("dpm_solver++", "data"))
      for orders in ([1] * 4, [2, 2, 2, 1], [2, 2], [3, 3, 1], [3, 2, 1], [3, 3, 2])],
    *[(name, {"order": 3, "method": "singlestep", "grid": [1.0, 0.6, 0.3, 0.05]}, singlestep(kind, [3, 3, 3]))
      for name, kind in (("dpm_solver", "noise"), ("dpm_solver++", "data"))],
    *[(name, {"order": order, "method": "adaptive"} | TOLERANT, adaptive(kind))
      for name, kind in (("dpm_solver", "noise"), ("dpm_solver++", "data")) for order in (2, 3)],
    *[("unipc", {"order": order, "prediction": prediction, "variant": variant, "lower_order_final": final} | end(7), unipc)
      for order in (1, 2, 3) for prediction in ("noise", "data") for variant in ("bh1", "bh2") for final in (True, False)],
    *[("deis", {"order": order, "variable": variable} | end(7), deis)
      for order in (1, 2, 4) for variable in ("t", "rho", "log_rho")],
    *[("ipndm", {"order": order} | end(7), ipndm) for order in (1, 2, 3)],
    *[(name, {"grid": [1.0, 0.8, 0.6, 0.3, 0.1, 0.05], "order": 4}, reference)
      for name, reference in (("deis", deis), ("ipndm", ipndm))],
    *[("sa_solver", {"order": order, "correct": correct, "tau": tau} | end(7), sa_solver)
      for order, correct, tau in ((1, False, 1.0), (2, True, 0.7), (4, True, 1.0), (2, True, 0.0))],
    ("sa_solver", {"s_min": 0.2, "s_max": 3.0} | end(9), sa_solver),
    *[("er_sde", {"order": order, "phi": phi} | end(7), er_sde) for order in (1, 2, 3) for phi in ("er", "sde", "ode")],
    *[("restart", {"intervals": intervals, "steps": 8, "grid": "quadratic", "t_end": 0.02}, restart)
      for intervals in ("4,1,0.2,1.0", "3,3,0.3,0.9;2,1,1.5,4.0")],
    *[("torchsde", {"method": method, "steps": 8, "eta": 0.5, "t_end": 0.02, "denoise": True}, on_a_path(8))
      for method in ("euler", "milstein")],
]
NAMES = [f"{name}-{i}" for i, (name, *_) in enumerate(CASES)]
CAPPED = [("dpm_solver", {"method": "adaptive"}, 2), ("dpm_solver++", {"method": "adaptive"}, 2), ("ode", {}, 1)]


@pytest.mark.parametrize("name, options, reference", CASES, ids=NAMES)
def test_it_does_with_its_options_what_its_paper_says(name, options, reference):
    p, o = Problem(name, options), SimpleNamespace(**defaults(name) | options)
    times = getattr(o, "grid", None)
    if not isinstance(times, list):
        times = [1.0, o.t_end] if times is None else quadratic(o.steps, p.end(o))
    expected = reference(p, p.x_T, times, o)
    if o.denoise:
        expected = p.x0(expected, times[-1])
    torch.testing.assert_close(p.run(name, options).x, expected, rtol=1e-9, atol=1e-9)


def changed(name, options):
    """The options whose value in a case is not the default."""
    return [option for option, value in options.items() if value != defaults(name)[option]]


CASE_OF = {(name, option): options for name, options, _ in CASES for option in changed(name, options)}


@pytest.mark.parametrize("name, option", CASE_OF)
def test_no_option_is_at_a_value_that_leaves_the_result_alone(name, option):
    """The comparison above would not see an option that is ignored, if its value gave what the default gives."""
    options = CASE_OF[name, option]
    problem, default = Problem(name, options), {key: value for key, value in options.items() if key != option}
    try:
        ours, others = (make_sampler(name, **settings).times(problem.model) for settings in (options, default))
        if len(ours) != len(others):
            return
        result, other = problem.run(name, options), problem.run(name, default)
    except ValueError:      # another option asks for this one
        return
    assert float((other.x - result.x).abs().max()) > 1e-6


@pytest.mark.parametrize("name, options, at_once", CAPPED)
def test_the_cap_on_evaluations_lets_a_run_through_that_needs_no_more(name, options, at_once):
    """A step that has begun is ended; `at_once` is how many evaluations the last one takes."""
    problem = Problem(name, options)
    free = problem.run(name, options)
    assert torch.equal(problem.run(name, options | {"max_evaluations": free.nfe}).x, free.x)
    with pytest.raises(ArithmeticError, match="raise .*max_evaluations"):
        problem.run(name, options | {"max_evaluations": free.nfe - at_once})


def test_the_points_of_the_adaptive_flow_are_equally_spaced_in_time():
    for options, expected in (({"points": 5}, [1.0, 0.8, 0.6, 0.4, 0.2]), ({}, [1.0, 0.2])):
        times = Problem("ode", options).run("ode", options | {"t_end": 0.2}).times
        torch.testing.assert_close(times, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.5, 1.3])
def test_torchsde_goes_to_the_path_of_a_fine_euler_maruyama(eta):
    options = {"steps": 64, "eta": eta, "t_end": 0.02}
    p = Problem("torchsde", options)
    fine = on_a_path(2048)(p, p.x_T, [1.0, 0.02], SimpleNamespace(eta=eta))
    assert float((p.run("torchsde", options).x - fine).abs().max()) < 0.01


def test_brownian_paths_have_the_variance_of_their_time_and_so_do_their_integrals():
    """Of w and its integral u from the start of a step h: variances h and h^3/3, covariance h^2/2 (independent steps)."""
    paths, h = BrownianPaths([1], 0.5, 40_000, torch.float64, torch.device("cpu")), 0.125
    (w, u), (later, _) = (paths(start, start + h, return_U=True) for start in (0.125, 0.25))
    moments = [(w * w).mean(), (u * u).mean(), (w * u).mean(), (later * w).mean()]
    exact = [h, h**3 / 3, h**2 / 2, 0.0]
    spread = [h, h**3 / 3, h**2, h]
    for value, expected, scale in zip(moments, exact, spread, strict=True):
        assert abs(float(value) - expected) < 5 * scale * math.sqrt(2 / 40_000)


def test_every_option_of_every_sampler_is_compared():
    """EDM and restarts have but one value of denoise (test_deterministic.py)."""
    covered = {*CASE_OF, *((name, "max_evaluations") for name, *_ in CAPPED), ("edm", "denoise"), ("restart", "denoise")}
    assert covered == {(name, option) for name in SAMPLERS for option in sampler_options(name)}
