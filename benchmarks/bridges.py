"""How fast IMF (DSBM) and IPF (DSB) come to the Schroedinger bridge between Gaussians: the table over iterations.

    python -m benchmarks.bridges

Each regression is exact, and so is each simulation of paths: all that is simulated stays Gaussian, so means and covariances
are carried through the steps that DSBM and DSB take. What is left of error is that of the iterations, and of a finite
number of steps.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from scorefield.models.gaussian_bridge import Gaussian, GaussianBridge
from scorefield.models.networks.two_way import SOURCE, TARGET
from scorefield.sde_lib import SDE, BrownianSDE
from scorefield.sde_lib.reference import crowded

Joint = tuple[Tensor, Tensor]      # mean (2 D,) and covariance (2 D, 2 D) of two states side by side
STEPS, CROWDING = 20, 2.0


def problem(d: int, sde: SDE, seed: int = 0) -> GaussianBridge:
    """A bridge between two Gaussians of d dimensions with random means and covariances, of variances about 1."""
    generator = torch.Generator().manual_seed(seed)

    def gaussian() -> tuple[Tensor, Tensor]:
        a = torch.randn(d, d, generator=generator, dtype=torch.float64)
        return torch.randn(d, generator=generator, dtype=torch.float64), a @ a.mT / d + 0.3 * torch.eye(d).double()

    return GaussianBridge(sde, gaussian(), gaussian())


def joint(mean: tuple[Tensor, Tensor], first: Tensor, second: Tensor, cross: Tensor) -> Joint:
    return torch.cat(mean), torch.cat([torch.cat([first, cross], 1), torch.cat([cross.mT, second], 1)])


def of_pairs(exact: GaussianBridge, pairs: Joint) -> GaussianBridge:
    """The Markov process whose bridges join pairs (source, target) of these moments: GaussianBridge with another
    coupling.
    """
    mean, covariance, d = *pairs, len(pairs[0]) // 2
    made = copy.copy(exact)
    made.of_end = {SOURCE: Gaussian(mean[:d], covariance[:d, :d]), TARGET: Gaussian(mean[d:], covariance[d:, d:])}
    cross, seen = covariance[:d, d:], exact._seen
    made._cross = {SOURCE: cross / seen[SOURCE].end, TARGET: cross.mT / seen[TARGET].end}
    return made


def affine(bridge: GaussianBridge, s: Tensor) -> tuple[Tensor, Tensor]:
    """G and c of the goal's mean G x + c at s."""
    d = len(bridge.of_end[SOURCE].mean)
    c = bridge.goal_mean(torch.zeros(1, d, dtype=torch.float64), s)[0]
    return (bridge.goal_mean(torch.eye(d, dtype=torch.float64), s) - c).mT, c


def moved(state: Joint, matrix: Tensor, shift: Tensor, std: float) -> Joint:
    """(start, x) after x' = matrix x + shift + std z."""
    mean, covariance, d = *state, len(shift)
    whole = torch.block_diag(torch.eye(d, dtype=torch.float64), matrix)
    noise = torch.block_diag(torch.zeros(d, d), std**2 * torch.eye(d)).double()
    return whole @ mean + torch.cat([torch.zeros_like(shift), shift]), whole @ covariance @ whole.mT + noise


def at_start(exact: GaussianBridge, end: str) -> Joint:
    of_end = exact.of_end[end]
    return joint((of_end.mean,) * 2, *(of_end.covariance,) * 3)


def followed(bridge: GaussianBridge, exact: GaussianBridge, steps: int) -> Joint:
    """(start, goal) of paths toward the bridge's goal by the rule of order 2 of BridgeSampler and DSBM."""
    state = at_start(exact, SOURCE if bridge.goal == TARGET else TARGET)
    times = crowded(steps, CROWDING)
    for s, later in zip(times[:-1], times[1:], strict=True):
        rule, (matrix, shift) = bridge.sde.step(float(s), float(later)), affine(bridge, s)
        eye = torch.eye(len(shift), dtype=torch.float64)
        std = rule.of_noise
        if float(later) > 0:
            second, plus = affine(bridge, later)      # at rule.of_x x + rule.of_goal (matrix x + shift) + std z
            along = rule.of_x * eye + rule.of_goal * matrix
            mean = (matrix + second @ along) / 2, (shift + plus + rule.of_goal * second @ shift) / 2
            spread = std * (eye + rule.of_goal * second / 2)
            state = moved(state, rule.of_x * eye + rule.of_goal * mean[0], rule.of_goal * mean[1], 0.0)
            d = len(shift)
            state[1][d:, d:] += spread @ spread.mT
        else:
            state = moved(state, rule.of_x * eye + rule.of_goal * matrix, rule.of_goal * shift, std)
    return state


def swapped(state: Joint) -> Joint:
    mean, covariance, d = *state, len(state[0]) // 2
    order = torch.cat([torch.arange(d, 2 * d), torch.arange(d)])
    return mean[order], covariance[order][:, order]


def imf(exact: GaussianBridge, count: int, steps: int = STEPS) -> Iterator[dict[str, Joint]]:
    """Moments of (start, goal) toward both ends, after each iteration of DSBM: the first is that of independent pairs."""
    own, other = exact.of_end[SOURCE], exact.of_end[TARGET]
    pairs = joint((own.mean, other.mean), own.covariance, other.covariance, torch.zeros_like(own.covariance))
    for _ in range(count):
        bridge = of_pairs(exact, pairs)
        found = {goal: followed(bridge.toward(goal), exact, steps) for goal in (TARGET, SOURCE)}
        (m, c), (n, e) = found[TARGET], swapped(found[SOURCE])
        pairs = (m + n) / 2, (c + e) / 2 + torch.outer(m - n, m - n) / 4
        yield found


def ipf(exact: GaussianBridge, count: int, steps: int = STEPS) -> Iterator[dict[str, Joint]]:
    """As `imf`, after each iteration of DSB, two turns, in y = x for references with alpha = 1."""
    u = exact._seen[SOURCE].share(crowded(steps, CROWDING).flip(0)).tolist()
    total, d = exact._seen[SOURCE].total, len(exact.of_end[SOURCE].mean)
    eye, zero = torch.eye(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    known = [(eye, zero)] * steps      # O_k of the direction that stays as it is, from 0 on: at first the reference
    found: dict[str, Joint] = {}
    for turn in range(2 * count):
        goal, start = (SOURCE, TARGET) if turn % 2 == 0 else (TARGET, SOURCE)
        share = u if goal == SOURCE else [1 - v for v in u[::-1]]
        state, learned = at_start(exact, goal), []
        for k, (matrix, shift) in enumerate(known):
            before = state
            state = moved(state, matrix, shift, (total * (share[k + 1] - share[k])) ** 0.5)
            across, into = before[1][d:, d:] @ matrix.mT, state[1][d:, d:]      # Cov(y_k, y_(k+1)), Var(y_(k+1))
            gain = torch.linalg.solve(into, across.mT).mT      # E[y_k given y_(k+1)], by which O_k(y_k) has its mean
            back = before[0][d:] - gain @ state[0][d:]
            learned.append((eye + matrix @ gain - matrix, matrix @ back))
        known = learned[::-1]
        state = at_start(exact, start)
        last = [1 - v for v in share[::-1]]
        for k, (matrix, shift) in enumerate(known):      # the last step of a sample has no noise
            state = moved(state, matrix, shift, (total * (last[k + 1] - last[k])) ** 0.5 if k < steps - 1 else 0.0)
        found = found | {goal: state}
        if turn % 2:
            yield found


def errors(exact: GaussianBridge, found: dict[str, Joint]) -> tuple[float, float, float]:
    """The larger of both directions' errors: of the goal's mean over the largest standard deviation, and of the goal's
    covariance and the cross-covariance, as Frobenius norms over those of the closed form.
    """
    rows = []
    for goal, (mean, covariance) in found.items():
        own, d = exact.of_end[goal], len(mean) // 2
        cross = exact.cross_covariance if goal == TARGET else exact.cross_covariance.mT      # rows are the start
        rows.append((float((mean[d:] - own.mean).abs().max() / own.covariance.diagonal().max().sqrt()),
                     float((covariance[d:, d:] - own.covariance).norm() / own.covariance.norm()),
                     float((covariance[:d, d:] - cross).norm() / cross.norm())))
    worst = [max(column) for column in zip(*rows, strict=True)]
    return worst[0], worst[1], worst[2]


def main() -> None:
    print("| rule | D | steps | iterations | mean | covariance | cross-covariance |\n|---|---|---|---|---|---|---|")
    for name, rule in (("IMF (DSBM)", imf), ("IPF (DSB)", ipf)):
        for d, steps in ((1, STEPS), (5, STEPS), (5, 80)):
            exact = problem(d, BrownianSDE())
            for k, found in enumerate(rule(exact, 16, steps), 1):
                if k in (1, 2, 4, 8, 16):
                    shown = " | ".join(f"{100 * error:.1f} %" for error in errors(exact, found))
                    print(f"| {name} | {d} | {steps} | {k} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
