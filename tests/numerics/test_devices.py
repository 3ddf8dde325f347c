"""Which arithmetic and memory format are chosen, and a network made ready to sample in them."""

import pytest
import torch

from scorefield.models import Denoiser, UNet
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.numerics import devices as precision
from scorefield.numerics.devices import prefers_channels_last, prepare_sampling
from scorefield.sde_lib import VESDE, VPSDE

pytestmark = pytest.mark.machine
CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
SMALL = {"image_size": 8, "width": 32, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (4,), "dropout": 0.0}


@pytest.mark.parametrize("amx", [True, False])
def test_channels_last_is_for_gpus_and_cpus_but_not_for_bf16_training_without_amx(amx, monkeypatch):
    monkeypatch.setattr(precision, "_cpu", lambda capability: amx)
    for dtype in (None, torch.bfloat16):
        for training in (True, False):
            assert prefers_channels_last(CUDA, dtype, training) and not prefers_channels_last(MPS, dtype, training)
            assert prefers_channels_last(CPU, dtype, training) == (amx or dtype is None or not training)


def test_a_network_that_samples_in_bf16_holds_its_weights_so_but_not_its_frequencies():
    network = NCSNpp(**SMALL, embedding="fourier", fir=True)
    before = network.fourier.frequencies.clone()
    prepare_sampling(network, "bf16", CPU)
    assert {p.dtype for name, p in network.named_parameters() if name != "fourier.frequencies"} == {torch.bfloat16}
    assert torch.equal(network.fourier.frequencies, before)
    assert network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="auto, fp32, bf16"):
        prepare_sampling(network, "half", CPU)


@pytest.mark.parametrize("make", [lambda: Denoiser(UNet(**SMALL), VPSDE()),
                                  lambda: Denoiser(NCSNpp(**SMALL, embedding="fourier"), VESDE(), time_input="log_sigma")])
def test_predictions_keep_the_dtype_of_x_and_float32_its_value(make):
    torch.manual_seed(0)
    denoiser = make().eval()
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(4, 3, 8, 8), torch.tensor([0.1, 0.3, 0.6, 1.0], dtype=torch.float64)
    with torch.no_grad():
        exact = denoiser.eps(x, t)
        prepare_sampling(denoiser.network, "fp32", CPU)
        torch.testing.assert_close(denoiser.eps(x, t), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))
        prepare_sampling(denoiser.network, "bf16", CPU)
        output = denoiser.eps(x, t)
    assert output.dtype == torch.float32
    assert 0 < float((output - exact).norm() / exact.norm()) < 0.04
