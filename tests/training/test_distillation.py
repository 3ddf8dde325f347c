"""Students of exact teachers: what each objective teaches is the student that is known in closed form."""

import math

import pytest
import torch
from torch import nn

from scorefield.guidance import classifier_free, classifier_guided
from scorefield.likelihood import elbo, log_prob
from scorefield.models import Denoiser, GaussianMixture
from scorefield.models.student import CONSISTENCY_MODEL, of_steps
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, own_sampler, prior_sample
from scorefield.sde_lib import VESDE, VPSDE, CosineVPSDE
from scorefield.training import (
    Batch,
    Consistency,
    ContinuousConsistency,
    Draws,
    GuidedDistillation,
    ProgressiveDistillation,
    build_objective,
)
from scorefield.training.objectives.taught import Lesson

CPU, D = torch.device("cpu"), 2
MEANS, VARIANCES = torch.tensor([[-1.2, 0.3], [0.8, -0.5], [0.4, 1.1]]), torch.tensor([0.05, 0.1, 0.02])
LABELS = torch.tensor([0, 0, 1])


def mixture(sde):
    return GaussianMixture(sde, MEANS, VARIANCES, labels=LABELS)


def gaussian(sde, v=0.3):
    return GaussianMixture(sde, torch.zeros(1, D), torch.tensor([v]))


class Module(nn.Module):
    """A network that is a function of x and time, with parameters and declared conditions."""

    def __init__(self, function, *parameters, conditions=(), classes=None, guidance=None):
        super().__init__()
        self.function, self.parameters_, self.conditions = function, nn.ParameterList(parameters), conditions
        self.classes, self.guidance = classes, guidance

    def forward(self, x, time, *told):
        return self.function(x, time.double(), *told)


def denoiser(network, sde, kind="x0", dropout=False):
    return Denoiser(network, sde, kind, time_input=lambda sde, t: t, label_dropout=dropout)


class ExactStudent(GaussianMixture):
    """The student that progressive distillation seeks: each prediction is the target that the teacher gives."""

    def __init__(self, objective):
        teacher = objective.teacher_model
        super().__init__(teacher.sde, MEANS, VARIANCES, labels=LABELS)
        self.objective = objective

    @property
    def student(self):
        return of_steps(self.sde, self.objective.student_steps, self.objective.grid)

    def predict(self, x, t, kind, condition=None):
        t = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        x0 = self.objective.target(x, t, self.takes.of_batch(condition, x))
        if kind == "x0":
            return x0
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        return (x - alpha * x0) / sigma


class Table(nn.Module):
    """x_0 = k(t) x, with a number k for each time of a grid."""

    conditions, classes = (), None

    def __init__(self, grid, start=0.5):
        super().__init__()
        self.register_buffer("grid", grid)
        self.k = nn.Parameter(torch.full((len(grid),), start, dtype=torch.float64))

    def forward(self, x, time):
        return self.k[(self.grid[:, None] - time).abs().argmin(0)][:, None] * x


def minimise(objective, model, data, steps, rate=0.05, batch=64):
    """Adam with a falling rate, on fresh examples of an exact model in float64."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        draws = Draws(batch, step, CPU)
        examples = Batch(data.sample(batch, generator=draws.host))
        draw = objective.draw(examples, draws)._replace()
        optimizer.zero_grad()
        objective.loss(model, examples, draw._replace(eps=draw.eps.double())).mean().backward()
        optimizer.step()


def slope(sde, t, s, v):
    """What a step of DDIM from t to s multiplies x by, for data N(0, v I)."""
    alpha, sigma, alpha_s, sigma_s = sde.alpha(t), sde.sigma(t), sde.alpha(s), sde.sigma(s)
    x0 = alpha * v / (alpha**2 * v + sigma**2)
    return sigma_s / sigma + (alpha_s - sigma_s / sigma * alpha) * x0


def lesson(sde, t, seed=0, label=None):
    """A batch of exact data with labels, and its draw at times t in float64."""
    generator, n = torch.Generator().manual_seed(seed), len(t)
    x = mixture(sde).sample(n, generator=generator)
    label = torch.arange(n) % 2 if label is None else label
    eps, place = torch.randn(n, D, dtype=torch.float64, generator=generator), torch.rand(n, generator=generator)
    return Batch(x, {"label": label}), Lesson(t, torch.ones_like(t), eps, None, place)


# ---- progressive --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [VPSDE(), CosineVPSDE(), VESDE(sigma_max=5.0)])
@pytest.mark.parametrize(("grid", "substeps"), [("uniform", 2), ("logsnr", 3)])
def test_the_target_of_progressive_distillation_points_to_where_the_teachers_steps_of_ddim_lead(sde, grid, substeps):
    objective = ProgressiveDistillation(sde, teacher_model=mixture(sde), student_steps=3, substeps=substeps, grid=grid)
    for i in range(3):
        times = objective.fine[i * substeps:(i + 1) * substeps + 1]
        t, s = times[0], times[-1]
        x = mixture(sde).sample(20, t=float(t), generator=torch.Generator().manual_seed(i))
        target = objective.target(x, t.expand(20), {"label": torch.full((20,), 2)})
        ratio = sde.sigma(s) / sde.sigma(t)
        step = ratio * x + (sde.alpha(s) - ratio * sde.alpha(t)) * target
        there = make_sampler("ddim", grid=times.tolist())(mixture(sde), x).x
        assert torch.allclose(step, there, rtol=0, atol=1e-11)


def test_exact_students_from_64_steps_down_to_one_are_the_first_teachers_ddim():
    sde = CosineVPSDE()
    model, steps = mixture(sde), 32
    while steps:
        objective = ProgressiveDistillation(sde, teacher_model=model, student_steps=steps)
        model, steps = ExactStudent(objective), steps // 2
    x_T = prior_sample(sde, (D,), range(6), dtype=torch.float64)
    one = own_sampler(model, make_sampler("auto"))(model.given(label=1), x_T)
    every = make_sampler("ddim", steps=64, grid="uniform")(mixture(sde).given(label=1), x_T)
    assert one.nfe == 1 and every.nfe == 64
    assert torch.allclose(one.x, every.x, rtol=0, atol=1e-9)


def test_the_loss_of_progressive_distillation_is_0_for_the_exact_student_alone():
    sde = VPSDE()
    objective = ProgressiveDistillation(sde, teacher_model=mixture(sde), student_steps=4)
    batch, draw = lesson(sde, objective.fine[::2][:4].repeat(3))
    exact = objective.loss(ExactStudent(objective), batch, draw)
    other = objective.loss(mixture(sde), batch, draw)      # the teacher, whose single step is another
    assert float(exact.max()) < 1e-20 and float(other.max()) > 1e-3


def test_training_a_student_of_gaussian_data_finds_the_product_of_the_teachers_steps():
    sde, v = CosineVPSDE(), 0.3
    objective = ProgressiveDistillation(sde, teacher_model=gaussian(sde, v), student_steps=3, label_dropout=0.0)
    fine, grid = objective.fine, objective.fine[::2]
    model = denoiser(Table(grid[:3]), sde)
    minimise(objective, model, gaussian(sde, v), 120, rate=0.1)
    two = torch.stack([slope(sde, fine[2 * i], fine[2 * i + 1], v) * slope(sde, fine[2 * i + 1], fine[2 * i + 2], v)
                       for i in range(3)])
    ratio = sde.sigma(grid[1:]) / sde.sigma(grid[:-1])
    exact = (two - ratio) / (sde.alpha(grid[1:]) - ratio * sde.alpha(grid[:-1]))
    assert torch.allclose(model.network.k, exact, rtol=0, atol=2e-3)


# ---- guided -------------------------------------------------------------------------------------------------------


def parts(sde):
    """A network of two numbers a, b: a eps_none + b w (eps_label - eps_none), exact at a = b = 1."""
    exact = mixture(sde)

    def function(x, t, told):
        none = exact.predict(x, t, "eps", {"label": torch.full_like(told["label"], 2)})
        own = exact.predict(x, t, "eps", {"label": told["label"]})
        return a * none + b * told["guidance"].to(x)[:, None] * (own - none)

    a, b = (nn.Parameter(torch.tensor(number, dtype=torch.float64)) for number in (0.3, 2.0))
    return Module(function, a, b, conditions=("label", "guidance"), classes=2, guidance=(0.0, 4.0))


def test_training_a_guided_student_finds_classifier_free_guidance_at_every_scale():
    sde = VPSDE()
    model = denoiser(parts(sde), sde, "eps", dropout=True)
    objective = GuidedDistillation(sde, teacher_model=mixture(sde))
    objective.require(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(80):
        draws = Draws(64, step, CPU)
        batch, _ = lesson(sde, torch.ones(64), step)
        draw = objective.draw(batch, draws)
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 80)
        optimizer.zero_grad()
        objective.loss(model, batch, draw._replace(eps=draw.eps.double())).mean().backward()
        optimizer.step()
    assert all(abs(number.item() - 1) < 1e-2 for number in model.parameters())
    x = mixture(sde).sample(5, t=0.5, generator=torch.Generator().manual_seed(1))
    for scale in (0.0, 1.0, 3.5):
        student = model.given(label=1, guidance=scale)
        assert student.evaluations == 1
        assert torch.allclose(student.eps(x, 0.5), classifier_free(mixture(sde), scale, label=1).eps(x, 0.5), atol=0.02)
    with pytest.raises(ArgumentError, match="distilled for guidance from 0 to 4, got 5"):
        model.given(label=1, guidance=5.0)
    with pytest.raises(ArgumentError, match="needs a guidance"):
        model.given(label=1).eps(x, 0.5)


def test_a_student_of_a_guided_student_learns_what_that_says_at_each_scale():
    sde = VPSDE()
    guided = denoiser(parts(sde), sde, "eps", dropout=True)
    with torch.no_grad():
        [parameter.fill_(1.0) for parameter in guided.parameters()]
    objective = ProgressiveDistillation(sde, teacher_model=guided, student_steps=2)
    objective.require(guided)
    t = objective.fine[:1].expand(8)
    batch, draw = lesson(sde, t)
    told = objective.lesson(guided, batch, draw)
    x_t = objective.noisy(batch, draw, t)
    target = objective.target(x_t, t, told.condition)
    for i in range(8):
        exact = classifier_free(mixture(sde), float(told.condition["guidance"][i]), label=batch.condition["label"][i:i + 1])
        steps = make_sampler("ddim", grid=objective.fine[:3].tolist())(exact, x_t[i:i + 1]).x
        t, s = objective.fine[0], objective.fine[2]
        ratio = sde.sigma(s) / sde.sigma(t)
        mine = ratio * x_t[i:i + 1] + (sde.alpha(s) - ratio * sde.alpha(t)) * target[i:i + 1]
        assert torch.allclose(mine, steps, atol=1e-6)      # the scale is a float32


# ---- consistency --------------------------------------------------------------------------------------------------


def discrete(sde, grid, v, solver):
    """f of each time of a grid but 0: the product of the teacher's steps to the data, for data N(0, v I)."""
    k, steps = [], list(zip(grid[:-1], grid[1:], strict=True))
    for t, s in reversed(steps):
        alpha, sigma, alpha_s, sigma_s = sde.alpha(t), sde.sigma(t), sde.alpha(s), sde.sigma(s)
        step = slope(sde, t, s, v)
        if solver == "heun" and s > 0:
            eps, second = sigma / (alpha**2 * v + sigma**2), sigma_s / (alpha_s**2 * v + sigma_s**2) * step
            step = alpha_s / alpha + (sigma_s - sigma * alpha_s / alpha) * (eps + second) / 2
        k.append(step * (k[-1] if k else 1))
    return torch.stack(k[::-1])


def flow_end(sde, t, v):
    """f of the exact flow of data N(0, v I)."""
    return (v / (sde.alpha(t)**2 * v + sde.sigma(t)**2)).sqrt()


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_the_loss_of_consistency_distillation_is_0_for_the_exact_student_alone(solver):
    sde, v = CosineVPSDE(), 0.3
    objective = Consistency(sde, teacher_model=gaussian(sde, v), intervals=6, solver=solver, label_dropout=0.0)
    grid = objective.times.grid()
    assert len(grid) == 7 and grid[0] == 1 and grid[-1] == 0 and grid[-2] == sde.t_sample
    model = denoiser(Table(grid[:-1]), sde)
    batch, draw = lesson(sde, grid[:-1].repeat(4))
    with torch.no_grad():
        model.network.k.copy_(discrete(sde, grid, v, solver))
        assert float(objective.loss(model, batch, draw).max()) < 1e-9
        model.network.k.add_(0.01)
        assert float(objective.loss(model, batch, draw).max()) > 1e-4


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
def test_the_exact_discrete_student_approaches_the_flow_in_the_order_of_its_solver(solver, order):
    sde, v, errors = VPSDE(), 0.3, []
    for intervals in (40, 80, 160):
        grid = Consistency(sde, teacher_model=gaussian(sde), intervals=intervals, grid="sinh").times.grid()
        steps, exact = discrete(sde, grid, v, solver), flow_end(sde, grid[:-1], v)      # to t_sample: the last one is DDIM's
        errors.append(float((steps[0] / steps[-1] - exact[0] / exact[-1]).abs()))
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(abs(found - order) < 0.25 for found in slopes), (errors, slopes)


def test_the_gradient_without_a_teacher_is_0_at_the_fixed_point_of_gaussian_data_alone():
    """E[f(x_s) given x_t] is linear: each k is the next one's times (alpha_s alpha_t v + sigma_s sigma_t) / Var x_t."""
    sde, v, n = CosineVPSDE(), 0.3, 100_000
    objective = Consistency(sde, intervals=5, distance="squared", label_dropout=0.0)
    grid, k = objective.times.grid(), [torch.tensor(1.0, dtype=torch.float64)]
    for t, s in reversed(list(zip(grid[:-1], grid[1:], strict=True))):
        covariance = sde.alpha(s) * sde.alpha(t) * v + sde.sigma(s) * sde.sigma(t)
        k.append(k[-1] * covariance / (sde.alpha(t)**2 * v + sde.sigma(t)**2))
    model, generator = denoiser(Table(grid[:-1]), sde), torch.Generator().manual_seed(0)
    for i in range(5):
        x0, eps = gaussian(sde, v).sample(n, generator=generator), torch.randn(n, D, generator=generator).double()
        draw = Lesson(grid[i].expand(n), torch.ones(n), eps, None, torch.zeros(n))
        for off in (0.0, 0.01):
            model.network.k.data = torch.stack(k[:0:-1])
            model.network.k.data[i] += off
            model.network.k.grad = None
            objective.loss(model, Batch(x0), draw).mean().backward()
            x_t = objective.noisy(Batch(x0), draw, draw.t)      # the gradient is 2 (k - best) E x_t^2 but for its noise
            step = float(model.network.k.grad[i] / (2 * x_t.square().mean()))
            assert abs(step - off) < 0.004


def test_the_intervals_double_in_equal_parts_of_the_training_and_each_is_drawn_as_often_as_its_mass_says():
    objective = Consistency(CosineVPSDE(), intervals=40, first_intervals=10, updates=300, levels="lognormal:mean=-1:std=1")
    numbers = []
    for updates in (0, 99, 100, 199, 200, 299):
        objective.progress.updates = updates
        numbers.append(objective.times.number())
    assert numbers == [10, 10, 20, 20, 40, 40]
    objective.progress.updates = 0
    grid, sde = objective.times.grid(), objective.sde
    t, _ = objective.times.draw(40_000, torch.Generator().manual_seed(0))
    normal = (-sde.half_log_snr(grid[:-1]) + 1).clamp(-9, 9)
    mass = -torch.special.ndtr(normal).diff()
    drawn = torch.stack([(t == each).double().mean() for each in grid[:-2]])
    assert torch.allclose(drawn, mass, atol=1e-3)
    assert torch.equal(objective.times.after(t), grid[torch.searchsorted(-grid, -t) + 1])


# ---- continuous ---------------------------------------------------------------------------------------------------


def flow_network(sde, v=0.3):
    """F of v-prediction for which f is the flow's end, of data N(0, v I); v is a parameter."""
    def function(x, t):
        cos, sin = sde.alpha(t), sde.sigma(t)
        return ((cos - (cos**2 + sin**2 / log_v.exp()).rsqrt()) / sin)[:, None] * x

    log_v = nn.Parameter(torch.tensor(math.log(v), dtype=torch.float64))
    return Module(function, log_v)


@pytest.mark.parametrize("sde", [VPSDE(), CosineVPSDE()])
def test_the_tangent_of_the_exact_flow_is_0_and_that_of_another_is_its_derivative_along_the_flow(sde):
    """In float64 but for the network's time, which is a float32."""
    objective = ContinuousConsistency(sde, teacher_model=gaussian(sde), warmup_tangent=0)
    t = torch.linspace(0.2, 0.9, 6, dtype=torch.float32).double()
    batch, draw = lesson(sde, t)
    x = objective.noisy(batch, draw, t)
    _, exact = objective.tangent(denoiser(flow_network(sde), sde, "v"), batch, draw, x, {})
    assert float(exact.abs().max()) < 1e-6
    other = denoiser(flow_network(sde, 0.8), sde, "v")
    _, tangent = objective.tangent(other, batch, draw, x, {})
    h, ends = 1e-3, []
    for sign in (-1, 1):      # x moves by the exact flow
        s = (t + sign * h).float().double()
        x_s = x * flow_end(sde, t, 0.3)[:, None] / flow_end(sde, s, 0.3)[:, None]
        ends.append((other.x0(x_s, s), torch.atan2(sde.sigma(s), sde.alpha(s))))
    change = (ends[1][0] - ends[0][0]) / (ends[1][1] - ends[0][1])[:, None]
    torch.testing.assert_close(tangent, sde.alpha(t)[:, None] * change, rtol=1e-4, atol=1e-6)


@pytest.mark.costly
@pytest.mark.parametrize("taught", [True, False])
def test_training_in_continuous_time_finds_the_variance_of_the_data(taught):
    sde = CosineVPSDE()
    objective = ContinuousConsistency(sde, teacher_model=gaussian(sde) if taught else None, warmup_tangent=20,
                                      label_dropout=0.0, c=10.0)      # a small c favours the median of single tangents
    model = denoiser(flow_network(sde, 1.5), sde, "v")
    objective.require(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 150)
        draws = Draws(64, step, CPU)
        batch = Batch(gaussian(sde).sample(64, generator=draws.host))
        draw = objective.draw(batch, draws)
        optimizer.zero_grad()
        objective.loss(model, batch, draw._replace(eps=draw.eps.double())).mean().backward()
        optimizer.step()
        objective.stepped(None)
    assert abs(next(model.parameters()).exp().item() - 0.3) < (5e-3 if taught else 0.05)


# ---- sampling, and what is refused --------------------------------------------------------------------------------


def consistency_model(sde, v=0.3):
    model = denoiser(flow_network(sde, v), sde, "v")
    model.made_for = CONSISTENCY_MODEL
    return model.eval().requires_grad_(False)


def test_the_multistep_sampler_draws_gaussian_data_exactly_for_every_number_of_steps():
    sde, n = VPSDE(), 4000
    model = consistency_model(sde)
    x_T = prior_sample(sde, (D,), range(n), dtype=torch.float64)
    for steps in (1, 3):
        result = make_sampler("consistency", steps=steps)(model, x_T, range(n))
        assert result.nfe == steps and len(result.times) == steps + 1 and result.times[-1] == 0
        assert abs(float(result.x.var()) / 0.3 - 1) < 4 * (2 / (2 * n))**0.5
    one = make_sampler("consistency", steps=1)(model, x_T, range(n)).x
    assert torch.allclose(one, x_T * flow_end(sde, torch.tensor(1.0, dtype=torch.float64), 0.3), atol=1e-6)
    few = make_sampler("consistency", steps=3)(model, x_T[:5], range(5)).x
    assert torch.equal(few, make_sampler("consistency", steps=3)(model, x_T, range(n)).x[:5])


def test_only_its_own_sampler_takes_a_student_and_nothing_takes_its_score():
    sde = VPSDE()
    student = consistency_model(sde)
    steps = denoiser(flow_network(sde), sde, "v")
    steps.made_for = of_steps(sde, 4, "uniform")
    x_T, seeds = prior_sample(sde, (D,), range(3), dtype=torch.float64), range(3)
    make_sampler("ddim", steps=4, grid="uniform")(steps, x_T)
    make_sampler("ddim", steps=4)(steps, x_T)      # the grid auto is uniform
    for name, options in (("ddim", {"steps": 5}), ("ddim", {"steps": 4, "grid": "logsnr"}), ("auto", {"steps": 4}),
                          ("ddim", {"steps": 4, "eta": 1.0}), ("ddim", {"steps": 4, "denoise": True}),
                          ("consistency", {"steps": 4})):
        with pytest.raises(ArgumentError, match="a student of 4 steps of DDIM on the grid 'uniform', and only its own"):
            make_sampler(name, **options)(steps, x_T, seeds)
    with pytest.raises(ArgumentError, match="a consistency model, and only its own sampler .* 'consistency'"):
        make_sampler("ddim", steps=4)(student, x_T)
    with pytest.raises(ArgumentError, match="is for consistency models"):
        make_sampler("consistency", steps=2)(gaussian(sde), x_T, seeds)
    for use in (lambda: log_prob(student, x_T), lambda: elbo(student, x_T),
                lambda: classifier_guided(student, lambda x, t: x, label=0)):
        with pytest.raises(ArgumentError, match="needs a score model, and this is a consistency model"):
            use()


@pytest.mark.parametrize(("make", "words"), [
    (lambda sde: ProgressiveDistillation(sde), "a student needs a teacher"),
    (lambda sde: ProgressiveDistillation(sde, teacher="x", student_steps=0), "student_steps must lie in 1"),
    (lambda sde: ProgressiveDistillation(sde, teacher="x", substeps=1), "substeps must lie in 2"),
    (lambda sde: ProgressiveDistillation(sde, teacher="x", grid="strided"), "grid must lie within its teacher's"),
    (lambda sde: Consistency(sde, intervals=1), "intervals must lie in 2"),
    (lambda sde: Consistency(sde, solver="rk4"), "unknown solver 'rk4'"),
    (lambda sde: Consistency(sde, interval_weight="odd"), "unknown interval_weight"),
    (lambda sde: Consistency(sde, levels="edm"), "unknown levels"),
    (lambda sde: Consistency(sde, distance="huber:c=0"), "must be above 0"),
    (lambda sde: ContinuousConsistency(VESDE()), "for variance-preserving SDEs"),
    (lambda sde: ContinuousConsistency(sde, c=0.0), r"c in \(0, "),
])
def test_settings_that_cannot_be_are_refused_in_one_line(make, words):
    with pytest.raises(ArgumentError, match=words):
        make(VPSDE())


def test_a_student_that_cannot_learn_from_its_teacher_is_refused():
    sde = VPSDE()
    plain, labelled = denoiser(flow_network(sde), sde, "v"), denoiser(parts(sde), sde, "eps", dropout=True)
    steps = denoiser(flow_network(sde), sde, "v")
    steps.made_for = of_steps(sde, 6, "uniform")
    student = of_steps(sde, 8, "uniform")
    for objective, model, words in (
            ("progressive", plain, "and a student of 4 steps needs one of 8"),
            ("guided", plain, "set model.guidance"),
            ("consistency", denoiser(flow_network(CosineVPSDE()), CosineVPSDE(), "v"), "must be the same"),
            ("consistency", labelled, "must take the same"),
            ("continuous_consistency", denoiser(flow_network(sde), sde, "x0"), "for v-prediction")):
        with pytest.raises(ArgumentError, match=words):
            build_objective(model, {"objective": objective, "teacher": "x"}, teacher=steps)
    steps.made_for = student
    build_objective(plain, {"objective": "progressive", "teacher": "x"}, teacher=steps)
    with pytest.raises(ArgumentError, match="distil the guidance first"):
        one = denoiser(parts(sde), sde, "eps", dropout=True)
        one.made_for = student
        build_objective(labelled, {"objective": "guided", "teacher": "x"}, teacher=one)


def test_several_steps_of_the_teacher_lead_along_its_flow_to_the_next_time_of_the_grid():
    sde = CosineVPSDE()
    teacher = mixture(sde)
    objective = Consistency(sde, teacher_model=teacher, intervals=4, teacher_steps=60, grid="sinh", label_dropout=0.0)
    grid, label = objective.times.grid(), torch.tensor([0, 1, 0, 1])
    assert torch.equal(grid, Consistency(sde, teacher_model=teacher, intervals=4, grid="sinh").times.grid())
    x = torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reached = objective.flow(x, grid[:4], grid[1:5], {"label": label})
    for i in range(3):
        inner = sde.time(torch.linspace(*sde.half_log_snr(grid[i:i + 2]).tolist(), 80, dtype=torch.float64))
        times = [float(grid[i]), *inner[1:-1].tolist(), float(grid[i + 1])]
        exact = make_sampler("auto", grid=times)(teacher.given(label=label[i:i + 1]), x[i:i + 1]).x
        torch.testing.assert_close(reached[i:i + 1], exact, rtol=0, atol=2e-3)
    x_0 = teacher.given(label=label[3:]).x0(x[3:], grid[3])
    torch.testing.assert_close(reached[3:], x_0, rtol=0, atol=1e-12)      # the step to the data is one of DDIM
    with pytest.raises(ArgumentError, match="teacher_steps must lie in 1"):
        Consistency(sde, teacher_model=teacher, teacher_steps=0)
