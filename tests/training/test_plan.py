"""The plan of a GPU's memory is what autograd keeps of real networks, and what optimiser, average and shares take."""

import copy
import json

import pytest
import torch
from torch import nn

from scorefield.configs import vp_swiss_roll
from scorefield.configs.default import get_config
from scorefield.models.build import build_denoiser
from scorefield.models.layers import recompute_activations
from scorefield.numerics.errors import ArgumentError
from scorefield.training.plan import GIB, RESERVED, Live, _step_of, gathered_bytes, plan
from scorefield.training.sharding import blocks_of

SHAPE = (1, 8, 8)


def small_config():
    config = get_config()
    config.model.update(width=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=())
    return config


def small_network(device="meta"):
    with torch.device(device):
        return build_denoiser(small_config(), SHAPE).network.train()


def kept_of(network, batch):
    """Bytes that autograd keeps of a forward pass on the CPU, without the weights: what its hooks see."""
    weights, kept = {p.untyped_storage().data_ptr() for p in network.parameters()}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = network(torch.randn(batch, *SHAPE), torch.rand(batch))      # alive, so that no address is used twice
    assert output.requires_grad
    return sum(kept.values())


def test_a_storage_is_counted_from_its_making_to_its_end():
    x = torch.zeros(1000)
    with Live() as live:
        y = x + 1                                        # 4000 bytes
        view = y.reshape(10, 100).T                      # the same ones
        z = view.double()                                # 8000 more
        assert live.now == live.peak == 12000
        del y, view
        assert (live.now, live.peak) == (8000, 12000)
        del z
        assert live.now == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_holds_what_autograd_keeps_of_a_real_network_and_little_more(checkpointing):
    """By the slope in the batch, which is what decides the largest batch."""
    real, outline = small_network("cpu"), small_network()
    planned = _step_of(outline, None, checkpointing)
    if checkpointing:
        recompute_activations(real)
    kept = (kept_of(real, 48) - kept_of(real, 16)) / 32
    found = (planned(SHAPE, 48) - planned(SHAPE, 16)) / 32
    assert kept < found < kept * (3 if checkpointing else 1.4)      # one block at a time is computed again, whole


def test_what_a_pass_holds_is_the_same_on_the_meta_device_and_with_real_numbers():
    x, time = torch.randn(16, *SHAPE), torch.rand(16)
    held = []
    for device in ("cpu", "meta"):
        network = small_network(device)
        live = Live()
        live.know(network.parameters())
        with live:
            network(x.to(device) + 0, time.to(device) + 0).square().mean().backward()
        held.append(live.peak)
    assert held[1] == pytest.approx(held[0], rel=0.02)


def test_sixteen_bits_halve_products_and_keep_norms_whole():
    plain, cast = (_step_of(small_network(), dtype, False)(SHAPE, 64) for dtype in (None, torch.bfloat16))
    layer = nn.Linear(1000, 1000, bias=False, device="meta")
    layer.conditions, layer.classes = (), None
    wrapped = [_step_of(_Timeless(layer), dtype, False)((1000,), 4096) for dtype in (None, torch.bfloat16)]
    assert 0.6 * plain < cast < 1.1 * plain and wrapped[1] != wrapped[0]


class _Timeless(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = copy.deepcopy(layer)

    def forward(self, x, time):
        return self.layer(x)


@pytest.mark.slow
def test_states_are_counted_by_number_and_shared_by_fsdp():
    found = plan(small_config(), SHAPE, gpus=4, gpu_memory=2.1)
    weights = 4 * found.parameters
    whole, shares = found.layouts[0], found.layouts[1]
    assert (whole.sharding, shares.sharding, found.batch) == ("none", "fsdp", 32)
    assert (whole.weights, whole.gradients, whole.optimizer, whole.averages) == (weights, weights, 2 * weights, weights)
    assert (shares.weights, shares.optimizer, whole.gathered) == (weights // 4, weights // 2, 0)
    assert whole.total == 5 * weights + whole.activations + RESERVED and whole.fits
    assert whole.activations == shares.activations


def test_what_fsdp_gathers():
    network = small_network()
    blocks = sorted(sum(p.nbytes for p in block.parameters()) for block in blocks_of(network))
    rest = sum(p.nbytes for p in network.parameters()) - sum(blocks)
    assert gathered_bytes(network) == rest + blocks[-1] + blocks[-2] + max(rest, blocks[-1])


def test_the_largest_batch_fits_and_the_next_one_does_not():
    config = vp_swiss_roll.get_config()
    largest = plan(config, (2,), gpu_memory=2.25).layouts[0].largest_batch
    fits = []
    for batch in (largest, largest + 1):
        config.training.batch_size = batch
        fits.append(plan(config, (2,), gpu_memory=2.25).layouts[0].fits)
    assert fits == [True, False] and largest > 1000


@pytest.mark.slow
def test_a_network_that_does_not_fit_is_told_and_fsdp_with_recomputation_takes_least():
    config = small_config()
    layouts = plan(config, SHAPE, gpus=8, gpu_memory=RESERVED / GIB + 0.0005).layouts
    totals = {(layout.sharding, layout.checkpointing): layout.total for layout in layouts}
    assert min(totals, key=totals.get) == ("fsdp", True) and max(totals, key=totals.get) == ("none", False)
    assert not layouts[0].fits and layouts[0].largest_batch < 16
    assert [layout.largest_batch for layout in plan(config, SHAPE, gpu_memory=2).layouts] == [0, 0]


def test_the_command_prints_a_table_and_json(command, tmp_path):
    words = ("--config", "configs/vp_swiss_roll.py", "--mode", "plan", "--gpus", 2, "--gpu_memory", 40, "--workdir",
             tmp_path)
    code, out, err = command(*words)
    assert code == 0, err
    assert "2 GPUs of 40 GiB, 256 examples each" in out and "fsdp" in out and not list(tmp_path.iterdir())
    told = json.loads(command(*words, "--json", "--shape", "2")[1])
    assert told["gpu_memory"] == 40 * GIB and [row["sharding"] for row in told["layouts"]] == ["none", "fsdp"]
    assert told["layouts"][0]["total"] > told["layouts"][0]["weights"] == 4 * told["parameters"]


@pytest.mark.parametrize("words, told", [
    (("--gpus", 3), "must be divisible by 3, the number of GPUs"), (("--gpu_memory", "0"), "memory above 0 GiB"),
    (("--shape", "2,x"), "whole numbers from 1"), (("--gpus", 0), "gpus must lie in 1")])
def test_what_cannot_be_planned_is_refused(command, tmp_path, words, told):
    code, _, err = command("--config", "configs/vp_swiss_roll.py", "--mode", "plan", "--workdir", tmp_path / "none", *words)
    assert code == 1 and told in err and err.count("\n") == 1


def test_gpus_must_be_there():
    with pytest.raises(ArgumentError, match="at least one GPU"):
        plan(vp_swiss_roll.get_config(), (2,), gpus=0)
