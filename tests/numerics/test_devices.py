"""Which arithmetic and memory format are chosen, and a network made ready to sample in them."""

import pytest
import torch

from scorefield.models import Denoiser, UNet
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.numerics import devices as precision
from scorefield.numerics.devices import prepare_sampling, require_compiler, slow_arithmetic
from scorefield.sde_lib import VESDE, VPSDE

pytestmark = pytest.mark.machine
CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
SMALL = {"image_size": 8, "width": 32, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (4,), "dropout": 0.0}


@pytest.mark.parametrize("instructions, slow", [((), True), (("avx512_bf16",), False), (("amx_bf16", "avx512_bf16"), False)],
                         ids=["avx2", "avx512_bf16", "amx"])
def test_bf16_that_was_asked_for_is_said_to_be_slow_where_there_are_no_instructions(instructions, slow, monkeypatch):
    monkeypatch.setattr(precision, "_cpu", lambda capability: capability in instructions)
    line = slow_arithmetic("bf16", CPU)
    assert bool(line) == slow and "\n" not in line
    assert not slow or (line.startswith("precision=bf16: this processor has no") and "precision=auto" in line)
    assert slow_arithmetic("auto", CPU) == slow_arithmetic("fp32", CPU) == slow_arithmetic("bf16", MPS) == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "this GPU has no" in slow_arithmetic("bf16", CUDA)


def test_compiling_on_a_cpu_without_a_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(precision.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler") as caught:
        require_compiler(CPU)
    assert caught.value.arguments == ("compile",)
    require_compiler(CUDA)


def test_a_network_of_pictures_samples_in_channels_last_but_on_mps():
    for device in (CPU, CUDA, MPS):
        network = UNet(**SMALL)
        prepare_sampling(network, "fp32", device)
        last = network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert last == (device is not MPS)


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
