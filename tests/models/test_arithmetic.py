"""What the U-Nets may and may not owe to memory format, bf16, activation checkpointing, and faster forms of one formula."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scorefield.models import UNet
from scorefield.models.layers import GroupNorm, SelfAttention, conv_of_doubled, recompute_activations
from scorefield.models.networks.mlp import MLP
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.numerics.errors import ArgumentError

SMALL = {"image_size": 16, "width": 32, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (8,)}
FAMILIES = {
    "unet": (UNet, {}),
    "unet with heads": (UNet, {"attention_head_dim": 8, "groups": 4, "downsample_padding": 1,
                               "attention_resolutions": (16,)}),
    "ddpm": (NCSNpp, {"block": "ddpm", "skip_rescale": False, "centred": False}),
    "ddpm++": (NCSNpp, {}),
    "ncsn++": (NCSNpp, {"fir": True, "progressive_input": "residual", "embedding": "fourier"}),
    "ncsn++ with skips": (NCSNpp, {"fir": True, "progressive_input": "input_skip", "progressive": "output_skip",
                                   "combine": "cat"}),
    "ddpm with fir": (NCSNpp, {"block": "ddpm", "fir": True, "progressive_input": "input_skip"}),
}
ERROR_OF_BF16 = {"output": 0.04, "gradient": 0.06}      # relative, root mean square; as docs/training.md has it


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def network(request):
    """One of each family, with dropout, its last layers not at zero, in evaluation mode."""
    kind, settings = request.param
    torch.manual_seed(0)
    network = kind(**SMALL | settings, dropout=0.3)
    for parameter in network.parameters():
        if parameter.requires_grad and not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.05)
    return network.eval()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 16, 16, generator=generator), torch.tensor([0.1, 0.7, 2.0, 4.0])


def relative(output, exact):
    return float((output.double() - exact.double()).norm() / exact.double().norm())


def output_and_gradients(network, x, time):
    """The output and the gradients by the input and by every parameter of a loss that all of them change."""
    x = x.clone().requires_grad_()
    network.zero_grad()
    output = network(x, time)
    (output * x.detach().roll(1, 2).tanh()).sum().backward()
    return [output.detach(), x.grad, *(p.grad.clone() for p in network.parameters() if p.requires_grad)]


@pytest.mark.machine
def test_float32_does_not_depend_on_memory_format(network, batch):
    x, time = batch
    expected = output_and_gradients(network, x, time)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    for value, exact in zip(output_and_gradients(other, x, time), expected, strict=True):
        assert relative(value, exact) < 1e-5 or float((value - exact).abs().max()) < 1e-5 * float(expected[0].abs().max())


@pytest.mark.costly
@pytest.mark.machine
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_bf16_stays_within_its_stated_error(memory_format, network, batch):
    x, time = batch
    other = copy.deepcopy(network).to(memory_format=memory_format)
    exact, _, *gradients = output_and_gradients(network, x, time)
    with torch.autocast("cpu", torch.bfloat16):
        output, _, *rough = output_and_gradients(other, x, time)
    with torch.no_grad():
        held = other.bfloat16()(x.bfloat16(), time)
    assert output.dtype == held.dtype == torch.bfloat16
    assert max(relative(output, exact), relative(held, exact)) < ERROR_OF_BF16["output"]
    assert relative(flat(rough), flat(gradients)) < ERROR_OF_BF16["gradient"]


def flat(values):
    return torch.cat([value.flatten() for value in values])


@pytest.mark.machine
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_group_norm_in_bf16_is_that_of_float32_rounded(memory_format):
    norm = GroupNorm(8, 32)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 + torch.randn(2, 32, 8, 8)).bfloat16().to(memory_format=memory_format)
    with torch.no_grad():
        exact = norm(x.float())
        for weights in (norm, copy.deepcopy(norm).bfloat16()):      # as under autocast, and held in bf16
            output = weights(x)
            assert output.dtype == torch.bfloat16 and output.is_contiguous(memory_format=memory_format)
            assert relative(output, exact) < 0.005


# One formula, two forms


@pytest.mark.parametrize(("size", "c_in", "c_out"), [(3, 4, 4), (8, 3, 5), (9, 4, 2)])
def test_the_convolution_of_a_doubled_picture_is_that_of_nearest_neighbours(size, c_in, c_out):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, c_in, size, size + 2, dtype=torch.float64, generator=generator, requires_grad=True)
    conv = nn.Conv2d(c_in, c_out, 3, padding=1).double()
    outputs = conv_of_doubled(x, conv), conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    weight = torch.randn(outputs[0].shape, dtype=torch.float64, generator=generator)
    of = (x, conv.weight, conv.bias)
    for output in outputs:
        torch.testing.assert_close(output, outputs[1], rtol=1e-12, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad((output * weight).sum(), of) for output in outputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("head_dim", "size"), [(None, 2), (None, 4), (4, 2), (4, 3)])
def test_attention_of_few_and_of_many_pixels_is_one_formula(head_dim, size, memory_format):
    layer = SelfAttention(8, groups=2, head_dim=head_dim).double()
    nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 8, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    q, k, v = (part.unflatten(1, (layer.heads, -1)).flatten(3) for part in layer.qkv(layer.norm(x)).chunk(3, dim=1))
    weights = torch.einsum("bhcq,bhck->bhqk", q, k).div(q.shape[2] ** 0.5).softmax(3)
    expected = x + layer.out(torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(x.shape))
    output = layer.to(memory_format=memory_format)(x.to(memory_format=memory_format))
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


# Memory


def test_activation_checkpointing_changes_no_gradient_and_keeps_less(network, batch):
    plain = copy.deepcopy(network).train()
    frugal = copy.deepcopy(plain)
    recompute_activations(frugal)
    gradients = []
    for one in (plain, frugal):
        torch.manual_seed(7)      # of dropout
        gradients.append(output_and_gradients(one, *batch))
    for value, exact in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(value, exact, rtol=2e-6, atol=2e-6 * float(exact.abs().max()))
    assert kept_bytes(frugal, *batch) < 0.6 * kept_bytes(plain, *batch)
    torch.testing.assert_close(frugal.eval()(*batch), network(*batch), rtol=0, atol=0)
    assert frugal.state_dict().keys() == network.state_dict().keys()


def test_activation_checkpointing_is_refused_where_nothing_can_be_computed_again():
    with pytest.raises(ArgumentError, match="MLP has no blocks.*activation_checkpointing must be off") as caught:
        recompute_activations(MLP((2,)))
    assert caught.value.arguments == ("activation_checkpointing",)


@pytest.mark.parametrize("head_dim", [None, 8])
def test_a_step_of_training_keeps_no_more_than_diffusers_does(head_dim):
    diffusers = pytest.importorskip("diffusers")
    x, time = torch.randn(2, 3, 32, 32), torch.tensor([1.0, 500.0])
    theirs = diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=head_dim, norm_eps=1e-6,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_num_groups=8)
    ours = UNet(32, width=32, multipliers=(1, 2), num_blocks=1, dropout=0.0, groups=8, attention_head_dim=head_dim)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    bound = 1.05 * kept_bytes(theirs, x, time)
    assert kept_bytes(ours, x, time) < bound
    assert kept_bytes(ours.to(memory_format=torch.channels_last), x, time) < bound


def kept_bytes(network, *inputs):
    """What a forward pass in training keeps for the backward pass, besides the weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor      # kept alive, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.train()(*inputs)
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)
