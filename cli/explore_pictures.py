"""What each picture of mode explore computes, shows and records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scorefield.cli.explore_task import POINTS, ROWS, Drawn, Task, numbers
from scorefield.data import Pixels
from scorefield.evaluation import explore
from scorefield.evaluation.explore.figures import cloud_rows, rate_distortion_figure, schedule_figure, stacked
from scorefield.evaluation.explore.langevin import published, published_start, shares
from scorefield.evaluation.explore.latents import check_invertible
from scorefield.evaluation.explore.sheets import Looks, sheet, time_names
from scorefield.evaluation.explore.swiss_roll import sliced_distance
from scorefield.evaluation.explore.units import data_scale, unit_range
from scorefield.evaluation.progress import Progress
from scorefield.likelihood import ChainELBO
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import GridSampler, Langevin, ProbabilityFlow, Sampler

TIMES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)      # of t_max
COUNTS = (10, 20, 50, 100, 200)                   # of steps, for inversions
FRONT, TOY = 16, 1280                             # examples of a curve; points of the published experiment


def progressive(task: Task) -> Drawn:
    n = task.value("num_samples", POINTS if task.of_points else ROWS)
    x_T, seeds = task.prior(n)
    film = explore.progressive(task.models, _sampler(task), x_T, seeds, task.frames, task.batch_size, True)
    data, noisy = task.shown(film.predictions), _shown_states(task, film.states, film.times)
    looks, names = task.looks(data[-1]), time_names(film.times.tolist(), task.of_points)
    if task.of_points:
        cells, rows = [list(noisy), list(data)], ["x_t", "predicted x_0"]
        picture = sheet(cells, looks, rows, names, behind=task.data)
        frames = [sheet([[a, b]], looks, (), ("x_t", "predicted x_0"), f"t = {t:.3f}", task.data)
                  for a, b, t in zip(noisy, data, film.times.tolist(), strict=True)]
    else:
        picture = sheet([list(data[:, i]) for i in range(n)], looks, _labels(task, n), names,
                        f"x_0 predicted at t by {task.owner}")
        frames = [sheet([list(a), list(b)], looks, ["x_t", "x_0"], (), f"t = {t:.3f}")
                  for a, b, t in zip(noisy, data, film.times.tolist(), strict=True)]
    error = (film.predictions - film.x).double().square().flatten(1).mean(1).sqrt()
    facts = {"times": numbers(film.times), "rmse_to_the_sample": numbers(error), "nfe": film.nfe}
    return Drawn(picture, facts, frames, f"{n} samples at {len(film.times)} times, {film.nfe} evaluations each")


def interpolate(task: Task) -> Drawn:
    chosen, ends = task.chosen_examples(2, exactly=True)
    times = task.value("times", (0.0, *(f * task.sde.t_max for f in TIMES)))
    result = explore.interpolate(task.models, _sampler(task), ends[0], ends[1], times, task.frames, task.seed,
                                 task.batch_size, True)
    data, own, used = task.shown(result.x), task.shown(ends), result.times.tolist()
    looks, weights = task.looks(own), [f"{w:.2g}" for w in result.weights]
    if task.of_points:
        picture = sheet([list(data)], looks, ["interpolations"], time_names(used), behind=task.data)
    else:
        picture = sheet([[own[0], *row, own[1]] for row in data], looks, time_names(used),
                        ["x_0", *weights, "x_0'"], f"examples {chosen[0]} and {chosen[1]} interpolated at t by {task.owner}")
    away = [float((row[[0, -1]] - ends).double().square().mean().sqrt()) for row in result.x]
    facts = {"numbers": chosen, "times": used, "weights": numbers(result.weights), "nfe": result.nfe,
             "rmse_of_the_ends_to_the_examples": away}
    return Drawn(picture, facts, line=f"examples {chosen[0]} and {chosen[1]} through {len(used)} times")


def shared_latents(task: Task) -> Drawn:
    chosen, x0 = task.chosen_examples(1, exactly=True)
    n = task.value("num_samples", 500 if task.of_points else ROWS)
    times = task.value("times", tuple(f * task.sde.t_max for f in TIMES))
    result = explore.shared_latents(task.models, _sampler(task), x0[0], times, n, task.seed, task.batch_size, True)
    data, used = task.shown(result.completions), result.times.tolist()
    latents = [task.shown(x, t) for x, t in zip(result.latents, used, strict=True)]
    own = task.shown(x0)
    looks = task.looks(own)
    if task.of_points:
        picture = cloud_rows([[x[None] for x in latents], list(data)], looks, [f"x_t of example {chosen[0]}", "completions"],
                             time_names(used), behind=task.data) if task.shape == (2,) else sheet(
            [list(data)], looks, ["completions"], time_names(used), behind=task.data)
    else:
        cells = [[own[0], x, *row] for x, row in zip(latents, data, strict=True)]
        picture = sheet(cells, looks, time_names(used), ["x_0", "x_t", *(f"{i + 1}" for i in range(n))],
                        f"completions of one x_t of example {chosen[0]} by {task.owner}")
    facts = {"numbers": chosen, "times": used, "spread": numbers(result.spread), "nfe": result.nfe}
    ends = f"spread {float(result.spread[0]):.3g} to {float(result.spread[-1]):.3g}"
    return Drawn(picture, facts, line=f"{n} completions at each of {len(used)} times, {ends}")


def slerp(task: Task) -> Drawn:
    n = task.value("num_samples", 50 if task.of_points else 4)
    x_T, _ = task.prior(2 * n)
    result = explore.slerp_samples(task.models, _sampler(task), x_T[0::2], x_T[1::2], task.frames, task.batch_size, True)
    data, weights = task.shown(result.x), [f"{w:.2g}" for w in result.weights]
    looks = task.looks(data[:, 0])
    if task.of_points:
        picture = sheet([list(data.transpose(0, 1))], looks, ["samples"], weights, behind=task.data)
        frames = [sheet([[x]], looks, (), (), f"weight {w}", task.data)
                  for x, w in zip(data.unbind(1), weights, strict=True)]
    else:
        picture = sheet(list(map(list, data)), looks, [f"pair {i}" for i in range(n)], weights,
                        f"{task.owner} from latents between two, by slerp")
        frames = [sheet([list(x)], looks, (), (), f"weight {w}") for x, w in zip(data.unbind(1), weights, strict=True)]
    norms = result.latents.double().flatten(2).norm(dim=2)
    facts = {"weights": numbers(result.weights), "norm_of_the_latents": numbers(norms.mean(0)), "nfe": result.nfe}
    return Drawn(picture, facts, frames, f"{n} pairs of latents, {len(weights)} samples each, {result.nfe} evaluations")


def inversion(task: Task) -> Drawn:
    chosen, x = task.chosen_examples(POINTS if task.of_points else ROWS)
    sampler, given = _sampler(task), task.value("step_counts")
    check_invertible(sampler)
    if isinstance(sampler, ProbabilityFlow) and given is not None:
        raise ArgumentError("sampler 'ode' chooses its steps; leave out step_counts, or choose ddim", "step_counts",
                            "sampler")
    if given is not None and "steps" in task.command.asked.given:
        raise ArgumentError("step_counts are the numbers of steps; leave out steps", "steps", "step_counts")
    if isinstance(sampler, ProbabilityFlow):
        rounds = {"adaptive": explore.inversion(task.models, sampler, x, task.batch_size)}
    else:
        assert isinstance(sampler, GridSampler)
        most = task.sde.steps or COUNTS[-1]
        own = (sampler.steps,) if "steps" in task.command.asked.given else tuple(sorted({min(n, most) for n in COUNTS}))
        counts = given or own
        if not isinstance(sampler.grid, str):
            raise ArgumentError("a list of times fixes the steps that inversion compares; give the name of a grid", "grid")
        found = explore.inversions(task.models, lambda steps: replace(sampler, steps=steps), x, counts, task.batch_size)
        rounds = {f"{steps} steps": result for steps, result in found.items()}
    unit = unit_range(task.codec) ** 2
    errors = {name: float(result.error.mean()) / unit for name, result in rounds.items()}
    last = list(rounds.values())[-1]
    shown = {"example": task.shown(x), f"latent, {list(rounds)[-1]}": task.shown(last.latents, task.sde.t_max)}
    shown |= {f"{name}: {errors[name]:.2g}": task.shown(result.x) for name, result in rounds.items()}
    looks, rows = task.looks(shown["example"]), list(shown)
    if task.of_points:
        picture = sheet([list(shown.values())], looks, (), rows)
    else:
        picture = sheet(list(map(list, shown.values())), looks, rows, [f"{i}" for i in chosen],
                        "examples, latents, and what the latents decode to: mean square error")
    scale = data_scale(task.codec, task.event).to(x.device)
    table = {name: {"mse": errors[name], "rmse_in_data": float(((r.x - x).double() * scale).square().mean().sqrt()),
                    "nfe": r.nfe} for name, r in rounds.items()}
    range_of = "of pictures with the range of the data as 1" if isinstance(task.codec, Pixels) else "in units of the model"
    facts = {"numbers": [] if task.of_points else chosen, "mse_is": range_of, "rounds": table,
             "square_of_the_latents": float(last.latents.double().square().mean())}
    told = ", ".join(f"{error:.2g} by {name}" for name, error in errors.items())
    return Drawn(picture, facts, line=f"mean square error of {len(x)} examples {told}")


def rate_distortion(task: Task) -> Drawn:
    estimator = task.settings
    assert isinstance(estimator, ChainELBO)
    chosen, data = task.chosen_data(task.value("num_samples", FRONT))
    parts = -(-len(chosen) // task.batch_size) * estimator.draws
    steps = estimator.steps or task.sde.steps or 1000
    clip = task.codec.levels is not None and task.value("clip_x0", True)
    if task.codec.levels is None and task.value("clip_x0"):
        raise ArgumentError("points have no range to keep x_0 to; leave out clip_x0", "clip_x0")
    with Progress(parts * steps, "step", True, "examples", len(chosen)) as bar:
        curve = explore.rate_distortion(task.models, task.codec, data, [(task.seed, i) for i in chosen], task.batch_size,
                                        task.command.device, bar.step, clip_x0=clip, **vars(estimator))
    unit = f"levels 0 to {task.codec.levels - 1}" if task.codec.levels else "the data's units"
    facts = {"examples_scored": len(chosen), "clip_x0": clip, "distortion_in": unit, "times": numbers(curve.times),
             "rate": numbers(curve.rate, 17), "distortion": numbers(curve.distortion), "rest": curve.rest,
             "total": curve.total, "standard_error": curve.error, "nfe": curve.nfe}
    line = (f"rate {float(curve.rate[0]):.4f} and the rest {curve.rest:.4f} make the bound {curve.total:.4f} +- "
            f"{curve.error:.4f} bits/dim; distortion {float(curve.distortion[-1]):.3g} to {float(curve.distortion[0]):.3g}")
    return Drawn(rate_distortion_figure(curve, unit, f"{len(chosen)} examples, {steps} steps"), facts, line=line)


def forward(task: Task) -> Drawn:
    chosen, x0 = task.chosen_examples(POINTS if task.of_points else 4)
    strip = explore.forward(task.sde, x0, [(task.seed, i) for i in chosen], task.frames)
    data = _shown_states(task, strip.states, strip.times)
    looks, names = task.looks(data[0]), time_names(strip.times.tolist(), task.of_points)
    if task.of_points:
        picture = sheet([list(data)], looks, ["x_t"], names)
    else:
        picture = sheet([list(data[:, i]) for i in range(len(chosen))], looks, [f"example {i}" for i in chosen], names,
                        "x_t at t")
    frames = [sheet([[x] if task.of_points else list(x)], looks, (), (), f"t = {t:.3f}")
              for x, t in zip(data, strip.times.tolist(), strict=True)]
    curves = {"alpha": task.sde.alpha(strip.times), "sigma": task.sde.sigma(strip.times)}
    facts = {"numbers": [] if task.of_points else chosen, "times": numbers(strip.times),
             **{name: numbers(curve.expand(len(strip.times))) for name, curve in curves.items()}}
    return Drawn(picture, facts, frames, f"{len(chosen)} examples at {len(strip.times)} times")


def swiss_roll(task: Task) -> Drawn:
    if task.shape != (2,):
        raise ArgumentError(f"swiss_roll draws points in the plane, and the run's examples have shape {task.shape}", "what")
    n = task.value("num_samples", POINTS)
    x_T, seeds = task.prior(n)
    x0 = task.training(n)
    frames = task.value("frames", 5)
    half = 1.25 * float(x0.abs().max())
    result = explore.swiss_roll(task.models, _sampler(task), x0, x_T, seeds, frames, half, task.batch_size, True)
    times, looks = result.times.tolist(), task.looks(task.shown(x0))
    rows = [list(_shown_states(task, clouds, result.times)) for clouds in (result.forward, result.reverse)]
    scale = data_scale(task.codec, task.event)
    arrows = [direction.cpu().double() * scale for direction in result.drift]
    picture = cloud_rows(rows, looks, ["forward process", "reverse process", "drift of the reverse process"],
                         time_names(times), (task.shown(result.places), arrows))
    films = [cloud_rows([[a, b]], looks, (), ("forward", "reverse"), title=f"t = {t:.3f}")
             for a, b, t in zip(*rows, times, strict=True)][::-1]
    facts = {"times": numbers(result.times), "sliced_wasserstein": numbers(result.distance), "nfe": result.nfe}
    end = f"the reverse process ends {float(result.distance[0]):.3g} from the data (sliced Wasserstein)"
    return Drawn(picture, facts, films, f"{n} points at {len(times)} times, {result.nfe} evaluations; {end}")


def langevin(task: Task) -> Drawn:
    sampler = _sampler(task)
    assert isinstance(sampler, Langevin)
    toy, own = _published(task.seed)
    n = task.value("num_samples", POINTS if task.of_points else ROWS)
    x_T, seeds = task.prior(n)
    result = explore.langevin(task.models, sampler, x_T, seeds, task.batch_size, True)
    sets = {"naive": task.shown(result.naive), "annealed": task.shown(result.annealed)}
    distances = {}
    if task.data is not None:
        train = task.training(min(4000, max(n, 200)))
        distances = {name: float(sliced_distance(x, train)) for name, x in (("naive", result.naive),
                                                                          ("annealed", result.annealed))}
        sets = {"data": task.data[:n], **sets}
    looks = task.looks(next(iter(sets.values())))
    if task.of_points:
        picture = sheet([list(sets.values())], looks, ["this run"], list(sets), behind=task.data)
    else:
        picture = sheet(list(map(list, sets.values())), looks, list(sets), (), "this run")
    facts = {"published_mixture": own, "nfe": result.nfe, "sliced_wasserstein_to_the_data": distances}
    weights = own["share_near_the_larger_mode"]
    return Drawn(stacked([toy, picture]), facts, line=(
        f"of a mixture with weight 0.8, naive Langevin gives {weights['naive']:.3f} and annealed {weights['annealed']:.3f}"))


def _published(seed: int) -> tuple[Tensor, dict[str, Any]]:
    """The experiment of the paper's figure 3 as a picture, and its numbers."""
    model, sampler = published()
    start = published_start(TOY, seed)
    result = explore.langevin(model, sampler, start, [(seed, i) for i in range(TOY)], progress=True)
    exact = model.sample(TOY, generator=torch.Generator().manual_seed(seed % 2**63)).float()
    sets = {"exact": exact, "naive": result.naive, "annealed": result.annealed}
    share = {name: float(shares(x, model.means)[1]) for name, x in sets.items()}
    looks = Looks((2,), None, torch.full((2,), -9.0), torch.full((2,), 9.0))
    picture = sheet([[start, *sets.values()]], looks, ["weights .2 and .8"],
                    ["start", *(f"{name}, {share[name]:.2f} upper" for name in sets)])
    return picture, {"points": TOY, "weight_of_the_larger_mode": 0.8, "share_near_the_larger_mode": share, "nfe": result.nfe}


def schedule(task: Task) -> Drawn:
    curves = explore.schedule(task.sde)
    facts = {"sde": repr(task.sde), **{name: numbers(value) for name, value in vars(curves).items() if value is not None},
             "alpha_bar": numbers(curves.alpha.square())}
    ends = f"log SNR from {float(curves.log_snr[0]):.3g} to {float(curves.log_snr[-1]):.3g}"
    return Drawn(schedule_figure(curves, repr(task.sde)), facts, line=ends)


def _sampler(task: Task) -> Sampler:
    assert isinstance(task.settings, Sampler)
    return task.settings


def _shown_states(task: Task, states: Tensor, times: Tensor) -> Tensor:
    """States (frames, n, *event) at their times, as data."""
    return torch.stack([task.shown(x, float(t)) for x, t in zip(states, times, strict=True)])


def _labels(task: Task, n: int) -> Sequence[str]:
    """The names of the classes of n samples, as labels of rows; nothing without labels."""
    labels = task.guide.of_samples(range(n))
    return [] if labels is None else [task.guide.name(y) for y in labels.tolist()]


DRAW: Mapping[str, Callable[[Task], Drawn]] = {
    "progressive": progressive, "interpolate": interpolate, "shared_latents": shared_latents, "slerp": slerp,
    "inversion": inversion, "rate_distortion": rate_distortion, "forward": forward, "swiss_roll": swiss_roll,
    "langevin": langevin, "schedule": schedule,
}
