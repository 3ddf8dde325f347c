"""The sampling rules of the papers, written out step by step for test_options.py: nothing here is shared with samplers/.

A reference carries x through `times` in float64, as reference(problem, x, times, options); `options` has the option of
the sampler as attributes. Where it draws noise, it does so in the order in which the paper's algorithm does.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch
import torchdiffeq
from scipy.integrate import quad

from scorefield.guidance import classifier_guided
from scorefield.models import GaussianMixture
from scorefield.samplers import NoiseStream, make_sampler, prior_sample
from scorefield.samplers.reference_sde import BrownianPaths
from scorefield.sde_lib import VPSDE, SubVPSDE

SEEDS = range(3)


class Problem:
    """A mixture under sub-VP (VP where ancestral steps need it), its start, and the noise of its seeds.

    With the option mean_shift it is guided to the label 1 at scale 2 by its exact classifier.
    """

    def __init__(self, name, options):
        self.sde = VPSDE() if "ancestral" in (name, *options.values()) else SubVPSDE()
        self.model = GaussianMixture(self.sde, torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]),
                                     torch.tensor([0.3, 0.5, 0.4]), torch.tensor([1.0, 2.0, 1.5]), labels=[0, 1, 1])
        if options.get("mean_shift"):
            self.guided = classifier_guided(self.model, self.model.class_log_prob, 2.0, label=1)
        self.x_T = prior_sample(VPSDE(), (2,), SEEDS, dtype=torch.float64)
        self.noise = NoiseStream(SEEDS)

    def run(self, name, options):
        return make_sampler(name, **options)(getattr(self, "guided", self.model), self.x_T, seeds=SEEDS)

    def draw(self):
        return self.noise.normal(self.x_T)

    def at(self, t):
        """alpha, sigma, lambda, the drift's coefficient and g^2 at t, as numbers."""
        return SimpleNamespace(**{name: float(getattr(self.sde, method)(float(t))) for name, method in (
            ("alpha", "alpha"), ("sigma", "sigma"), ("lam", "half_log_snr"), ("drift", "drift"), ("g2", "g2"))})

    def end(self, options):
        return self.sde.t_sample if options.t_end is None else options.t_end

    def time(self, lam):
        return float(self.sde.time(torch.tensor(lam, dtype=torch.float64)))

    def score(self, x, t):
        return self.model.score(x, t)

    def eps(self, x, t):
        return -self.at(t).sigma * self.score(x, t)

    def x0(self, x, t):
        return (x + self.at(t).sigma**2 * self.score(x, t)) / self.at(t).alpha


def quadratic(steps, t_end):
    """Equal steps in sqrt(t) (Song, Meng and Ermon 2021, appendix D.2)."""
    return (np.linspace(1, math.sqrt(t_end), steps + 1) ** 2).tolist()


# ---- one evaluation a step ---------------------------------------------------------------------------------------------


def stepwise(rule):
    """The reference that repeats x_s = rule(p, x, t, s, options)."""
    def reference(p, x, times, o):
        for t, s in pairwise(times):
            x = rule(p, x, t, s, o)
        return x
    return reference


def ddim(p, x, t, s, o):
    """Song, Meng and Ermon 2021, equations 12 and 16, in the scale of any SDE: alpha_bar = 1 / (1 + (sigma/alpha)^2)."""
    a, b = p.at(t), p.at(s)
    bar_t, bar_s = (c.alpha**2 / (c.alpha**2 + c.sigma**2) for c in (a, b))
    spread = o.eta * math.sqrt((1 - bar_s) / (1 - bar_t)) * math.sqrt(1 - bar_t / bar_s)
    x0, eps = p.x0(x, t), p.eps(x, t)
    noise = spread * b.alpha / math.sqrt(bar_s)
    if o.variance == "beta":      # sigma-hat of their appendix D.3: that of x_t given x_s, under the process itself
        noise = math.sqrt(a.sigma**2 - (a.alpha / b.alpha * b.sigma) ** 2)
    mean = math.sqrt(bar_s) * x0 + math.sqrt(1 - bar_s - spread**2) * eps
    return mean * b.alpha / math.sqrt(bar_s) + noise * p.draw()


def euler_maruyama(p, x, t, s, o):
    """Of dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw, time running backwards (Huang et al. 2021)."""
    c, eta = p.at(t), getattr(o, "eta", 1.0)
    drift = c.drift * x - (1 + eta**2) / 2 * c.g2 * p.score(x, t)
    return x + (s - t) * drift + eta * math.sqrt(c.g2 * (t - s)) * p.draw()


def kernel(p, t, s):
    """Scale and variance of x_t given x_s."""
    a, b = p.at(t), p.at(s)
    return a.alpha / b.alpha, a.sigma**2 - (a.alpha / b.alpha * b.sigma) ** 2


def reverse_diffusion(p, x, t, s, o):
    """Song et al. 2021, equation 46, f = (a - 1) x and G^2 = v."""
    a, v = kernel(p, t, s)
    return x - (a - 1) * x + v * p.score(x, t) + math.sqrt(v) * p.draw()


def ancestral(p, x, t, s, o):
    """Ho et al. 2020, equations 7 and 11: the mean of q(x_s given x_t, x_0), and either of two variances."""
    (a, v), now, then = kernel(p, t, s), p.at(t), p.at(s)
    mean = (a * then.sigma**2 * x + then.alpha * v * p.x0(x, t)) / now.sigma**2
    variance = v if getattr(o, "variance", "beta_tilde") == "beta" else v * then.sigma**2 / now.sigma**2
    return mean + math.sqrt(variance) * p.draw()


def analytic(p, x, t, s, o):
    """Analytic-DPM (Bao et al. 2022), theorem 1 and section 4.4: the optimal variance, and a bound on the last noise."""
    now, then, eta = p.at(t), p.at(s), getattr(o, "eta", 1.0)
    fixed = eta**2 * kernel(p, t, s)[1] * then.sigma**2 / now.sigma**2
    keep = math.sqrt(then.sigma**2 - fixed) / now.sigma
    of_x0, posterior = then.alpha - keep * now.alpha, p.model.posterior(x, t)
    std = (fixed + of_x0**2 * posterior.variance).sqrt()
    if s == o.t_end:
        std = torch.minimum(std, torch.tensor(o.last_noise / math.sqrt(2 / math.pi)))
    return keep * x + of_x0 * p.x0(x, t) + std * p.draw()


def shifted(p, x, t, s, o):
    """Dhariwal and Nichol 2021, algorithm 1: the mean moved by scale Sigma grad log p(y given x_t)."""
    (_, v), z = kernel(p, t, s), x.clone().requires_grad_()
    variance = v if o.variance == "beta" else v * p.at(s).sigma ** 2 / p.at(t).sigma ** 2
    return ancestral(p, x, t, s, o) + 2 * variance * torch.autograd.grad(p.model.class_log_prob(z, t)[:, 1].sum(), z)[0]


def corrected(predictor):
    """Song et al. 2021, algorithms 4 and 5, 8 elements of 1/sigma^2 added to each sample's mean square of the score."""
    def rule(p, x, t, s, o):
        x = predictor(p, x, t, s, SimpleNamespace()) if predictor else x
        (a, _), sigma = kernel(p, t, s), p.at(s).sigma
        for _ in range(o.corrector_steps):
            score, z = p.score(x, s), p.draw()
            mean_square = (score.square().sum(1, keepdim=True) + 8 / sigma**2) / (score.shape[1] + 8)
            size = 2 * (a * o.snr) ** 2 * (sigma**2 if o.corrector == "annealed" else 1 / mean_square)
            x = x + size * score + (2 * size) ** 0.5 * z
        return x
    return stepwise(rule)


# ---- the probability flow ----------------------------------------------------------------------------------------------


def flow(p, scaling):
    """The field, the clock of a time and the scale of the state (Song et al. 2021, eq. 13; Karras et al. 2022, eq. 4)."""
    if scaling == "x":
        return (lambda y, t: p.at(t).drift * y - p.at(t).g2 / 2 * p.score(y, t)), float, lambda t: 1.0

    def field(z, c):
        t = p.time(-math.log(c))
        return p.eps(z * p.at(t).alpha, t)
    return field, lambda t: math.exp(-p.at(t).lam), lambda t: p.at(t).alpha


def fixed(step):
    def reference(p, x, times, o):
        field, clock, scale = flow(p, o.scaling)
        y, grid = x / scale(times[0]), [clock(t) for t in times]
        for i, (c, d) in enumerate(pairwise(grid)):
            y = step(field, y, c, d - c, i == len(grid) - 2)
        return y * scale(times[-1])
    return reference


def euler(field, y, c, h, last):
    return y + h * field(y, c)


def heun(field, y, c, h, last):
    predicted = euler(field, y, c, h, last)
    return predicted if last else y + h * (field(y, c) + field(predicted, c + h)) / 2


def rk4(field, y, c, h, last):
    k1 = field(y, c)
    k2 = field(y + h / 2 * k1, c + h / 2)
    k3 = field(y + h / 2 * k2, c + h / 2)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(y + h * k3, c + h))


def ode(p, x, times, o):
    """torchdiffeq at the same tolerances."""
    field, clock, scale = flow(p, o.scaling)
    span = torch.tensor([clock(times[0]), clock(times[-1])], dtype=torch.float64)
    states = torchdiffeq.odeint(lambda c, y: field(y, float(c)), x / scale(times[0]), span, rtol=o.rtol, atol=o.atol,
                                method=o.method, options={"step_t": span[1:]})
    return states[-1] * scale(times[-1])


def edm(p, x, times, o):
    """Karras et al. 2022, algorithm 2, in z = x / alpha; noise never leads beyond the first level."""
    times = quadratic(o.steps - 1, p.end(o))
    levels = [math.exp(-p.at(t).lam) for t in times] + [0.0]
    eps = lambda z, s: p.eps(z * p.at(p.time(-math.log(s))).alpha, p.time(-math.log(s)))  # noqa: E731
    z, n = x / p.at(times[0]).alpha, len(times)
    for now, then in pairwise(levels):
        gamma = min(o.churn / n, math.sqrt(2) - 1) if o.churn and o.s_min <= now <= o.s_max else 0.0
        if gamma:
            raised = min(now * (1 + gamma), levels[0])
            z, now = z + math.sqrt(raised**2 - now**2) * o.s_noise * p.draw(), raised
        slope = eps(z, now)
        moved = z + (then - now) * slope
        z = z + (then - now) * (slope + eps(moved, then)) / 2 if then else moved
    return z


# ---- exponential integrators -------------------------------------------------------------------------------------------


def adams(weight, start, end, nodes):
    """Weights of values at the nodes for the integral of `weight` times their interpolation, from its moments."""
    moments = [quad(lambda u, k=k: weight(start + u) * u**k, 0, end - start, epsabs=1e-15, epsrel=1e-13)[0]
               for k in range(len(nodes))]
    return np.linalg.solve(np.vander(np.array(nodes) - start, increasing=True).T, moments)


def weighted(weights, values):
    return sum(float(w) * v for w, v in zip(weights, values, strict=True))


def auto(p, x, times, o):
    """Adams-Bashforth and -Moulton for y = x / (alpha R): dy/dlambda = e^-lambda / R^2 m, R^2 = v + e^(-2 lambda)."""
    c, v = [p.at(t) for t in times], o.data_std**2
    spread = [math.sqrt(v + math.exp(-2 * k.lam)) for k in c]
    weight = lambda lam: math.exp(-lam) / (v + math.exp(-2 * lam))  # noqa: E731
    y, m, lam = x / (c[0].alpha * spread[0]), [], [k.lam for k in c]
    before = y
    for i in range(len(c) - 1):
        here = y * c[i].alpha * spread[i]
        m.insert(0, (math.exp(-lam[i]) * p.x0(here, times[i]) - v * p.eps(here, times[i])) / spread[i])
        if i and o.correct:
            nodes = lam[max(i - o.order, 0):i + 1][::-1]
            y = before + weighted(adams(weight, lam[i - 1], lam[i], nodes), m[:len(nodes)])
        nodes = lam[max(i + 1 - o.order, 0):i + 1][::-1]
        before, y = y, y + weighted(adams(weight, lam[i], lam[i + 1], nodes), m[:len(nodes)])
    return y * c[-1].alpha * spread[-1]


def deis(p, x, times, o):
    """Zhang and Chen 2023, equation 15, for z = x / alpha: dz = eps drho, eps by its interpolation in o.variable."""
    rho = lambda t: math.exp(-p.at(t).lam)  # noqa: E731
    clock, weight = {      # the variable of the polynomial, and drho by it
        "t": (lambda t: t, lambda t: rho(t) * p.at(t).g2 / (2 * p.at(t).sigma**2)),
        "rho": (rho, lambda u: 1.0),
        "log_rho": (lambda t: -p.at(t).lam, math.exp),
    }[o.variable]
    eps = []
    for i, (t, s) in enumerate(pairwise(times)):
        eps.insert(0, p.eps(x, t))
        nodes = [clock(u) for u in times[max(i + 1 - o.order, 0):i + 1]][::-1]
        moved = weighted(adams(weight, clock(t), clock(s), nodes), eps[:len(nodes)])
        x = p.at(s).alpha * (x / p.at(t).alpha + moved)
    return x


def ipndm(p, x, times, o):
    """Zhang and Chen 2023, appendix H.2: a DDIM step with the weights of Adams and Bashforth for equal steps."""
    weights, eps = [[1], [1.5, -0.5], [23 / 12, -4 / 3, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -3 / 8]], []
    for t, s in pairwise(times):
        eps.insert(0, p.eps(x, t))
        depth = min(len(eps), o.order)
        x = stepped(p, x, weighted(weights[depth - 1], eps[:depth]), t, s)
    return x


def stepped(p, x, eps, t, s):
    a, b = p.at(t), p.at(s)
    return b.alpha * (x - a.sigma * eps) / a.alpha + b.sigma * eps


def sa_solver(p, x, times, o):
    """Xue et al. 2023, algorithm 1, equations 14 and 17, with tau in the given range of sigma / alpha and 0 elsewhere."""
    m, lam, before, noise = [], [p.at(t).lam for t in times], x, None

    def moved(start, values, i, nodes, z):
        a, b, h = p.at(times[i]), p.at(times[i + 1]), lam[i + 1] - lam[i]
        tau2 = o.tau**2 if o.s_min <= math.exp(-a.lam) <= o.s_max else 0.0
        weight = lambda u: b.sigma * (1 + tau2) * math.exp(u - tau2 * (b.lam - u))  # noqa: E731
        change = weighted(adams(weight, lam[i], lam[i + 1], nodes), values[:len(nodes)])
        if z is None and tau2:
            z = p.draw()
        noisy = b.sigma * math.sqrt(1 - math.exp(-2 * tau2 * h)) * z if tau2 else 0.0
        return b.sigma / a.sigma * math.exp(-tau2 * h) * start + change + noisy, z

    for i in range(len(times) - 1):
        m.insert(0, p.x0(x, times[i]))
        if i and o.correct:
            x, _ = moved(before, m, i - 1, lam[max(i - o.order, 0):i + 1][::-1], noise)
        before = x
        x, noise = moved(x, m, i, lam[max(i + 1 - o.order, 0):i + 1][::-1], None)
    return x


def er_sde(p, x, times, o):
    """Cui et al. 2023, propositions 3 to 5, with their lambda = sigma / alpha called rho."""
    phi = {"er": lambda u: u * (math.exp(u**0.3) + 10), "sde": lambda u: u * u, "ode": lambda u: u}[o.phi]
    rho, x0 = [math.exp(-p.at(t).lam) for t in times], []
    for i, (t, s) in enumerate(pairwise(times)):
        x0.insert(0, p.x0(x, t))
        a, b, start, end = p.at(t), p.at(s), rho[i], rho[i + 1]
        r = phi(end) / phi(start)
        new = b.alpha / a.alpha * r * x + b.alpha * (1 - r) * x0[0]
        if o.order > 1 and i:
            slope = (x0[0] - x0[1]) / (start - rho[i - 1])
            new = new + b.alpha * (end - start + phi(end) * quad(lambda u: 1 / phi(u), end, start, epsrel=1e-12)[0]) * slope
        if o.order > 2 and i > 1:
            curve = (slope - (x0[1] - x0[2]) / (rho[i - 1] - rho[i - 2])) * 2 / (start - rho[i - 2])
            tail = quad(lambda u, start=start: (u - start) / phi(u), end, start, epsrel=1e-12)[0]
            new = new + b.alpha * ((end - start) ** 2 / 2 + phi(end) * tail) * curve
        if o.phi != "ode":
            new = new + b.alpha * math.sqrt(end**2 - (r * start) ** 2) * p.draw()
        x = new
    return x


def restart(p, x, times, o):
    """Xu et al. 2023, algorithm 1: Heun's method, and at the level nearest to s_min noise up to s_max and back, K times."""
    times = times if isinstance(o.grid, list) else quadratic(o.steps - 1, p.end(o))
    levels = [math.exp(-p.at(t).lam) for t in times] + [0.0]
    eps = lambda z, s: p.eps(z * p.at(p.time(-math.log(s))).alpha, p.time(-math.log(s)))  # noqa: E731

    def heun_step(z, now, then):
        slope = eps(z, now)
        moved = z + (then - now) * slope
        return z + (then - now) * (slope + eps(moved, then)) / 2 if then else moved

    z = x / p.at(times[0]).alpha
    for now, then in pairwise(levels):
        z = heun_step(z, now, then)
        for n, k, low, high in ([float(number) for number in part.split(",")] for part in o.intervals.split(";")):
            if then and then == min(levels[1:-1], key=lambda level, low=low: abs(level - low)):
                inner = np.linspace(high ** (1 / 7), then ** (1 / 7), int(n)) ** 7
                for _ in range(int(k)):
                    z = z + math.sqrt(high**2 - then**2) * p.draw()
                    for here, there in pairwise(inner.tolist()):
                        z = heun_step(z, here, there)
    return z


def first_order(p, kind, x, m, t, s):
    """DPM-Solver-1 (Lu et al. 2022a, equation 3.7) and DPM-Solver++ 1 (2022b, equation 4.1, from 4.2)."""
    a, b = p.at(t), p.at(s)
    h = b.lam - a.lam
    if kind == "noise":
        return b.alpha / a.alpha * x - b.sigma * math.expm1(h) * m
    return b.sigma / a.sigma * x - b.alpha * math.expm1(-h) * m


def psi(p, kind, t, s):
    """What stands before D_1 and D_2 in steps of third order, (e^h - 1)/h - 1 and (e^h - 1 - h)/h^2 - 1/2."""
    b, h = p.at(s), p.at(s).lam - p.at(t).lam
    if kind == "noise":
        return -b.sigma * (math.expm1(h) / h - 1), -b.sigma * ((math.expm1(h) - h) / h**2 - 0.5)
    return b.alpha * (math.expm1(-h) / h + 1), -b.alpha * ((math.expm1(-h) + h) / h**2 - 0.5)


def multistep(kind):
    """DPM-Solver and DPM-Solver++ 2M and 3M, and with method "sde" SDE-DPM-Solver++ (Lu et al. 2022b, algorithm 2)."""
    def reference(p, x, times, o):
        n, m, lam = len(times) - 1, [], [p.at(t).lam for t in times]
        final = n < 10 if o.lower_order_final is None else o.lower_order_final
        for i, (t, s) in enumerate(pairwise(times)):
            m.insert(0, p.eps(x, t) if kind == "noise" else p.x0(x, t))
            order, h = min(o.order, i + 1, n - i if final else 3), lam[i + 1] - lam[i]
            first = (m[0] - m[1]) * h / (lam[i] - lam[i - 1]) if order > 1 else torch.zeros_like(x)
            if o.method == "sde":
                a, b, fresh = p.at(t), p.at(s), 1 - math.exp(-2 * h)
                x = (b.sigma / a.sigma * math.exp(-h) * x + b.alpha * fresh * (m[0] + first / 2)
                     + b.sigma * math.sqrt(fresh) * p.draw())
            elif order < 3:
                x = first_order(p, kind, x, m[0] + first / 2, t, s)
            elif o.published:
                r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
                second = (m[1] - m[2]) / r1
                d1, d2 = first + r0 / (r0 + r1) * (first - second), (first - second) / (r0 + r1)
                of_d1, of_d2 = psi(p, kind, t, s)
                x = first_order(p, kind, x, m[0], t, s) + of_d1 * d1 + of_d2 * d2
            else:       # the exact integral of the interpolation, equations 3.3 of 2022a and 3.2 of 2022b
                a, b, sign = p.at(t), p.at(s), -1 if kind == "noise" else 1
                weights = adams(lambda u, sign=sign: math.exp(sign * u), lam[i], lam[i + 1], lam[i - 2:i + 1][::-1])
                keep, scale = (b.alpha / a.alpha, b.alpha) if kind == "noise" else (b.sigma / a.sigma, b.sigma)
                x = keep * x + sign * scale * weighted(weights, m[:3])
        return x
    return reference


def single(p, kind, x, t, s, order, r1):
    """The step of order 1 to 3 and that of one order less which it holds (Lu et al. 2022a, algorithms 1, 2 and 4)."""
    predict = p.eps if kind == "noise" else p.x0
    a, h, m = p.at(t).lam, p.at(s).lam - p.at(t).lam, predict(x, t)
    one = first_order(p, kind, x, m, t, s)
    if order == 1:
        return one, None
    s1 = p.time(a + r1 * h)
    d1 = predict(first_order(p, kind, x, m, t, s1), s1) - m
    two = first_order(p, kind, x, m + d1 / (2 * r1), t, s)
    if order == 2:
        return two, one
    s2 = p.time(a + 2 / 3 * h)
    u2 = first_order(p, kind, x, m, t, s2) + 2 / 3 / r1 * psi(p, kind, t, s2)[0] * d1
    return one + 3 / 2 * psi(p, kind, t, s)[0] * (predict(u2, s2) - m), two


def singlestep(kind, orders):
    def reference(p, x, times, o):
        times = quadratic(len(orders), o.t_end) if isinstance(o.grid, str) else o.grid
        for order, (t, s) in zip(orders, pairwise(times), strict=True):
            x = single(p, kind, x, t, s, order, 1 / order)[0]
        return x
    return reference


def adaptive(kind):
    """Lu et al. 2022a, appendix C: theta = 0.9, the first h = 0.05; the worst sample decides."""
    def reference(p, x, times, o):
        lam, end = p.at(times[0]).lam, p.at(times[-1]).lam
        h, before = 0.05, x
        while end - lam > 1e-9:
            h = min(h, end - lam)
            high, low = single(p, kind, x, p.time(lam), p.time(lam + h), o.order, 1 / o.order)
            allowed = (o.rtol * torch.maximum(low.abs(), before.abs())).clamp(min=o.atol)
            error = float(((high - low) / allowed).square().mean(1).sqrt().max())
            if error <= 1:
                lam, before, x = lam + h, low, high
            h *= 0.9 * error ** (-1 / o.order)
        return x
    return reference


def unipc(p, x, times, o):
    """Zhao et al. 2023, algorithms 1 to 4; phi_(k+1)(z) is the integral of e^((1 - u) z) u^k / k! over [0, 1]."""
    def weights(z, r):
        b, k = z if o.variant == "bh1" else math.expm1(z), len(r)
        if k < 2:
            return b * 0.5 / np.array(r)
        targets = [z / b * quad(lambda u, j=j: math.exp((1 - u) * z) * u**j, 0, 1, epsrel=1e-13)[0]
                   for j in range(1, k + 1)]
        return b * np.linalg.solve(np.array(r) ** np.arange(k)[:, None], targets) / np.array(r)

    n, m, c = len(times) - 1, [], [p.at(t) for t in times]
    kind, predict = o.prediction, p.eps if o.prediction == "noise" else p.x0
    m.append(predict(x, times[0]))
    for i in range(n):
        order, h = min(o.order, i + 1, n - i if o.lower_order_final else 3), c[i + 1].lam - c[i].lam
        z, scale = (h, c[i + 1].sigma) if kind == "noise" else (-h, c[i + 1].alpha)
        base = first_order(p, kind, x, m[0], times[i], times[i + 1])
        r, d = [(c[i - j].lam - c[i].lam) / h for j in range(1, order)], [m[j] - m[0] for j in range(1, order)]
        x = base - scale * weighted(weights(z, r), d)
        if i < n - 1:
            m.insert(0, predict(x, times[i + 1]))
            x = base - scale * weighted(weights(z, [*r, 1.0]), [*d, m[0] - m[1]])
    return x


# ---- the reverse SDE on a Brownian path ----------------------------------------------------------------------------------


def on_a_path(steps):
    """Euler-Maruyama in so many steps on the Brownian path that torchsde is given."""
    def reference(p, x, times, o):
        paths = BrownianPaths(SEEDS, times[0] - times[-1], 2, x.dtype, x.device)
        for t, s in pairwise(np.linspace(times[0], times[-1], steps + 1).tolist()):
            c = p.at(t)
            drift = c.drift * x - (1 + o.eta**2) / 2 * c.g2 * p.score(x, t)
            x = x + (s - t) * drift + o.eta * math.sqrt(c.g2) * paths(1 - t, 1 - s)
        return x
    return reference
