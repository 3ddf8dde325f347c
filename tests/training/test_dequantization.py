"""Variational dequantisation: the loss is the bound, the flow finds the best one, runs go on exactly."""

import json
import math

import pytest
import torch
from torch import nn

from scorefield.checkpoints import load_denoiser
from scorefield.checkpoints.formats.run import newest_sound
from scorefield.cli.main import main
from scorefield.configs.loading import apply, load_config
from scorefield.data import Dataset, Pixels, make_codec
from scorefield.data.codec import Points
from scorefield.evaluation import score
from scorefield.likelihood import elbo
from scorefield.models import MLP, Denoiser, Dequantizer, GaussianMixture, build_denoiser
from scorefield.models.networks.dequantizer import dequantizer_of
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VESDE, VPSDE, DDPMChain
from scorefield.training import Batch, Dequantization, Draws, ScoreMatching, build_objective, train
from scorefield.training.teachers import begin_with
from tests.helpers import ROOT, SMALL, train_briefly

CPU, SHAPE = torch.device("cpu"), (1, 2, 1)
CODEC = make_codec(3)
# Mass within bins of width 2/3 that is far from uniform, and some outside: what no dequantisation gets back.
MEANS, STD = torch.tensor([[-0.75, 0.1], [0.55, -0.6]], dtype=torch.float64), 0.15


class Exact(nn.Module):
    """The exact eps of a mixture in two pixels, as a network; with a flow."""

    def __init__(self, sde, width=16):
        super().__init__()
        self.mixture = GaussianMixture(sde, MEANS, torch.full((2,), STD**2, dtype=torch.float64))
        self.dequantizer = Dequantizer(1, width, couplings=2) if width else None
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x, time):
        t = time.to(x.device, torch.float64)
        return self.mixture.eps(x.flatten(1).double(), t).to(x.dtype).view(x.shape)


def model(sde=None, width=16):
    torch.manual_seed(0)
    sde = sde or VPSDE()
    return Denoiser(Exact(sde, width), sde, time_input=lambda sde, t: t)


def every_picture():
    """The nine pictures of two pixels with three levels, and their probability under the mixture, by the error function."""
    k = torch.cartesian_prod(torch.arange(3), torch.arange(3)).to(torch.uint8).view(9, 1, 2, 1)
    edges = -1 + 2 * torch.arange(4, dtype=torch.float64) / 3
    below = torch.special.ndtr((edges - MEANS[..., None]) / STD)      # (components, pixels, edges)
    mass = below.diff(dim=2)
    probability = (mass[:, 0, :, None] * mass[:, 1, None, :]).mean(0).reshape(9)
    return k, probability


def exact_bound(flow, k, n=64):
    """E_q[-log p(k + u) + log q(u given k)] in nats of each picture, by the midpoint rule over r, with the exact p."""
    r = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    r = torch.cartesian_prod(r, r).view(-1, *SHAPE)
    mixture, bounds = GaussianMixture(VPSDE(), MEANS, torch.full((2,), STD**2, dtype=torch.float64)), []
    with torch.no_grad():
        for each in k:
            levels = each.expand(len(r), *SHAPE)
            u, log_q = flow(CODEC.dense.encode(levels, torch.full_like(r, 0.5)), r)
            x = CODEC.dense.encode(levels, u).flatten(1)
            log_p = mixture.log_prob(x, 0.0) + 2 * math.log(2 / 3)      # of k + u, in units of bins
            bounds.append((log_q - log_p).mean())
    return torch.stack(bounds)


@pytest.mark.slow
def test_the_flow_finds_the_best_bound_on_a_known_distribution():
    """With the exact score the least bound is -log P(k) itself. Uniform noise misses it by 1.12 nats on average, a
    trained flow by at most .08: a logistic flow is no Gaussian cut off by the ends of a bin, and training is noisy.
    """
    k, probability = every_picture()
    weight, exact = probability / probability.sum(), -probability.log()
    denoiser = model()
    objective = Dequantization(denoiser.sde, codec=CODEC, frozen=True, score_model="given here", label_dropout=0.0)
    flow = denoiser.network.dequantizer
    gap = (weight * (exact_bound(flow, k) - exact)).sum()
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 400)
        draws = Draws(128, step, CPU)
        batch = Batch(CODEC.encode(k[torch.multinomial(weight, 128, True, generator=draws.host)]))
        optimizer.zero_grad()
        objective.loss(denoiser, batch, objective.draw(batch, draws)).mean().backward()
        optimizer.step()
    bound = exact_bound(flow, k)
    least = float((weight * (bound - exact)).sum())
    assert float((bound - exact).min()) > -1e-6      # a bound for each picture
    assert float(gap) > 1.1 and least < 0.08


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=5.0)])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_mean_of_the_loss_is_the_bound_of_elbo(sde, frozen):
    """Of the same u, over many times: the loss in nats a dimension is -(elbo - log q)/D plus the offset."""
    denoiser, n = model(sde), 20_000
    objective = Dequantization(sde, codec=CODEC, frozen=frozen, score_model="x", label_dropout=0.0)
    with torch.no_grad():
        for parameter in dequantizer_of(denoiser).parameters():
            parameter.add_(0.02)
    k = every_picture()[0][1:2].expand(n, *SHAPE)
    batch = Batch(CODEC.encode(k))
    draw = objective.draw(batch, Draws(n, 0, CPU))
    with torch.no_grad():
        loss = objective.loss(denoiser, batch, draw).double()
        u, log_q = dequantizer_of(denoiser)(CODEC.dense.encode(k, torch.full_like(draw.r, 0.5)), draw.r)
        bound = elbo(denoiser, CODEC.dense.encode(k, u)[:4000], draws=8, seeds=range(4000))
        terms = -(bound.value - log_q[:4000]).double() / 2 + CODEC.dense.offset * math.log(2)
    error = math.hypot(float(loss.std()) / n**0.5, float(terms.std()) / 4000**0.5)
    assert abs(float(loss.mean() - terms.mean())) < 4 * error < 0.4
    assert torch.allclose(objective.metrics(denoiser, batch, draw)["bits_per_dim"] * math.log(2), loss, atol=1e-5)


def test_an_untrained_flow_gives_the_loss_of_score_matching_and_its_gradient():
    """On the same times, noise and uniform u, up to what does not depend on the network."""
    torch.manual_seed(0)
    network = MLP(SHAPE, width=8, layers=1)
    network.dequantizer = Dequantizer(1, 4)
    denoiser = Denoiser(network, VPSDE())
    k = torch.arange(6, dtype=torch.uint8).remainder(3).view(3, *SHAPE)
    batch = Batch(CODEC.encode(k))
    objective = Dequantization(denoiser.sde, codec=CODEC, label_dropout=0.0)
    draw = objective.draw(batch, Draws(3, 0, CPU))
    plain = ScoreMatching(denoiser.sde, "likelihood", importance=True, label_dropout=0.0)
    x = CODEC.dense.encode(k, draw.r)
    mine, theirs = objective.loss(denoiser, batch, draw), plain.loss(denoiser, Batch(x), draw.noisy)
    half = 0.5 * (denoiser.sde.t_max - denoiser.sde.t_min)
    first, second = (torch.autograd.grad(loss.sum(), denoiser.network.parameters(), allow_unused=True, retain_graph=True)
                     for loss in (mine, theirs * half))
    for a, b in zip(first, second, strict=True):
        assert b is None or torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    alpha, sigma = float(denoiser.sde.alpha(1.0)), float(denoiser.sde.sigma(1.0))
    prior = 0.5 * (x.square().flatten(1).mean(1) * alpha**2 + sigma**2 - 1 - 2 * math.log(sigma))
    constant = 0.5 * math.log(2 * math.pi * math.e) - float(denoiser.sde.half_log_snr(1e-5)) + math.log(1.5)
    torch.testing.assert_close(mine, theirs * half + prior + constant, rtol=1e-5, atol=1e-5)


def test_a_scores_dequantisation_is_uniform_to_the_bit_until_the_flow_is_trained():
    denoiser, k = model(), every_picture()[0]
    data = Dataset("pairs", k, k, SHAPE, 3)
    settings = {"progress": False, "divergence": "exact", "method": "exponential", "steps": 10, "draws": 3, "float64": True}
    own, uniform = (score(denoiser, data, CODEC, dequantizer=word, **settings) for word in ("own", "uniform"))
    assert torch.equal(own.log_prob, uniform.log_prob)
    assert sorted(own.terms) == ["density", "dequantization"] and not uniform.terms
    with torch.no_grad():
        for parameter in denoiser.network.dequantizer.parameters():
            parameter.add_(0.02)
    moved = score(denoiser, data, CODEC, **settings)
    flow_of_another = score(model(width=0), data, CODEC, dequantizer=denoiser.network.dequantizer, **settings)
    assert torch.equal(moved.log_prob, flow_of_another.log_prob) and not torch.equal(moved.log_prob, own.log_prob)
    summary = moved.summary()
    assert math.isclose(sum(summary["terms"].values()), summary["bits_per_dim"], abs_tol=1e-9)
    assert bool((moved.bits_per_dim_iw <= moved.bits_per_dim).all())


def test_a_discrete_bound_and_points_have_no_dequantizer():
    denoiser, k = model(), every_picture()[0]
    data = Dataset("pairs", k, k, SHAPE, 3)
    assert score(denoiser, data, Pixels(3), estimator="chain_elbo", progress=False, steps=5).terms.keys() == {
        "prior", "diffusion", "decoder"}
    with pytest.raises(ArgumentError, match="not dequantised; leave out dequantizer"):
        score(denoiser, data, Pixels(3), estimator="chain_elbo", dequantizer=denoiser.network.dequantizer)
    with pytest.raises(ArgumentError, match="must be a Dequantizer, 'own'"):
        score(denoiser, data, CODEC, dequantizer="ours")
    with pytest.raises(ArgumentError, match="for pictures .3, height, width., and the examples are .1, 2, 1."):
        score(denoiser, data, CODEC, dequantizer=Dequantizer(3))


def test_what_has_no_such_bound_is_refused_in_one_line():
    for sde, codec, words in ((VPSDE(), Points(), "holds points"),
                              (DDPMChain.from_schedule("linear", 100).to_sde(), CODEC, "is that of a chain")):
        with pytest.raises(ArgumentError, match=words):
            Dequantization(sde, codec=codec)
    with pytest.raises(ArgumentError, match="name it as score_model"):
        Dequantization(VPSDE(), codec=CODEC, frozen=True)
    with pytest.raises(ArgumentError, match="trained by objective dequantization, and by no other"):
        build_objective(model(), {"objective": "score_matching"})
    with pytest.raises(ArgumentError, match="trained by objective dequantization, and by no other"):
        build_objective(model(width=0), {"objective": "dequantization"}, CODEC)


# ---- runs ---------------------------------------------------------------------------------------------------------

FLOW = ["--config.model.dequantizer=4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_briefly("vp_digits", tmp_path_factory.mktemp("score") / "run")


def frozen(trained, run, *more):
    return train_briefly("vp_digits_dequantized", run, *FLOW, "--config.training.frozen=true",
                         f"--config.training.score_model={trained}", *more)


@pytest.mark.one_machine
@pytest.mark.slow
def test_a_frozen_score_model_stays_as_it_is_and_the_flow_moves(trained, tmp_path, capsys):
    run = frozen(trained, tmp_path / "run")
    before, after = load_denoiser(trained).network.state_dict(), newest_sound(run).state
    for weights in (after["network"], after["ema"]):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in before.items())
    flow = {name: tensor for name, tensor in after["network"].items() if name.startswith("dequantizer.steps")}
    assert flow and all(bool(tensor.any()) for tensor in flow.values())      # which begin at 0
    assert "held_out_bits_per_dim" in (run / "stats.jsonl").read_text()


@pytest.mark.one_machine
def test_a_resumed_run_is_that_of_one_that_never_stopped(trained, tmp_path):
    whole = newest_sound(frozen(trained, tmp_path / "whole")).state
    frozen(trained, tmp_path / "parts", "--config.training.steps=2")
    parts = newest_sound(frozen(trained, tmp_path / "parts", f"--config.training.score_model={tmp_path / 'gone'}")).state
    for name in ("network", "ema"):
        assert all(torch.equal(tensor, parts[name][key]) for key, tensor in whole[name].items())


@pytest.mark.one_machine
@pytest.mark.slow
def test_mode_likelihood_uses_the_runs_flow_or_that_of_another_run_or_uniform_noise(trained, tmp_path, capsys):
    run = frozen(trained, tmp_path / "run")
    quick = ["--mode", "likelihood", "--method", "exponential", "--steps", "8", "--num_images", "6"]
    main(["--workdir", str(run), *quick])
    main(["--workdir", str(run), *quick, "--dequantizer", "uniform"])
    main(["--workdir", str(trained), *quick, "--dequantizer", str(run)])
    main(["--workdir", str(trained), *quick])
    own, uniform = (json.loads((run / f"likelihood/summary_method_exponential_steps8{word}_num_images6.json").read_text())
                    for word in ("", "_dequantizer_uniform"))
    other, plain = sorted((json.loads(file.read_text()) for file in (trained / "likelihood").glob("*.json")),
                          key=lambda summary: "dequantizer" not in summary)
    assert own["dequantizer"] == "own" and "dequantizer" not in uniform and other["dequantizer"] == str(run)
    assert own["bits_per_dim"] == other["bits_per_dim"] and uniform["bits_per_dim"] == plain["bits_per_dim"]
    assert own["bits_per_dim"] != uniform["bits_per_dim"] and set(own["terms"]) == {"density", "dequantization", "offset"}
    with pytest.raises(ArgumentError, match="has no dequantizer; train one with training.objective=dequantization"):
        main(["--workdir", str(run), *quick, "--dequantizer", str(trained)])


@pytest.mark.one_machine
def test_a_run_in_python_trains_both_together_and_samples(tmp_path):
    k = torch.randint(0, 4, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = dict(word.removeprefix("--config.").split("=") for word in [*SMALL, *FLOW])
    run = train(str(ROOT / "configs/vp_digits_dequantized.py"), Dataset("own", k, k, (1, 8, 8), 4), tmp_path / "run",
                overrides=settings, progress=False)
    main(["--workdir", str(run), "--mode", "sample", "--sampler", "ddim", "--steps", "3", "--num_samples", "2"])
    assert (run / "samples/ddim_steps3.npz").exists()


@pytest.mark.one_machine
def test_a_run_starts_from_the_weights_of_its_score_model_and_from_its_flow_if_it_has_one(trained, tmp_path):
    def network(width, source=None):
        torch.manual_seed(1)
        config = load_config(str(ROOT / "configs/vp_digits_dequantized.py"))
        words = [*SMALL, f"--config.model.dequantizer={width}"]
        apply(config, [tuple(word.removeprefix("--config.").split("=")) for word in words])
        model = build_denoiser(config, (1, 8, 8))
        if source is not None:
            begin_with(model, str(source))
        return model.network.state_dict()

    run = frozen(trained, tmp_path / "run")
    fresh, of_plain, of_flow = network(4), network(4, trained), network(4, run)
    plain, flow = load_denoiser(trained).network.state_dict(), load_denoiser(run).network.state_dict()
    assert of_flow.keys() == flow.keys() and all(torch.equal(of_flow[name], flow[name]) for name in flow)
    for name, tensor in of_plain.items():
        assert torch.equal(tensor, fresh[name] if name.startswith("dequantizer.") else plain[name])
    with pytest.raises(ArgumentError, match="has other weights"):
        network(8, run)


@pytest.mark.one_machine
def test_a_score_model_of_another_kind_is_refused_in_one_line(trained, tmp_path):
    for field, words in (("model.width=12", "other weights"), ("sde.beta_max=10", "has sde VPSDE"),
                         ("model.parametrization=v", "has parametrization eps, and this config has v")):
        with pytest.raises(ArgumentError, match=words):
            frozen(trained, tmp_path / "run", f"--config.{field}")
    with pytest.raises((ArgumentError, FileNotFoundError), match="does not exist"):
        frozen(tmp_path / "nowhere", tmp_path / "run")
