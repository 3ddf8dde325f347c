"""Networks that take labels, and blocks that scale and shift: where the label enters, and what it must not change."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scorefield.models import MLP, Denoiser, DiT, UNet
from scorefield.models.layers import ResidualBlock, SelfAttention, recompute_activations, timestep_embedding
from scorefield.models.networks.classifier import Classifier
from scorefield.models.networks.ncsnpp import NCSNpp, grow, shrink
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE

SMALL = {"image_size": 8, "channels": 2, "width": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)}
KINDS = {      # of networks: the class, and its settings
    "unet": (UNet, SMALL), "ncsnpp": (NCSNpp, SMALL), "ddpm blocks": (NCSNpp, SMALL | {"block": "ddpm"}),
    "fourier": (NCSNpp, SMALL | {"embedding": "fourier", "fir": True}),
}
ANY = pytest.mark.parametrize("kind", KINDS)
TIME = torch.tensor([0.3, 1.7, 2.5])
LABEL = torch.tensor([0, 4, 5])


def made(kind, **settings):
    """A network of the kind, with weights that let everything through."""
    network, sizes = KINDS[kind]
    return randomised(network(**sizes | settings))


def randomised(network):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name != "fourier.frequencies":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return network.eval()


def pictures(dtype=torch.float32):
    return torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


# Where the label enters


@ANY
def test_labels_change_no_weight_that_a_network_without_them_has(kind):
    network, sizes = KINDS[kind]
    states = []
    for classes in (None, 5):
        torch.manual_seed(3)
        states.append(network(**sizes, classes=classes).state_dict())
    assert set(states[1]) - set(states[0]) == {"label.weight"}
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert states[1]["label.weight"].shape == (6, 32)      # one more row, of the width of the embedding of time


@ANY
@pytest.mark.parametrize("embedding", ["table", "timestep"])
def test_every_block_sees_silu_of_the_sum_of_the_embeddings_of_time_and_label(kind, embedding):
    if (kind, embedding) == ("fourier", "timestep"):
        with pytest.raises(ArgumentError, match="'timestep' needs embedding 'positional'") as caught:
            made(kind, classes=5, class_embedding=embedding)
        assert caught.value.arguments == ("class_embedding", "embedding")
        return
    network, seen = made(kind, classes=5, class_embedding=embedding), []
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    for block in blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    with torch.no_grad():
        network(pictures(), TIME, {"label": LABEL})
        waves = network.fourier(TIME) if kind == "fourier" else timestep_embedding(TIME, 8)
        if embedding == "table":
            told = network.label.weight[LABEL]
        else:
            first, second = network.label[0], network.label[2]
            told = second(F.silu(first(timestep_embedding(LABEL.float(), 8))))
        expected = network.time[2](F.silu(network.time[0](waves))) + told
    assert len(seen) == len(blocks)
    for value in seen:
        torch.testing.assert_close(value, F.silu(expected), rtol=1e-6, atol=1e-6)


@ANY
def test_a_sample_depends_on_its_own_label_and_on_no_others(kind):
    network, x = made(kind, classes=5), pictures()
    assert network.classes == 5 and network.conditions == ("label",)
    with torch.no_grad():
        output = network(x, TIME, {"label": LABEL})
        other = network(x, TIME, {"label": torch.tensor([0, 4, 1])})
    assert torch.equal(output[:2], other[:2]) and float((output[2] - other[2]).abs().max()) > 1e-3


@ANY
def test_every_parameter_takes_part_with_labels_and_scale_and_shift(kind):
    network = made(kind, classes=5, scale_shift=True)
    network(pictures(), TIME, {"label": torch.tensor([0, 1, 2])}).square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.requires_grad and (p.grad is None or not bool(p.grad.any()))]
    assert idle == []
    assert network.label.weight.grad.abs().amax(1).bool().tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("make", [*(lambda classes, kind=kind: made(kind, classes=classes) for kind in KINDS),
                                  lambda classes: MLP((2, 8, 8), width=8, layers=1, classes=classes),
                                  lambda classes: DiT(8, 2, width=8, layers=1, heads=2, classes=classes)],
                         ids=[*KINDS, "mlp", "dit"])
def test_a_label_that_is_missing_or_not_taken_is_refused(make):
    for condition in (None, {}, {"low_res": torch.zeros(3)}):
        with pytest.raises(ArgumentError, match="needs the condition {'label': integers .batch,.}; the integer 5 means no"):
            make(5)(pictures(), TIME, condition)
    network = make(None)
    assert network.conditions == () and network.classes is None
    assert network(pictures(), TIME, {}).shape == (3, 2, 8, 8)
    with pytest.raises(ArgumentError, match="takes no condition, got label; make it with the number of classes") as caught:
        network(pictures(), TIME, {"label": LABEL})
    assert caught.value.arguments == ("condition",)


@pytest.mark.parametrize(("settings", "match", "arguments"), [
    ({"classes": 0}, "classes must be at least 1, or None for no labels, got 0", ("classes",)),
    ({"classes": 3, "class_embedding": "identity"}, "'identity'; choose from table, timestep", ("class_embedding",)),
    ({"class_embedding": "timestep"}, "needs the number of classes", ("class_embedding", "classes"))], ids=str)
@pytest.mark.parametrize("network", [UNet, NCSNpp])
def test_settings_of_labels_that_do_not_fit_are_errors_that_name_the_argument(network, settings, match, arguments):
    with pytest.raises(ArgumentError, match=match) as caught:
        network(**SMALL | settings)
    assert caught.value.arguments == arguments


# What a network goes through on its way


def test_a_label_passes_through_activation_checkpointing_compilation_and_wrappers():
    network, x, condition = made("unet", classes=5, scale_shift=True), pictures(), {"label": LABEL}
    expected = network(x, TIME, condition)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, TIME, condition), expected, rtol=1e-5, atol=1e-6)
    last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), TIME, condition)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
    recompute_activations(network)
    network.train().zero_grad()
    torch.manual_seed(0)
    network(x, TIME, condition).sum().backward()
    assert bool(network.label.weight.grad[LABEL].abs().amax(1).all())

    class Wrapper(nn.Module):      # as DistributedDataParallel wraps
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return self.module(*inputs)

    network.eval()
    model = Denoiser(Wrapper(network), VPSDE(), time_input=lambda sde, t: TIME, label_dropout=True).requires_grad_(False)
    told, untold = (model.given(label=label).eps(x, 0.5) for label in (torch.tensor([0, 4, 1]), None))
    torch.testing.assert_close(told[:2], expected[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(untold[2:], expected[2:], rtol=1e-4, atol=1e-5)


def test_a_labelled_network_can_be_exported_as_a_graph():
    network, inputs = made("unet", classes=5), (pictures(), TIME, {"label": LABEL})
    graph = torch.export.export(network, inputs).module()
    other = (pictures(), TIME + 1, {"label": LABEL.flip(0)})
    torch.testing.assert_close(graph(*other), network(*other), rtol=1e-5, atol=1e-5)


@ANY
def test_in_bf16_the_blocks_see_an_embedding_of_the_same_dtype_with_and_without_labels(kind):
    for classes, condition in ((None, None), (5, {"label": LABEL})):
        network, seen = made(kind, classes=classes), []
        network.middle[0].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(inputs[1].dtype))
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16):
                network(pictures(), TIME, condition)
            network.to(torch.bfloat16)(pictures(torch.bfloat16), TIME, condition)
        assert seen == [torch.bfloat16, torch.bfloat16]


# Scale and shift


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("c_out", "scale", "resample"), [(8, 1.0, None), (12, 0.7, None), (8, 0.7, shrink(True)),
                                                          (12, 1.0, grow(False))], ids=range(4))
def test_a_block_scales_and_shifts_its_second_norm_by_time(c_out, scale, resample, memory_format):
    block = randomised(ResidualBlock(8, c_out, 16, 2, 0.0, scale, resample, eps=1e-3, scale_shift=True).double())
    x = torch.randn(3, 8, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    time = torch.randn(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def normed(norm, h):      # two groups
        parts = h.reshape(3, 2, -1)
        parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, unbiased=False, keepdim=True) + 1e-3).sqrt()
        return parts.reshape(h.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]

    resized = block.resample
    h = block.conv1(resized(F.silu(normed(block.norm1, x))))
    told = time @ block.time.weight.T + block.time.bias
    s, b = told[:, :c_out, None, None], told[:, c_out:, None, None]
    h = block.conv2(F.silu((1 + s) * normed(block.norm2, h) + b))
    expected = scale * (block.shortcut(resized(x)) + h)
    output = block.to(memory_format=memory_format)(x.to(memory_format=memory_format), time)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    assert block.time.weight.shape == (2 * c_out, 16)


@pytest.mark.parametrize("network", [UNet, NCSNpp, Classifier])
def test_every_block_of_a_network_scales_and_shifts_or_none_does(network):
    for setting in (False, True):
        blocks = [m for m in network(**SMALL, scale_shift=setting).modules() if isinstance(m, ResidualBlock)]
        assert len(blocks) > 1 and {block.scale_shift for block in blocks} == {setting}
        assert all(len(block.time.weight) == (1 + setting) * len(block.conv1.weight) for block in blocks)


def test_scale_and_shift_keep_the_memory_format_of_the_features():
    block = ResidualBlock(8, 8, 16, 2, 0.0, scale_shift=True).to(memory_format=torch.channels_last)
    block.conv2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    seen = []
    block(pictures().repeat(1, 4, 1, 1).to(memory_format=torch.channels_last), torch.zeros(3, 16))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("network", [UNet, NCSNpp])
def test_without_a_middle_norm_only_the_attention_in_the_middle_has_none(network):
    plain = network(**SMALL, middle_norm=False)
    attentions = {name: module for name, module in plain.named_modules() if isinstance(module, SelfAttention)}
    assert [name for name, module in attentions.items() if isinstance(module.norm, nn.Identity)] == ["middle.1"]
    assert len(attentions) > 1


# Heads


def test_a_classifier_attends_in_heads_of_the_asked_number_of_channels():
    network = Classifier(**SMALL, attention_head_dim=4)
    attentions = [module for module in network.modules() if isinstance(module, SelfAttention)]
    assert [module.heads for module in attentions] == [4]
    assert network(pictures(), TIME).shape == (3, 10)
    with pytest.raises(ArgumentError, match="16 channels cannot have heads of 5 channels") as caught:
        Classifier(**SMALL, attention_head_dim=5)
    assert caught.value.arguments == ("attention_head_dim",)


@pytest.mark.parametrize("head_dim", [None, 2, 4])
def test_heads_are_those_of_guided_diffusion_by_num_head_channels(head_dim):
    """There the 3 c outputs of qkv lie head by head: q, k and v of the first head, then those of the second."""
    layer = randomised(SelfAttention(8, groups=2, head_dim=head_dim).double())
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    d = head_dim or 8
    heads = 8 // d
    assert layer.heads == heads

    def theirs(value):      # our parameter in their order
        return value.unflatten(0, (3, heads, d)).transpose(0, 1).flatten(0, 2)

    tokens = layer.norm(x).flatten(2)
    qkv = torch.einsum("oc,bct->bot", theirs(layer.qkv.weight[:, :, 0, 0]), tokens) + theirs(layer.qkv.bias)[:, None]
    attended = []
    for head in range(heads):
        q, k, v = qkv[:, 3 * d * head:3 * d * (head + 1)].split(d, dim=1)
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q / d**0.25, k / d**0.25), dim=-1)
        attended.append(torch.einsum("bqk,bck->bcq", weights, v))
    expected = x + layer.out(torch.cat(attended, dim=1).reshape(x.shape))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
