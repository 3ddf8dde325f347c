"""One update of the weights: optimisers, accumulation, fp16, updates that are skipped, averages, what a state holds."""

import contextlib
import copy
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from scorefield.configs.default import get_config
from scorefield.configs.loading import apply
from scorefield.configs.sections import require_sections, training
from scorefield.numerics.errors import ArgumentError
from scorefield.training.objectives import Batch
from scorefield.training.optimizers import OPTIMIZERS, groups_of
from scorefield.training.update import Update

CPU = torch.device("cpu")


class Draw(NamedTuple):
    noise: torch.Tensor
    nothing: None = None


class Regression:
    """Loss (network(x + noise) - y)^2, with the network in `dtype`, and times `factor`, which may overflow."""

    factor = 1.0

    def __init__(self, dtype=None):
        self.dtype, self.sizes = dtype, []

    def loss(self, model, batch, draw):
        self.sizes.append(len(batch.x))
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
            answer = model.network(batch.x + draw.noise)
        return (answer - batch.condition["y"]).square().mean(1) * self.factor


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 2))


def update_of(masked=None, dtype=None, seed=0, **settings):
    net = network(seed)
    settings = training(**{"learning_rate": 1e-2, "warmup": 0, "steps": 1000, "precision": "fp32", "on_nonfinite": "skip",
                           **settings})
    return Update(SimpleNamespace(network=net), net, Regression(dtype), settings, CPU, masked)


def batch_of(step, n=12):
    generator = torch.Generator().manual_seed(step)
    x, y, noise = (torch.randn(n, size, generator=generator) for size in (4, 2, 4))
    return Batch(x, {"y": y}), Draw(0.1 * noise)


def run(update, start, end):
    return [update(*batch_of(step), step) for step in range(start, end)]


def copied(step, update):
    """The state after `step` updates, as if read from a file."""
    return copy.deepcopy({"step": step, **update.state()})


def flat(value, name=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}/{key}").items()}
    return {name: value}


def same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


EVERY = "0.99,power0.1,power0.2"


@pytest.mark.parametrize("settings", [
    *({"optimizer": name} for name in OPTIMIZERS), {"optimizer": "adamw", "weight_decay": 0.1, "decay": "cosine"},
    {"optimizer": "sgd", "nesterov": True, "weight_decay": 0.01}, {"optimizer": "sgd", "momentum": 0.0},
    {"accumulate": 3, "decay": "cooldown", "cooldown": 900}], ids=str)
def test_a_restored_update_goes_on_to_the_bit(settings):
    whole, first = (update_of(averages=EVERY, **settings) for _ in range(2))
    run(whole, 0, 7)
    run(first, 0, 4)
    second = update_of(seed=1, averages=EVERY, **settings)
    second.restore(copied(4, first))
    run(second, 4, 7)
    assert second.notes == [] and same(whole.state(), second.state())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_lowers_the_loss(name):
    update = update_of(optimizer=name)
    update.objective.factor = 0.2 if name == "sgd" else 1.0
    losses = [float(update(*batch_of(0), step)[0]) for step in range(90)]
    assert losses[-1] < 0.5 * losses[0]


def test_weight_decay_shrinks_the_weights_and_spares_norms_and_biases():
    update = update_of(optimizer="adamw", weight_decay=0.5)
    for parameter in update.parameters:
        nn.init.constant_(parameter, 1.0)
    for group in update.optimizer.param_groups:
        group["lr"] = 1e-2
    for parameter in update.parameters:
        parameter.grad = torch.zeros_like(parameter)
    update.optimizer.step()
    left = {name: float(parameter.detach().flatten()[0]) for name, parameter in update.network.named_parameters()}
    assert left == pytest.approx(dict.fromkeys(left, 1.0) | {"0.weight": 0.995, "3.weight": 0.995})


def test_without_weight_decay_there_is_one_group_in_the_order_of_the_network():
    net = network()
    group, = groups_of(net, 0.0)
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()] and set(group) == {"params"}


def test_the_state_of_adam_is_taken_over_by_adamw_and_back():
    first = update_of()
    run(first, 0, 4)
    second = update_of(optimizer="adamw", weight_decay=0.1)
    second.restore(copied(4, first))
    assert second.notes == [] and same(second.state()["optimizer"]["state"], first.state()["optimizer"]["state"])
    third = update_of()
    third.restore(copied(4, second))
    assert same(third.state()["optimizer"]["state"], first.state()["optimizer"]["state"])


def test_an_optimiser_with_other_moments_starts_at_its_beginning_and_says_so():
    first = update_of()
    run(first, 0, 4)
    second = update_of(optimizer="sgd")
    second.restore(copied(4, first))
    note, = second.notes
    assert "another optimizer than sgd" in note
    assert all(float(entry["momentum_buffer"].abs().sum()) == 0 for entry in second.optimizer.state.values())


@pytest.mark.parametrize("k", [2, 3, 12])
def test_accumulated_parts_give_the_update_of_the_whole_batch(k):
    whole, parts = update_of(), update_of(accumulate=k)
    for step in range(5):
        (loss, norm), (its_loss, its_norm) = (update(*batch_of(step), step) for update in (whole, parts))
        assert float(its_loss) == pytest.approx(float(loss), rel=1e-6)
        assert float(its_norm) == pytest.approx(float(norm), rel=1e-5)
    assert parts.objective.sizes == [12 // k] * (5 * k)
    for a, b in zip(whole.parameters, parts.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_several_processes_average_their_gradients_with_the_last_part_alone():
    update, told = update_of(accumulate=4), []

    class Wrapped:
        def __call__(self, x):
            return update.network(x)

    class Shared(Wrapped):      # as DistributedDataParallel and fully_shard have them
        @contextlib.contextmanager
        def no_sync(self):
            told.append(len(update.objective.sizes))
            yield

    class Sharded(Wrapped):
        def set_requires_gradient_sync(self, on):
            told.append((len(update.objective.sizes), on))

    turns = [(n + i, on) for n in (4, 5, 6) for i, on in ((0, False), (1, True))]
    for kind, expected in ((Shared, [0, 1, 2]), (Sharded, turns)):
        update.model.network = kind()
        told.clear()
        update(*batch_of(0), 0)
        assert told == expected


def test_parts_that_do_not_share_out_the_batch_are_refused():
    with pytest.raises(ArgumentError, match="12 examples of a batch, which 5 equal parts"):
        update_of(accumulate=5, batch_size=60)(*batch_of(0), 0)
    config = get_config()
    config.training.update(batch_size=10, accumulate=4)
    with pytest.raises(ArgumentError, match="batch_size=10 must be divisible by accumulate=4"):
        require_sections(config)


@pytest.mark.parametrize("name, masked", [*((name, False) for name in OPTIMIZERS),
                                          *((name, True) for name in ("adam", "adamw", "sgd"))])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(name, masked):
    update, clean = (update_of(masked, optimizer=name, averages=EVERY) for _ in range(2))
    for step in range(6):
        for bad in (float("nan"), float("inf")) if step in (0, 3) else ():      # in the first update, too
            update.objective.factor = bad
            update(*batch_of(step), step)
            update.objective.factor = 1.0
        update(*batch_of(step), step)
        clean(*batch_of(step), step)
    assert int(update.skipped) == 4 and int(clean.skipped) == 0
    assert same({**update.state(), "skipped": 0}, clean.state())


def test_the_mask_changes_no_update_that_is_finite():
    plain, masked = update_of(averages=EVERY), update_of(masked=True, averages=EVERY)
    for update in (plain, masked):
        run(update, 0, 20)
    for part in ("network", "optimizer"):
        assert same(plain.state()[part], masked.state()[part])
    for a, b in zip(flat(plain.state()["averages"]).values(), flat(masked.state()["averages"]).values(), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_mask_never_waits_for_the_device(name, monkeypatch):
    """Reading a number off a tensor is what waits."""
    update = update_of(masked=True, optimizer=name, averages=EVERY)
    run(update, 0, 2)
    for reader in ("__bool__", "__int__", "__float__", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, reader, lambda *_: pytest.fail("it waits for the device"))
    run(update, 2, 4)


def test_fp16_finds_a_scale_and_trains():
    update, exact = update_of(dtype=torch.float16, precision="fp16"), update_of()
    update.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)      # overflows at first
    scale = []
    for step in range(100):
        loss, norm = update(*batch_of(0), step)
        exact(*batch_of(0), step)
        assert bool(norm.isfinite()) and bool(loss.isfinite())
        scale.append(update.figures()["loss_scale"])
    skipped = int(update.skipped)
    assert 10 < skipped < 40 and scale[-1] == 2.0 ** (40 - skipped) and update.ema.updates == 100 - skipped
    with torch.no_grad():
        loss = update.objective.loss(update.model, *batch_of(0)).mean()
    assert float(loss) < 0.5 * float(Regression().loss(SimpleNamespace(network=network()), *batch_of(0)).mean())


def test_in_fp16_gradients_that_would_vanish_are_kept():
    """A loss of 1e-9 times the error has gradients below 6e-8, the least number of float16."""
    ends = {}
    for dtype, precision in ((None, "fp32"), (torch.float16, "fp16")):
        update = update_of(dtype=dtype, precision=precision, adam_eps=1e-16)
        update.objective.factor = 1e-9
        run(update, 0, 1)
        ends[precision] = torch.cat([p.detach().flatten() for p in update.parameters])
    start = torch.cat([p.detach().flatten() for p in network().parameters()])
    moved = (ends["fp16"] - start, ends["fp32"] - start)
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.9


def test_fp16_goes_on_to_the_bit_with_its_scale():
    settings = {"dtype": torch.float16, "precision": "fp16", "averages": "power0.1"}
    whole, first = update_of(**settings), update_of(**settings)
    run(whole, 0, 30)
    run(first, 0, 20)
    second = update_of(**settings, seed=1)
    second.restore(copied(20, first))
    run(second, 20, 30)
    assert same(whole.state(), second.state())


def test_fp16_whose_gradient_is_never_finite_stops():
    update = update_of(dtype=torch.float16, precision="fp16")
    update.objective.factor = float("inf")
    with pytest.raises(ArithmeticError, match="not finite at any scale.*training.precision"):
        for step in range(60):
            update(*batch_of(step), step)
            update.figures()


def test_the_norms_of_groups_are_those_of_the_gradient_and_add_up():
    update, net = update_of(log_groups=True, grad_clip=1e-3), network()
    _, norm = update(*batch_of(0), 0)
    Regression().loss(SimpleNamespace(network=net), *batch_of(0)).mean().backward()
    expected = {f"grad_norm/{name}": float(torch.cat([p.grad.flatten() for p in child.parameters()]).norm())
                for name, child in net.named_children() if name != "2"}
    assert update.figures() == pytest.approx(expected, rel=1e-5)
    assert sum(value**2 for value in expected.values()) ** 0.5 == pytest.approx(float(norm), rel=1e-5)


def test_an_average_that_a_checkpoint_does_not_hold_starts_there_and_says_so():
    first, second = update_of(averages="0.9"), update_of(averages="0.9,power0.1")
    run(first, 0, 5)
    second.restore(copied(5, first))
    note, = second.notes
    assert note.startswith("the average power0.1 starts at step 5")
    assert same(second.averages["power0.1"].module.state_dict(), first.network.state_dict())
    run(second, 5, 7)
    assert (second.averages["power0.1"].updates, second.averages["power0.1"].since) == (2, 5)
    assert (second.averages["0.9"].updates, second.averages["0.9"].since) == (7, 0)


def test_a_state_of_the_first_edition_loads():
    first, second = update_of(), update_of(seed=1)
    run(first, 0, 3)
    kept = ("step", "network", "ema", "ema_updates", "optimizer")
    second.restore({key: value for key, value in copied(3, first).items() if key in kept})
    for update in (first, second):
        run(update, 3, 5)
    assert same(first.state(), second.state())


def test_another_optimiser_brings_its_own_fields_and_their_defaults():
    config = get_config()
    apply(config, [("training.beta1", "0.5")])
    apply(config, [("training.momentum", "0.7"), ("training.optimizer", "sgd"), ("training.decay", "cooldown")])
    require_sections(config)
    assert "beta1" not in config.training and config.training.momentum == 0.7 and config.training.cooldown == 20_000
    with pytest.raises(ArgumentError, match="optimizer=sgd takes no 'beta1'; it belongs to adam and adamw"):
        apply(config, [("training.beta1", "0.5")])
    apply(config, [("training.objective", "classifier")])
    assert config.training.optimizer == "sgd" and config.training.momentum == 0.7


@pytest.mark.parametrize(("settings", "match"), [
    ({"optimizer": "adamm"}, "unknown optimizer 'adamm'.*did you mean 'adamw'|did you mean 'adam'"),
    ({"optimizer": "adamw", "weight_decay": -1.0}, "weight_decay must not be negative, got -1.0"),
    ({"beta1": 1.0}, r"beta1 must lie in \[0, 1\), got 1.0"), ({"adam_eps": 0.0}, "adam_eps must be above 0"),
    ({"optimizer": "sgd", "momentum": 0.0, "nesterov": True}, "nesterov needs momentum above 0"),
    ({"averages": "0.9,pow"}, "an average must be a decay such as 0.999, .*got 'pow'"),
    ({"averages": "power0.5"}, "sigma_rel .* must lie in 0.001 .. 0.28, got 0.5"),
    ({"averages": "0.9,0.9"}, "0.9 is named twice"), ({"averages": "1.5"}, r"must lie in \[0, 1\), got 1.5"),
    ({"snapshots_every": 5, "averages": "0.9"}, "snapshots_every needs averages with a power function"),
    ({"snapshots_precision": "fp8"}, "unknown snapshots_precision 'fp8'; choose from fp32, fp16"),
])
def test_a_setting_that_cannot_be_is_refused(settings, match):
    config = get_config()
    with pytest.raises(ArgumentError, match=match):
        config.training = training(**settings)
        require_sections(config)
