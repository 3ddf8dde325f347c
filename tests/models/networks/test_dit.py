"""The diffusion transformer: its published sizes, its formulas, what it starts as, and what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scorefield.guidance import posterior
from scorefield.guidance.operators import make_operator
from scorefield.models import Denoiser, DiT
from scorefield.models.build import build_denoiser
from scorefield.models.layers import recompute_activations
from scorefield.models.networks.dit import SIZES, TransformerBlock, positions
from scorefield.models.networks.outputs import doubled
from scorefield.numerics.divergence import with_hutchinson_divergence
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE
from tests.helpers import randomised

SMALL = {"image_size": 8, "channels": 2, "width": 16, "layers": 3, "heads": 2}
TIME = torch.tensor([3.0, 700.0])


def made(**settings):
    return randomised(DiT(**SMALL | settings)).eval()


def batch(*event, seed=1):
    return torch.randn(2, *event, generator=torch.Generator().manual_seed(seed))


# The published networks (Peebles and Xie 2023): 33, 130, 458 and 675 million


@pytest.mark.parametrize(("size", "count"), [("S", 32_963_360), ("B", 130_512_416), ("L", 458_102_816), ("XL", 675_129_632)])
def test_the_published_sizes_have_their_published_parameters(size, count):
    """As their code counts: with a learned variance and the fixed positions, for latents of 32 x 32 x 4 and 1000 classes."""
    with torch.device("meta"):
        network = doubled(DiT(32, 4, size=size, classes=1000))
    assert sum(p.numel() for p in network.parameters()) + network.positions.numel() == count


def test_what_is_given_beside_a_size_replaces_that_of_the_size():
    network = DiT(8, 1, size="B", layers=1, width=48)
    assert (network.first.out_features, len(network.blocks), network.blocks[0].heads) == (48, 1, SIZES["B"][2])


# Formulas


def test_positions_are_sines_and_cosines_of_the_column_and_then_of_the_row():
    def waves(place, width):
        angles = [place * 10_000 ** (-i / (width / 2)) for i in range(width // 2)]
        return torch.tensor([*(torch.tensor(a).sin() for a in angles), *(torch.tensor(a).cos() for a in angles)])

    found = positions((3, 5), 8).reshape(3, 5, 8)
    for row in range(3):
        for column in range(5):
            torch.testing.assert_close(found[row, column], torch.cat([waves(float(column), 4), waves(float(row), 4)]))
    torch.testing.assert_close(positions((7,), 8)[6], waves(6.0, 8))


@pytest.mark.parametrize(("sides", "patch"), [((12,), 3), ((4, 6), 2), ((8, 8), 4), ((3, 5), 1)])
def test_the_picture_of_its_own_patches_is_the_picture(sides, patch):
    network, x = DiT(sides, 3, patch, width=16, layers=1, heads=2), batch(3, *sides)
    patches = network._patches(x)
    assert torch.equal(network._picture(patches), x)
    second = x[0, ..., patch:2 * patch] if len(sides) == 1 else x[0, :, :patch, patch:2 * patch]
    assert torch.equal(patches[0, 1], second.flatten())      # the second token is the next one in its row


def test_a_block_is_its_published_formula():
    block = randomised(TransformerBlock(16, 2, 64, 0.0, 1e-3, False)).double()
    x, told = batch(5, 16).double(), batch(16).double()
    shift, scale, gate, shift_2, scale_2, gate_2 = (part[:, None] for part in block.told(told).chunk(6, 1))
    inputs = F.layer_norm(x, (16,), eps=1e-6) * (1 + scale) + shift
    q, k, v = (part.reshape(2, 5, 2, 8) for part in block.qkv(inputs).chunk(3, 2))
    weights = torch.softmax(torch.einsum("bqhc,bkhc->bhqk", q, k) / 8**0.5, -1)
    h = x + gate * block.out(torch.einsum("bhqk,bkhc->bqhc", weights, v).reshape(2, 5, 16))
    inner = block.inner(F.layer_norm(h, (16,), eps=1e-3) * (1 + scale_2) + shift_2)
    gelu = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
    torch.testing.assert_close(block(x, told), h + gate_2 * block.outer(gelu), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sides", [(8,), (4, 6)])
def test_without_positions_places_are_interchangeable(sides):
    """All patches moved on by one give the same outputs, moved; with positions they do not."""
    network, x = made(image_size=sides), batch(2, *sides)
    rolled = x.roll(2, -1)
    assert not torch.allclose(network(rolled, TIME), network(x, TIME).roll(2, -1), atol=1e-3)
    network.positions.zero_()
    torch.testing.assert_close(network(rolled, TIME), network(x, TIME).roll(2, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"skips": True}, {"patch": 4}, {"image_size": (8,)}, {"image_size": (4, 6)}],
                         ids=str)
def test_the_output_is_zero_at_initialisation_and_later_all_parameters_take_part(settings):
    network = DiT(**SMALL | settings)
    x = batch(2, *network.sides)
    assert network(x, TIME).shape == x.shape and not network(x, TIME).any()
    randomised(network)(x, TIME).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


@pytest.mark.parametrize(("layers", "pairs"), [(1, 0), (2, 0), (3, 1), (6, 2), (13, 6)])
def test_long_skips_join_the_halves_and_start_as_none(layers, pairs):
    network, plain = DiT(**SMALL | {"layers": layers}, skips=True), made(layers=layers)
    network.load_state_dict(plain.state_dict(), strict=False)
    network.eval()
    ends = [block.skip is not None for block in network.blocks]
    assert ends == [False] * (layers - pairs) + [True] * pairs
    x = batch(2, 8, 8)
    torch.testing.assert_close(network(x, TIME), plain(x, TIME))
    if pairs:      # the last block's skip is the first block's output
        kept = []
        network.blocks[0].register_forward_hook(lambda block, given, output: kept.append(output))
        network.blocks[-1].register_forward_hook(lambda block, given, output: kept.append(given[2]))
        network(x, TIME)
        assert kept[1] is kept[0]


def test_each_block_may_embed_time_and_label_by_itself():
    network = made(classes=3, block_embedding=True)
    shared = made(classes=3)
    shared.load_state_dict(network.state_dict(), strict=False)
    x, told = batch(2, 8, 8), {"label": torch.tensor([0, 3])}
    assert not torch.allclose(network(x, TIME, told), shared(x, TIME, told), atol=1e-3)
    for time, label in zip(network.block_times, network.block_labels, strict=True):
        time.load_state_dict(network.time.state_dict())
        label.load_state_dict(network.label.state_dict())
    torch.testing.assert_close(network(x, TIME, told), shared(x, TIME, told))
    assert made(block_embedding=True)(x, TIME).shape == x.shape


# Derivatives, memory, programs


def test_forward_derivatives_agree_with_differences_where_attention_is_of_many_places():
    network = made(image_size=(8, 16)).double()      # 32 tokens, heads of 8
    x, v = batch(2, 8, 16).double(), batch(2, 8, 16, seed=2).double()
    output, slope = torch.func.jvp(lambda x: network(x, TIME), (x,), (v,))
    torch.testing.assert_close(output, network(x, TIME), rtol=1e-6, atol=1e-6)
    difference = (network(x + 1e-5 * v, TIME) - network(x - 1e-5 * v, TIME)) / 2e-5
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-6)


def test_activation_checkpointing_changes_no_gradient_and_keeps_less():
    plain = made(skips=True, dropout=0.3, width=32).train()
    frugal = copy.deepcopy(plain)
    recompute_activations(frugal)
    kept = []
    for network in (plain, frugal):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
                lambda t, sizes=sizes: sizes.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) and t,
                lambda t: t):
            torch.manual_seed(7)      # of dropout
            output = network(batch(2, 8, 8), TIME)
        kept.append(sum(sizes.values()))
        output.square().sum().backward()
    for one, other in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6 * float(one.grad.abs().max()))
    assert kept[1] < 0.75 * kept[0]


def test_a_network_compiles_as_one_graph():
    network, x, told = made(skips=True, classes=3), batch(2, 8, 8), {"label": torch.tensor([0, 3])}
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, TIME, told), network(x, TIME, told), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_program_of_torch_export_takes_any_batch():
    network = made()
    size = torch.export.Dim("batch")
    program = torch.export.export(network, (batch(2, 8, 8), TIME), dynamic_shapes=({0: size}, {0: size})).module()
    x = torch.cat([batch(2, 8, 8), batch(2, 8, 8, seed=3)])
    torch.testing.assert_close(program(x, TIME.repeat(2)), network(x, TIME.repeat(2)), rtol=1e-5, atol=1e-5)


# From a config, and what is refused


@pytest.mark.parametrize("shape", [(1, 16), (2, 8, 16), (3, 8, 8)])
def test_a_config_builds_it_for_series_and_pictures_with_a_learned_variance(shape):
    config = {"sde": {"name": "vp"}, "model": {"network": "dit", "width": 16, "layers": 1, "heads": 2,
                                               "learned_variance": True}}
    model, x = build_denoiser(config, shape).eval(), batch(*shape)
    prediction, share = model.with_share(x, 0.5, "x0")
    assert prediction.shape == share.shape == x.shape and (share == 0.5).all()


@pytest.mark.parametrize(("settings", "match", "arguments"), [
    ({"image_size": 9}, "needs sides that 2 divides, got 9 x 9; choose a patch of 1 or 3 or 9", ["image_size", "patch"]),
    ({"image_size": (6, 9)}, "got 6 x 9; choose a patch of 1 or 3", ["image_size", "patch"]),
    ({"image_size": (2, 2, 2)}, "1 or 2 sides", ["image_size"]), ({"patch": 0}, "at least 1, got 0", ["patch"]),
    ({"image_size": 2**12, "patch": 1}, "16,777,216 patches", ["patch", "image_size"]),
    ({"size": "M"}, "unknown size 'M'; choose from S, B, L, XL", ["size"]),
    ({"width": 18}, "multiple of 4", ["width", "heads"]), ({"heads": 3}, "got 16 with 3 heads", ["width", "heads"]),
    ({"layers": 0}, "1 <= layers", ["layers", "mlp_ratio", "dropout"]),
    ({"mlp_ratio": 0.0}, "mlp_ratio", ["layers", "mlp_ratio", "dropout"]), ({"norm_eps": 0.0}, "norm_eps", ["norm_eps"]),
    ({"freq_shift": 2}, "freq_shift is 0 or 1, got 2", ["freq_shift"]),
    ({"block_embedding": True, "low_res": 1, "low_res_noise": True}, "told of time and label alone",
     ["block_embedding", "guidance", "low_res_noise"])], ids=str)
def test_sizes_that_do_not_fit_are_errors_of_one_line(settings, match, arguments):
    with pytest.raises(ArgumentError, match=match) as caught:
        DiT(**SMALL | settings)
    assert set(caught.value.arguments) == set(arguments) and "\n" not in str(caught.value)


def test_pictures_of_other_sides_are_refused():
    with pytest.raises(ArgumentError, match=r"made for sides of 8 x 8, got x of shape \(2, 2, 4, 4\)"):
        made()(batch(2, 4, 4), TIME)


def test_labels_start_as_published():
    torch.manual_seed(0)
    network = DiT(8, 1, width=64, layers=1, heads=2, classes=100)
    assert network.label.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.time[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert isinstance(network.label, nn.Embedding) and len(network.label.weight) == 101


def test_second_derivatives_exist_where_attention_is_of_many_places():
    """An energy, a likelihood that is differentiated, and guidance that is."""
    network, x = made(image_size=(8, 16)).double(), batch(2, 8, 16).double()
    energy = Denoiser(network, VPSDE(), energy=True)
    field = Denoiser(network, VPSDE())

    def divergence(x):
        probe = batch(2, 8, 16, seed=3).double()[None]
        return with_hutchinson_divergence(lambda y: field.eps(y, 0.5), x, probe, True)[1].sum()

    def guided(x):
        operator = make_operator("mask:half=right", (2, 8, 16))
        y = operator(batch(2, 8, 16, seed=4).double())
        return posterior(field, operator, y, 0.1, "pigdm").eps(x, 0.5).square().sum()

    v = batch(2, 8, 16, seed=2).double()
    for of in (lambda x: energy.eps(x, 0.5).square().sum(), divergence, guided):
        y = x.clone().requires_grad_()
        slope = (torch.autograd.grad(of(y), y)[0] * v).sum()
        difference = (of((x + 1e-5 * v).requires_grad_()) - of((x - 1e-5 * v).requires_grad_())) / 2e-5
        torch.testing.assert_close(slope, difference.detach(), rtol=1e-4, atol=1e-6)


def test_a_network_that_no_memory_holds_is_refused_before_it_is_made():
    config = {"sde": {"name": "vp"}, "model": {"network": "dit", "size": "XL", "layers": 1000, "width": 9216}}
    with pytest.raises(ArgumentError, match="the weights of this network take .* GiB, and this machine has") as caught:
        build_denoiser(config, (3, 8, 8))
    assert "model.width" in caught.value.arguments
