import pytest
import torch

from scorefield.samplers import GRIDS, make_grid
from scorefield.sde_lib import VPSDE, DDPMChain

CONTINUOUS = [name for name in GRIDS if not name.startswith("strided")]


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_grid_runs_from_the_last_time_to_t_end_on_every_sde(name, steps, any_sde):
    for t_end in (1e-3, any_sde.t_min):
        times = make_grid(name, any_sde, steps, t_end)
        assert times.dtype == torch.float64 and len(times) == steps + 1
        assert times[0] == any_sde.t_max and times[-1] == t_end and bool((times.diff() < 0).all())


@pytest.mark.parametrize("name, map_of", [
    ("uniform", lambda sde, t: t),
    ("quadratic", lambda sde, t: t.sqrt()),
    ("logsnr", lambda sde, t: sde.half_log_snr(t)),
    ("sinh", lambda sde, t: torch.asinh(sde.half_log_snr(t) / 0.8)),
    ("karras", lambda sde, t: (sde.sigma(t) / sde.alpha(t)) ** (1 / 7)),
])
def test_each_grid_has_equal_steps_in_its_own_variable(name, map_of, any_sde):
    steps = map_of(any_sde, make_grid(name, any_sde, 25, 1e-3)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(25), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("grid, steps, t_end, message", [
    ("uniform", 0, 1e-3, "steps"),
    ("uniform", 10, 0.0, "t_end"),
    ("uniform", 10, 1.0, "t_end"),
    ("uniforms", 10, 1e-3, "uniform, quadratic, logsnr, karras, sinh, strided"),
    ([1.0, 0.5, 0.5, 0.1], 3, 1e-3, "must decrease"),
    ([1.1, 0.5], 1, 1e-3, "within"),
    ([1.0, 0.0], 1, 1e-3, "within"),
    ([1.0], 0, 1e-3, "must decrease"),
    ([1.0, float("nan"), 0.1], 2, 1e-3, "must decrease"),
])
def test_a_grid_that_cannot_be_is_refused(grid, steps, t_end, message):
    with pytest.raises(ValueError, match=message):
        make_grid(grid, VPSDE(), steps, t_end)


def test_strided_grids_stand_on_the_indices_of_the_chain():
    sde = DDPMChain.from_schedule("linear", 200).to_sde()
    for name, indices in (("strided", [199, 149, 100, 50, 0]), ("strided_leading", [160, 120, 80, 40, 0]),
                          ("strided_trailing", [199, 159, 119, 79, 39])):
        times = make_grid(name, sde, 4, sde.t_sample)
        assert (times * 200 - 1).round().long().tolist() == indices, name
    torch.testing.assert_close(make_grid("strided", sde, 199, sde.t_sample),
                               torch.arange(200, 0, -1, dtype=torch.float64) / 200)
    with pytest.raises(ValueError, match="200 indices"):
        make_grid("strided", sde, 200, sde.t_sample)
