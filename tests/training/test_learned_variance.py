"""The losses of a learned variance, against divergences written out, and times drawn by their losses."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from scorefield.checkpoints.formats.run import newest_checkpoint, read_state
from scorefield.data import make_codec
from scorefield.likelihood import chain_elbo
from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.models.networks.outputs import doubled
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.processes import World
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VPSDE, DDPMChain
from scorefield.sde_lib.transition import CHAIN, Transition, variance_of_x0
from scorefield.training import Batch, Draws, LearnedVariance, ScoreMatching, build_objective, train
from scorefield.training.objectives.loss_history import KEPT, LossHistory
from scorefield.training.objectives.score_matching import NoisyTimes
from tests.helpers import ROOT, randomised

CHAINS = {"linear": DDPMChain.from_schedule("linear", 60), "cosine": DDPMChain.from_schedule("cosine", 40)}


def model_of(sde, parametrization="eps"):
    torch.manual_seed(0)
    network = randomised(doubled(MLP((3,), 8, 1))).double()
    return Denoiser(network, sde, parametrization, "half_log_snr", learned_variance=True)


def noisy(times, n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(len(times), n, dtype=torch.float64, generator=generator) for _ in range(2))
    return Batch(x0), NoisyTimes(times, torch.ones_like(times), eps)


def terms_by_hand(model, chain, x0, draw):
    """L_(t-1) of Ho et al. 2020, equation 5, with a learned variance, in bits/dim, by torch.distributions."""
    terms, x_t = [], model.sde.perturb(x0, draw.t, draw.eps)
    predictions, shares = model.with_share(x_t, draw.t, "x0")
    for i, t in enumerate(draw.t.tolist()):
        index, x, predicted, share = round(t * chain.steps) - 1, x_t[i:i + 1], predictions[i:i + 1], shares[i:i + 1]
        if index:
            q_mean, tilde = chain.posterior(x0[i:i + 1], x, index)
            mean, beta = chain.posterior(predicted, x, index)[0], chain.between(index, index - 1).variance
            v = torch.exp(share * beta.log() + (1 - share) * tilde.log())
            term = kl_divergence(Normal(q_mean, tilde.sqrt()), Normal(mean, v.sqrt()))
        else:
            v = torch.exp(share * chain.sigma[0].square().log() + (1 - share) * chain.posterior(x, x, 1)[1].log())
            term = -Normal(predicted, v.sqrt()).log_prob(x0[i:i + 1])
        terms.append(term.mean() / math.log(2))
    return torch.stack(terms)


@pytest.mark.parametrize("parametrization", ["eps", "v", "x0"])
@pytest.mark.parametrize("name", CHAINS)
def test_both_losses_are_their_hand_written_forms(name, parametrization):
    chain = CHAINS[name]
    sde = chain.to_sde()
    model, (batch, draw) = model_of(sde, parametrization), noisy(chain.times)
    with torch.no_grad():
        by_hand = chain.steps * terms_by_hand(model, chain, batch.x, draw)
        vlb = LearnedVariance(sde, method="vlb").loss(model, batch, draw)
        torch.testing.assert_close(vlb, by_hand, rtol=1e-9, atol=1e-9)
        simple = ScoreMatching(sde).loss(model, batch, draw)
        hybrid = LearnedVariance(sde, method="hybrid:weight=0.01").loss(model, batch, draw)
        torch.testing.assert_close(hybrid, simple + 0.01 * by_hand, rtol=1e-9, atol=1e-9)
        default = LearnedVariance(sde).loss(model, batch, draw)
        torch.testing.assert_close(default, simple + 0.001 * by_hand, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CHAINS)
def test_the_mean_over_the_chain_is_its_bound(name):
    """With the same noise: -(diffusion + decoder) / D in bits."""
    chain, x = CHAINS[name], torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sde, eps = chain.to_sde(), []
    model = model_of(sde)
    with_share = model.with_share

    def noted(x_t, t, kind):
        eps.append((x_t - sde.alpha(t) * x) / sde.sigma(t))
        return with_share(x_t, t, kind)

    model.with_share = noted
    bound = chain_elbo(model, x, None, chain, variance="learned", seeds=[0], dtype=torch.float64)
    model.with_share = with_share
    draw = NoisyTimes(chain.times, torch.ones_like(chain.times), torch.cat(eps))
    with torch.no_grad():
        loss = LearnedVariance(sde, method="vlb").loss(model, Batch(x.expand(chain.steps, 3)), draw).mean()
    wanted = -(bound.terms["diffusion"] + bound.terms["decoder"]) / (3 * math.log(2))
    assert float(loss) == pytest.approx(float(wanted), rel=1e-8)


@pytest.mark.parametrize("levels", [5, 256])
def test_the_decoder_of_levels_is_the_mass_of_their_cells_and_has_a_gradient(levels):
    chain = CHAINS["cosine"]
    sde, draws = chain.to_sde(), torch.Generator().manual_seed(2)
    k = torch.randint(levels, (6, 3), generator=draws)
    k[0] = torch.tensor([0, levels - 1, 1])      # the outer cells go on to infinity
    x = 2 * k.double() / (levels - 1) - 1
    t = torch.full((6,), 1 / 40, dtype=torch.float64)
    error = 0.05 * torch.randn(6, 3, generator=draws).double()
    share = torch.rand(6, 3, generator=draws).double().requires_grad_()
    objective = LearnedVariance(sde, method="vlb", codec=make_codec(levels))
    terms = objective.bound(t, error, share, x)
    v = torch.exp(share * chain.sigma[0].square().log() + (1 - share) * chain.posterior(x, x, 1)[1].log())
    cell, mean = 1 / (levels - 1), x - chain.sigma[0] / chain.alpha[0] * error
    upper = torch.where(k == levels - 1, 1.0, Normal(mean, v.sqrt()).cdf(x + cell))
    lower = torch.where(k == 0, 0.0, Normal(mean, v.sqrt()).cdf(x - cell))
    torch.testing.assert_close(terms, -40 * (upper - lower).log2().mean(1), rtol=1e-6, atol=1e-9)
    slope, = torch.autograd.grad(terms.sum(), share)
    step = 1e-6
    with torch.no_grad():
        for i in range(3):
            moved = torch.zeros(6, 3).double().index_fill(1, torch.tensor([i]), step)
            right, left = (objective.bound(t, error, share + by, x) for by in (moved, -moved))
            torch.testing.assert_close(slope[:, i], (right - left) / (2 * step), rtol=1e-5, atol=1e-6)
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("sde", [VPSDE(), CHAINS["linear"].to_sde()], ids=["vp", "chain"])
@pytest.mark.parametrize("bound_steps", [None, 20, 7])
def test_the_bound_of_the_hybrid_has_no_gradient_in_the_mean(sde, bound_steps):
    """Exactly none: the last layer's half of the mean, and all below it, by way of the share alone."""
    model, times = model_of(sde), torch.linspace(0.02, 1, 40, dtype=torch.float64)
    batch, draw = noisy(times)
    objective = LearnedVariance(sde, bound_steps=bound_steps)
    x_t = sde.perturb(batch.x, draw.t, draw.eps)
    output, share = model.outputs(x_t, draw.t)
    error = output - draw.eps
    loss = objective.bound(draw.t, error.detach(), share, batch.x).mean()
    last = model.network.last
    weight, bias = torch.autograd.grad(loss, (last.weight, last.bias), retain_graph=True)
    assert not weight[:3].any() and not bias[:3].any() and weight[3:].any()
    # and in the loss that is trained: the gradient of the mean's rows is that of L_simple to the bit
    of_hybrid, of_simple = (torch.autograd.grad(one.loss(model, batch, draw).mean(), last.weight)[0][:3]
                            for one in (objective, ScoreMatching(sde)))
    assert torch.equal(of_hybrid, of_simple)
    of_vlb, = torch.autograd.grad(LearnedVariance(sde, method="vlb").loss(model, batch, draw).mean(), last.weight)
    assert of_vlb[:3].any()


def test_longer_steps_have_the_analytic_variance_of_the_share():
    """A term of the strided bound is the divergence at beta_tilde + b^2 Var[x_0 given x_t] of `posterior`."""
    chain = CHAINS["linear"]
    sde = chain.to_sde()
    model, (batch, draw) = model_of(sde), noisy(chain.times)
    objective, stride = LearnedVariance(sde, method="vlb", bound_steps=12), 5
    x_t, compared = sde.perturb(batch.x, draw.t, draw.eps), 0
    with torch.no_grad():
        losses = objective.loss(model, batch, draw) / 12
        posterior, share = model.posterior(x_t, draw.t), model.with_share(x_t, draw.t, "x0")[1]
    for i in range(1, chain.steps):
        x, x0, known = x_t[i:i + 1], batch.x[i:i + 1], posterior.mean[i:i + 1]
        q_mean, tilde = chain.posterior(x0, x, i, max(0, i - stride))
        mean, of_x0 = chain.posterior(known, x, i, max(0, i - stride))[0], chain.between(i, max(0, i - stride)).posterior[1]
        v = tilde + of_x0.square() * posterior.variance[i:i + 1]
        term = kl_divergence(Normal(q_mean, tilde.sqrt()), Normal(mean, v.sqrt())) / math.log(2)
        if bool((share[i] > 0).all()):
            assert float(term.mean()) == pytest.approx(float(losses[i]), rel=1e-7)
            compared += 1
    assert compared > 5


@pytest.mark.parametrize("sde", [VPSDE(), CHAINS["cosine"].to_sde()], ids=["vp", "chain"])
def test_a_share_and_the_variance_of_x_0_give_the_same_step_of_the_chain(sde):
    """`analytic` in the chain's own steps is `learned`, where the share is not below 0."""
    class Network(torch.nn.Module):
        def forward(self, x, time):
            return torch.cat([0.5 * x, torch.linspace(-0.9, 1, x.shape[1]).to(x).expand_as(x)], 1)

    model, steps = Denoiser(Network(), sde, time_input="half_log_snr", learned_variance=True), sde.steps or CHAIN
    x_T = prior_sample(sde, (5,), range(3)).double()
    grid = [i / steps for i in range(steps, steps - 6, -1)]
    learned, analytic = (make_sampler("ancestral", steps=5, grid=grid, variance=variance)(model, x_T, range(3)).x
                         for variance in ("learned", "analytic"))
    torch.testing.assert_close(learned, analytic, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("bound_steps", [None, 20])
@pytest.mark.parametrize("std", [0.3, 0.7])
def test_the_best_share_for_gaussian_data_is_their_variance(std, bound_steps):
    """For N(0, s^2) and the exact mean the bound is least where w stands for Var[x_0 given x_t], in steps of any length."""
    sde, t = VPSDE(), torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    exact = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
    own = Transition.back(sde, t)[0]
    best = torch.log1p(own.gain * exact) / own.log_ratio
    torch.testing.assert_close(variance_of_x0(best[:, None], sde, t)[:, 0], exact, rtol=1e-9, atol=0)
    error = (exact * alpha**2 / sigma**2).sqrt()[:, None]      # in eps, of which the mean square matters

    def slope(share):
        share = share[:, None].clone().requires_grad_()
        value = LearnedVariance(sde, bound_steps=bound_steps).bound(t, error, share, error).sum()
        return torch.autograd.grad(value, share)[0][:, 0]

    least, left, right = slope(best), slope(best - 0.05), slope(best + 0.05)
    assert (left < 0).all() and (right > 0).all() and (least.abs() < 1e-7 * torch.minimum(-left, right)).all()


def test_the_second_moments_have_their_hand_written_losses():
    """Square, likelihood, and L_hybrid at the analytic variance, by torch.distributions; no gradient in the mean."""
    chain = CHAINS["linear"]
    sde, (batch, draw) = chain.to_sde(), noisy(chain.times)
    x_t, simple = sde.perturb(batch.x, draw.t, draw.eps), None
    for output, method in (("residual", "square"), ("noise", "square:weight=0.5"), ("residual", "likelihood"),
                           ("residual", "hybrid")):
        model = model_of(sde)
        model.variance_output = output
        objective = LearnedVariance(sde, method=method, variance_output=output)
        loss = objective.loss(model, batch, draw)
        with torch.no_grad():
            eps, raw = model.eps(x_t, draw.t), model.network(x_t, model.time(draw.t, x_t)).chunk(2, 1)[1]
            error, e = draw.eps - eps, raw.exp()
            simple = error.square().mean(1)
            if method == "hybrid":
                posterior, terms = model.posterior(x_t, draw.t), []
                for i in range(chain.steps):
                    x0, x, known, v = batch.x[i:i + 1], x_t[i:i + 1], posterior.mean[i:i + 1], posterior.variance[i:i + 1]
                    if i:
                        (q_mean, tilde), mean = chain.posterior(x0, x, i), chain.posterior(known, x, i)[0]
                        v = tilde + chain.between(i, i - 1).posterior[1].square() * v
                        terms.append(kl_divergence(Normal(q_mean, tilde.sqrt()), Normal(mean, v.sqrt())).mean())
                    else:
                        terms.append(-Normal(known, v.sqrt()).log_prob(x0).mean())
                second = 0.001 * chain.steps * torch.stack(terms) / math.log(2)
            elif method == "likelihood":
                second = -(Normal(eps, e.sqrt()).log_prob(draw.eps) + math.log(2 * math.pi) / 2).mean(1)
            elif output == "noise":
                second = 0.5 * (draw.eps.square() - 1 - raw).square().mean(1)
            else:
                second = (error.square() - e).square().mean(1)
        torch.testing.assert_close(loss.detach(), simple + second, rtol=1e-9, atol=1e-9)
        of_mean, of_simple = (torch.autograd.grad(one.mean(), model.network.last.weight)[0][:3]
                              for one in (loss, ScoreMatching(sde).loss(model, batch, draw)))
        assert torch.equal(of_mean, of_simple)


@pytest.mark.slow
@pytest.mark.costly
@pytest.mark.parametrize("output, method", [("residual", "square"), ("residual", "likelihood"), ("noise", "square")])
def test_a_second_moment_learns_where_the_mixture_is_unsure(output, method):
    """The error to the exact variance, which differs from x to x, is less than half of the best constant's at each t."""
    sde, known = VPSDE(), GaussianMixture(VPSDE(), torch.tensor([[1.0], [-1.0]]), torch.tensor([0.02, 0.02]))
    torch.manual_seed(0)
    network = doubled(MLP((1,), 64, 2)).train()
    model = Denoiser(network, sde, "eps", "half_log_snr", learned_variance=True, variance_output=output)
    objective = LearnedVariance(sde, method=method, variance_output=output)
    optimizer = torch.optim.Adam(network.parameters(), 4e-3, fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    draws = Draws(512, 0, torch.device("cpu"))
    for _ in range(1000):
        batch = Batch(known.sample(512).float())
        optimizer.zero_grad()
        objective.loss(model, batch, objective.draw(batch, draws)).mean().backward()
        optimizer.step()
        rate.step()
    x0, eps = known.sample(4000), torch.randn(4000, 1, dtype=torch.float64)
    for t in (0.15, 0.3):
        x = sde.perturb(x0, t, eps)
        with torch.no_grad():
            learned, exact = model.eval().posterior(x.float(), t).variance.double(), known.posterior(x, t).variance
        assert float((learned - exact).square().mean()) < 0.25 * float(exact.var()), t


def test_times_drawn_by_their_losses_give_an_unbiased_mean():
    """E_p[w h] = mean of h exactly, and in draws; p is in proportion to the root of the mean square."""
    history = LossHistory(CHAINS["cosine"].to_sde(), "low_discrepancy")
    size = torch.linspace(0.1, 3, 40).double()
    for _ in range(KEPT):
        history.note(CHAINS["cosine"].times, size * (-1) ** _)
        assert torch.equal(history.probabilities(), torch.full((40,), 1 / 40, dtype=torch.float64))      # until it is there
        history.learn(World())
    p = history.probabilities()
    torch.testing.assert_close(p, 0.999 * size / size.sum() + 0.001 / 40, rtol=1e-6, atol=0)
    h = torch.rand(40, generator=torch.Generator().manual_seed(0)).double()
    t, weight = history.draw(100_000, torch.Generator().manual_seed(0))
    index = (t * 40).round().long() - 1
    torch.testing.assert_close(weight, 1 / (40 * p[index]), rtol=1e-12, atol=0)
    assert float((p * (1 / (40 * p)) * h).sum()) == pytest.approx(float(h.mean()), rel=1e-12)
    assert float((weight * h[index]).mean()) == pytest.approx(float(h.mean()), rel=2e-3)
    counts = torch.bincount(index, minlength=40) / 100_000
    torch.testing.assert_close(counts, p, rtol=0, atol=2e-4, check_dtype=False)


def test_a_history_keeps_the_last_ten_losses_and_no_broken_ones():
    chain = CHAINS["cosine"]
    history = LossHistory(chain.to_sde(), "uniform")
    for i in range(25):
        history.note(chain.times[3:4], torch.tensor([float(i)]))
        history.learn(World())
    history.note(chain.times[3:5], torch.tensor([math.nan, math.inf]))
    history.learn(World())
    assert sorted(history.losses[3].tolist()) == list(range(15, 25)) and history.counts.tolist()[3:5] == [25, 0]
    other = LossHistory(chain.to_sde(), "uniform")
    other.restore(history.state())
    assert torch.equal(other.losses, history.losses) and torch.equal(other.counts, history.counts)


def test_held_out_losses_do_not_depend_on_the_history_and_leave_it_alone():
    chain = CHAINS["cosine"]
    objective = LearnedVariance(chain.to_sde(), method="vlb:resample=true")
    objective.history.counts.fill_(KEPT)
    objective.history.losses.copy_(torch.linspace(0.1, 3, 40)[:, None].expand(40, KEPT))
    batch, draws = Batch(torch.zeros(8, 3).double()), Draws(8, 0, torch.device("cpu"))
    drawn = objective.draw(batch, draws)
    assert float(drawn.weight.std()) > 0.1
    held = Draws(8, 0, torch.device("cpu"))
    held.drops = False
    assert (objective.draw(batch, held).weight == 1).all()
    with torch.no_grad():
        objective.loss(model_of(chain.to_sde()), batch, drawn)
    objective.stepped(World())
    assert objective.history.counts.eq(KEPT).all()


def test_what_does_not_fit_is_refused_in_one_line():
    chain, plain = CHAINS["linear"].to_sde(), Denoiser(MLP((3,), 8, 1), VPSDE())
    for settings, message in (({"method": "vlb", "weighting": "likelihood"}, "its own weights"),
                              ({"method": "hybrid:resample=true", "weighting": "likelihood", "importance": True}, "out one"),
                              ({"method": "hybrid:weight=0"}, "above 0"), ({"method": "nll"}, "choose from|unknown"),
                              ({"method": "square"}, "trains the output residual or noise, and the model's is 'share'"),
                              ({"method": "hybrid", "variance_output": "noise"}, "trains the output share or residual"),
                              ({"method": "likelihood:weight=0", "variance_output": "residual"}, "above 0"),
                              ({"bound_steps": 1}, "bound_steps must lie"), ({"bound_steps": 61}, "2 .. 60")):
        with pytest.raises(ArgumentError, match=message):
            LearnedVariance(chain, **settings)
    with pytest.raises(ArgumentError, match="need a chain"):
        LearnedVariance(VPSDE(), method="vlb:resample=true")
    with pytest.raises(ArgumentError, match="model.learned_variance=true"):
        build_objective(plain, {"objective": "learned_variance"})
    with pytest.raises(ArgumentError, match="model.learned_variance=true"):
        LearnedVariance(VPSDE()).loss(plain, *noisy(torch.full((2,), 0.5).double()))


RESAMPLED = {"model.learned_variance": True, "training.objective": "learned_variance", "sde.name": "ddpm",
             "sde.schedule": "cosine", "sde.steps": 8, "model.time_input": "index", "model.width": 8,
             "model.multipliers": (1, 2), "model.num_blocks": 1, "training.method": "vlb:resample=true",
             "training.weighting": "simple",
             "training.importance": False, "training.batch_size": 32, "training.decay": "constant", "training.warmup": 1,
             "training.sample_every": 0, "training.checkpoint_every": 2, "training.log_every": 2, "training.eval_every": 0}


def trained(run, steps):
    train(ROOT / "configs/vp_digits.py", workdir=run, device="cpu", progress=False,
          overrides=RESAMPLED | {"training.steps": steps})
    return read_state(newest_checkpoint(run))


@pytest.mark.machine
def test_a_resumed_run_goes_on_with_its_history_to_the_bit(tmp_path):
    whole = trained(tmp_path / "whole", 8)
    trained(tmp_path / "parts", 6)
    parts = trained(tmp_path / "parts", 8)
    assert whole["objective"]["counts"].min() >= KEPT      # so the last steps drew by it
    assert torch.equal(whole["objective"]["losses"], parts["objective"]["losses"])
    assert all(torch.equal(tensor, parts["network"][name]) for name, tensor in whole["network"].items())


@pytest.mark.slow
def test_two_processes_keep_one_history(tmp_path):
    """Under torchrun with gloo each takes in the losses of both, in the order of the batch."""
    script = tmp_path / "share.py"
    script.write_text(
        "import sys, torch\nfrom scorefield.numerics.processes import connect\nfrom scorefield.sde_lib import DDPMChain\n"
        "from scorefield.training.objectives.loss_history import LossHistory\n"
        "world, chain = connect(torch.device('cpu')), DDPMChain.from_schedule('cosine', 4)\n"
        "history, loss = LossHistory(chain.to_sde(), 'uniform'), torch.arange(48.)\n"
        "for part in (loss[:24], loss[24:]):      # as with accumulate=2\n"
        "    history.note(chain.times[part.long() % 4][world.rank::world.size], part[world.rank::world.size])\n"
        "history.learn(world)\n"
        "torch.save(history.state(), f'{sys.argv[1]}{world.rank}')\nworld.leave()\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"])):
        subprocess.run([sys.executable, *launcher, str(script), str(tmp_path / name)], check=True, env=environment,
                       capture_output=True, timeout=120)
    one, *two = (torch.load(tmp_path / name) for name in ("one0", "two0", "two1"))
    for shared in two:
        assert all(torch.equal(shared[name], one[name]) for name in ("losses", "counts"))
    assert one["counts"].tolist() == [12] * 4


@pytest.mark.slow
@pytest.mark.machine
def test_two_processes_train_as_one_with_times_drawn_by_losses(tmp_path):
    """Under torchrun with gloo: a single process's losses, times and weights, up to the order of summation."""
    single = trained(tmp_path / "one", 8)
    words = [f"--config.{field}={value}" for field, value in (RESAMPLED | {"training.steps": 8}).items()]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
                    str(ROOT / "main.py"), "--config", str(ROOT / "configs/vp_digits.py"), "--mode", "train",
                    "--workdir", str(tmp_path / "two"), *words], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
                   capture_output=True, timeout=300)
    shared = read_state(newest_checkpoint(tmp_path / "two"))
    assert torch.equal(single["objective"]["counts"], shared["objective"]["counts"])
    torch.testing.assert_close(single["objective"]["losses"], shared["objective"]["losses"], rtol=1e-3, atol=1e-3)
    for name, tensor in single["network"].items():
        torch.testing.assert_close(shared["network"][name], tensor, rtol=1e-3, atol=1e-4)
