"""Schroedinger bridges: models that carry examples of a source to examples of a target, and back.

A bridge knows, at a state x between its ends, where the path that passes x is to go: the mean of its goal. With x / alpha
and u as in sde_lib/reference.py, the means m_0 of the goal and m_1 of the start (over alpha(1)) give the drifts of the two
Markov processes whose marginals are those of the bridge, in u and over V(1) = 1,

    toward the goal    (m_0 - y) / u                  toward the start    (m_1 - y) / (1 - u),

their probability flow, half the difference of the two, and the score of the marginals, their sum (Shi et al. 2023,
"Diffusion Schroedinger Bridge Matching", proposition 2; De Bortoli et al. 2021, section 3.3).
"""

import copy
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from scorefield.models.conditions import Conditions
from scorefield.models.denoiser import TIME_INPUTS
from scorefield.models.networks.two_way import SOURCE, TARGET, TwoWay
from scorefield.models.parametrization import check_kind
from scorefield.models.score_model import ScoreModel
from scorefield.models.student import BRIDGE, Student
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib.reference import NEAR, Reference
from scorefield.sde_lib.sde import SDE, as_time, check_time, expand_as

GOALS = (SOURCE, TARGET)


class BridgeModel(ScoreModel):
    """A bridge that goes toward one of its ends, its `goal`; times are those of the reference seen from there.

    reference  the SDE that joins the ends where nothing is known of them
    goal       "source" or "target"
    start      what paths begin with: an object with `sample` and `log_prob`, as an SDE's prior; a bridge to sample needs one

    Its only prediction is "x0", the mean of the goal given x_s = x. So its own sampler alone takes it (samplers/bridge.py).
    `probability_flow()` is a score model for likelihoods.
    """

    def __init__(self, reference: SDE, goal: str = SOURCE, start: Any = None):
        super().__init__()
        if goal not in GOALS:
            raise ArgumentError(f"unknown goal {goal!r}; choose from {', '.join(GOALS)}", "goal")
        self.reference, self.goal = reference, goal
        self._seen = {end: Reference(reference, end == TARGET) for end in GOALS}
        self.sde: Reference = self._seen[goal].starting_at(start)

    def toward(self, goal: str, start: Any = None) -> "BridgeModel":
        """The same bridge toward a goal, from what paths begin with; ArgumentError for another word."""
        if goal not in GOALS:
            raise ArgumentError(f"unknown goal {goal!r}; choose from {', '.join(GOALS)}", "goal")
        other = copy.copy(self)
        other._modules = dict(self._modules)      # the networks are shared
        other.goal, other.sde = goal, self._seen[goal].starting_at(start)
        return other

    @property
    def back(self) -> "BridgeModel":
        """The same bridge toward its other end."""
        return self.toward(SOURCE if self.goal == TARGET else TARGET)

    @property
    def student(self) -> Student | None:
        return BRIDGE

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        if kind != "x0":
            check_kind(kind)
            raise ArgumentError(f"a bridge predicts its goal, 'x0', and no {kind}; its probability_flow() has a score",
                                "kind")
        return self.goal_mean(x, check_time(self.sde, t))

    @abstractmethod
    def goal_mean(self, x: Tensor, s: Tensor) -> Tensor:
        """E[x_0 given x_s = x], of x's shape; s is a scalar or (batch,)."""

    def start_mean(self, x: Tensor, s: Tensor) -> Tensor:
        """E[x_1 given x_s = x]."""
        return self.back.goal_mean(x, 1 - s)

    def probability_flow(self) -> "BridgeFlow":
        """The probability flow as a score model, for `likelihood.log_prob`; its prior is what paths begin with."""
        return BridgeFlow(self)


class Bridge(BridgeModel):
    """A bridge of two networks, each of which sees x / std(x) and gives F, with the mean of its goal c_skip x + c_out F.

    network     a TwoWay
    time_input  of the networks: a key of TIME_INPUTS, of the reference seen from the goal
    source_std, target_std  standard deviations of the data at the ends, by which c_skip, c_out and std(x) are chosen, as in
                EDM (Karras et al. 2022, appendix B.6; for bridges Zhou et al. 2023, section 4.3), for independent ends

    One use:

    >>> from scorefield.models.bridge import Bridge
    >>> from scorefield.models import MLP
    >>> from scorefield.models.networks.two_way import TwoWay
    >>> from scorefield.sde_lib import BrownianSDE
    >>> bridge = Bridge(TwoWay(MLP((2,)), MLP((2,))), BrownianSDE())
    >>> bridge.toward("target").x0(torch.zeros(4, 2), 0.5).shape
    torch.Size([4, 2])
    """

    learned_variance, energy, input_std, label_dropout, made_for = False, False, None, False, None

    def __init__(self, network: TwoWay, sde: SDE, time_input: str = "999t", source_std: float = 1.0,
                 target_std: float = 1.0):
        super().__init__(sde)
        if time_input not in TIME_INPUTS or time_input.startswith("index"):
            known = ", ".join(name for name in TIME_INPUTS if not name.startswith("index"))
            raise ArgumentError(f"unknown time_input {time_input!r} of a bridge; choose from {known}", "time_input")
        for name, std in (("source_std", source_std), ("target_std", target_std)):
            if not 0 < std < float("inf"):
                raise ArgumentError(f"{name} must be positive, got {std}", name)
        self.network, self.time_input = network, time_input
        self.source_std, self.target_std = source_std, target_std
        self.autocast: torch.dtype | None = None

    @property
    def takes(self) -> Conditions:
        return Conditions()

    def with_network(self, network: TwoWay) -> "Bridge":
        """The same bridge of other networks, in their mode."""
        return Bridge(network, self.reference, self.time_input, self.source_std, self.target_std).train(network.training)

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """F of both networks at (x, t), (2, batch, *event)."""
        return self._output(x, as_time(t).expand(len(x)))[0]

    def ends(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The means of the source and the target given x_t = x, by one call of both networks, and the c_out of each, which
        broadcast against x; t (batch,) is the time of the reference.
        """
        both, (skips, outs) = self._output(x, t)
        source, target = (skip * x + out * output for skip, out, output in zip(skips, outs, both, strict=True))
        return source, target, outs[0], outs[1]

    def _output(self, x: Tensor, t: Tensor) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
        times = dict(zip(GOALS, (t, 1 - t), strict=True))
        scales = [self._scales(s, x, goal) for goal, s in times.items()]
        told = torch.stack([self._told(s, x, goal) for goal, s in times.items()])
        output = self._call(scales[0][0] * x, told)
        return output, ([skip for _, skip, _ in scales], [out for _, _, out in scales])

    def goal_mean(self, x: Tensor, s: Tensor) -> Tensor:
        c_in, c_skip, c_out = self._scales(s, x, self.goal)
        return c_skip * x + c_out * self._call(c_in * x, self._told(s, x, self.goal), self.goal)

    def _scales(self, s: Tensor, x: Tensor, goal: str) -> tuple[Tensor, Tensor, Tensor]:
        """c_in, c_skip and c_out at s, which broadcast against x."""
        ends = (self.source_std, self.target_std)
        own, other = ends if goal == SOURCE else ends[::-1]
        a, b, std = self._seen[goal].between(_precise(s))
        rest = (b * other).square() + std.square()
        variance = (a * own).square() + rest
        scales = variance.rsqrt(), a * own**2 / variance, own * (rest / variance).sqrt()
        c_in, c_skip, c_out = (expand_as(scale, x) for scale in scales)
        return c_in, c_skip, c_out

    def _told(self, s: Tensor, x: Tensor, goal: str) -> Tensor:
        told = torch.as_tensor(TIME_INPUTS[self.time_input](self._seen[goal], _precise(s)))
        return told.to(x.device, torch.float32).expand(len(x))

    def _call(self, h: Tensor, *told: Any) -> Tensor:
        own = next(self.network.parameters(), h)
        if self.autocast is None:
            return self.network(h.to(own.dtype), *told).to(h.dtype)
        with torch.autocast(h.device.type, self.autocast):
            return self.network(h.to(own.dtype), *told).to(h.dtype)


class BridgeFlow(ScoreModel):
    """The probability flow of a bridge as that of its reference under another score, which log_prob integrates.

    The flow of the reference is dy/dV = -score / 2, that of the bridge half the difference of its drifts. So this "score" is
    the drift toward the goal minus that toward the start. It is not the score of the marginals, and only what follows
    the probability flow, such as a likelihood, may use it. An evaluation calls both networks.
    """

    def __init__(self, bridge: BridgeModel):
        super().__init__()
        self.bridge = bridge
        self.sde: Reference = copy.copy(bridge.sde)
        self.sde.t_max = 1 - NEAR      # at its ends the two drifts cannot be computed

    @property
    def evaluations(self) -> int:
        return 2

    def predict(self, x: Tensor, t: float | Tensor, kind: str) -> Tensor:
        check_kind(kind)
        t, sde = check_time(self.sde, t), self.sde
        alpha, sigma, u, rest = (expand_as(of_t, x) for of_t in (sde.alpha(t), sde.sigma(t), sde.share(t), sde.rest(t)))
        y = x / alpha
        goal, start = self.bridge.goal_mean(x, t), self.bridge.start_mean(x, t) / sde.end
        x0 = goal - u / rest * (start - y)
        if kind == "x0":
            return x0
        eps = (x - alpha * x0) / sigma
        return {"eps": lambda: eps, "score": lambda: -eps / sigma, "v": lambda: alpha * eps - sigma * x0,
                "flow": lambda: eps - x0}[kind]()


def _precise(t: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return t if t.device.type == "mps" else t.double()
