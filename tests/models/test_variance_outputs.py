"""What a network may say of the variance: a share, the errors' square (NPR-DDPM) or that of the noise (SN-DDPM)."""

import pytest
import torch

from scorefield.likelihood import chain_elbo
from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.models.build import build_denoiser
from scorefield.models.networks.outputs import doubled
from scorefield.models.variance_outputs import VARIANCE_OUTPUTS
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VPSDE, DDPMChain

SDE = VPSDE()
DATA = GaussianMixture(SDE, torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.tensor([0.04, 0.1]))


class Known(torch.nn.Module):
    """A network that gives the exact eps of DATA, and the r of its exact variance."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x, time):
        t = time.double() / 999
        eps, variance = DATA.eps(x, t), DATA.posterior(x, t).variance
        alpha2, sigma2 = (c.square()[:, None] for c in (SDE.alpha(t), SDE.sigma(t)))
        of_eps = variance * alpha2 / sigma2
        raw = {"residual": of_eps.log(), "noise": of_eps + eps.square() - 1}[self.kind]
        return torch.cat([eps, raw], 1)


@pytest.mark.parametrize("kind", ["residual", "noise"])
def test_the_exact_second_moment_is_the_exact_variance(kind):
    """So the chain's bound and a sample with variance analytic are those of the mixture itself."""
    model = Denoiser(Known(kind), SDE, learned_variance=True, variance_output=kind)
    x, t = DATA.sample(50).double(), (torch.linspace(1, 999, 50).round() / 999).float().double()
    x = SDE.perturb(x, t, torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    found, exact = model.posterior(x, t), DATA.posterior(x, t)
    torch.testing.assert_close(found.mean, exact.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.variance, exact.variance, rtol=1e-3, atol=1e-4)
    x_T = prior_sample(SDE, (2,), range(8)).double()
    own, ideal = (make_sampler("ancestral", steps=6, variance="analytic")(one, x_T, range(8)).x for one in (model, DATA))
    torch.testing.assert_close(own, ideal, rtol=1e-3, atol=1e-3)
    data = DATA.sample(200).double()
    bounds = [chain_elbo(one, data, None, steps=10, variance="analytic", seeds=range(200), dtype=torch.float64).value
              for one in (model, DATA)]
    torch.testing.assert_close(*bounds, rtol=0, atol=5e-3)


@pytest.mark.parametrize("kind", ["residual", "noise"])
def test_an_untrained_network_begins_with_the_squares_of_unit_noise(kind):
    model = Denoiser(doubled(MLP((2,), 8, 1)), SDE, learned_variance=True, variance_output=kind).eval()
    assert (model.outputs(torch.randn(3, 2), 0.5)[1] == 1).all()
    assert model.with_network(model.network).variance_output == kind


def test_a_variance_is_never_below_zero():
    model = Denoiser(Below(), SDE, learned_variance=True, variance_output="noise")
    assert float(model.posterior(torch.ones(2, 3), 0.5).variance.min()) == 0


class Below(torch.nn.Module):
    def forward(self, x, time):
        return torch.cat([x, torch.full_like(x, -2.0)], 1)


def test_a_config_names_it_and_what_does_not_fit_is_one_line():
    config = {"sde": {"name": "vp"}, "model": {"network": "mlp", "width": 8, "learned_variance": True,
                                               "variance_output": "residual"}}
    model = build_denoiser(config, (2,))
    assert model.variance_output == "residual" and set(VARIANCE_OUTPUTS) == {"share", "residual", "noise"}
    with pytest.raises(ArgumentError, match="choose analytic") as error:
        make_sampler("ancestral", steps=2, variance="learned")(model.eval(), torch.zeros(1, 2), [0])
    assert error.value.arguments == ("variance",)
    with pytest.raises(ArgumentError, match="unknown variance_output 'sn'; choose from share, residual, noise"):
        build_denoiser(config | {"model": config["model"] | {"variance_output": "sn"}}, (2,))
    with pytest.raises(ArgumentError, match="needs a network that gives a variance"):
        build_denoiser(config | {"model": config["model"] | {"learned_variance": False}}, (2,))
    chain = DDPMChain.from_schedule("cosine", 20).to_sde()
    model = Denoiser(doubled(MLP((2,), 8, 1)), chain, learned_variance=True, variance_output="noise").eval()
    with pytest.raises(ArgumentError, match="choose analytic"):
        chain_elbo(model, torch.zeros(1, 2), None, steps=3, variance="learned", seeds=[0])
