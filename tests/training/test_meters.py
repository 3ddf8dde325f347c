"""The figures beside the loss, the trackers that get them, and what is measured on a machine once."""

import json
import sys
import types

import pytest
import torch

from scorefield.configs.loading import load_config
from scorefield.data import from_arrays
from scorefield.models import MLP, Denoiser, UNet
from scorefield.numerics.processes import World
from scorefield.numerics.timing import faster, peak_operations
from scorefield.sde_lib import VPSDE
from scorefield.training import ScoreMatching, train
from scorefield.training import machine as machines
from scorefield.training.log import Log
from scorefield.training.machine import Machine
from scorefield.training.meters import LossByTime, Meters, operations_of
from scorefield.training.trackers import TRACKERS

CPU = torch.device("cpu")
FEW = {"training.steps": 4, "training.batch_size": 8, "training.log_every": 2, "training.checkpoint_every": 2,
       "training.sample_every": 0, "training.eval_every": 0, "training.precision": "fp32", "model.width": 8,
       "model.layers": 1}


def points():
    return torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def lines_of(run):
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("settings", [{}, {"weighting": "likelihood", "importance": True}], ids=["uniform", "importance"])
def test_a_quarter_of_the_drawn_times_falls_into_each_bucket(settings):
    objective = ScoreMatching(VPSDE(), **settings)
    by_time = LossByTime(objective)
    t = objective.times.draw(4000, torch.Generator().manual_seed(5))[0]
    counts = torch.bucketize(t, by_time.edges).bincount()
    assert counts.sub(1000).abs().max() < 30


def test_the_loss_by_time_is_the_mean_of_each_bucket_however_many_steps_are_kept(monkeypatch):
    monkeypatch.setattr("scorefield.training.meters.MOST_KEPT", 3)
    by_time, generator = LossByTime(ScoreMatching(VPSDE())), torch.Generator().manual_seed(0)
    t, loss = torch.rand(7, 20, generator=generator, dtype=torch.float64), torch.rand(7, 20, generator=generator)
    for step in range(7):
        by_time.note(t[step], loss[step])
    figures, bucket = by_time.figures(World()), torch.bucketize(t, by_time.edges)
    assert figures == pytest.approx({f"loss_q{i + 1}": float(loss[bucket == i].mean()) for i in range(4)}, rel=1e-5)
    assert by_time.figures(World()) == {}      # they begin anew
    by_time.note(t[0, :1] * 0, loss[0, :1])
    assert by_time.figures(World()) == pytest.approx({"loss_q1": float(loss[0, 0])})      # no bucket without examples


def test_the_buckets_hold_the_losses_that_the_run_minimises(tmp_path):
    run = quick(tmp_path / "run", batch_size=400)
    for line in lines_of(run):      # as many examples in each, so the loss is about the mean of their means
        assert sum(line[f"loss_q{i}"] for i in range(1, 5)) / 4 == pytest.approx(line["loss"], rel=0.02)


def test_speed_waiting_memory_and_the_share_of_the_peak_are_told(monkeypatch):
    monkeypatch.setattr("scorefield.training.meters.PATIENCE", 0.0)
    waited = iter([1.0, 3.0, 3.5])
    meters = Meters(ScoreMatching(VPSDE()), 32, CPU, waited=lambda: next(waited), operations=lambda: 5e9, peak=lambda: 1e11)
    figures = meters.figures(steps=10, elapsed=8.0)
    assert (figures["examples_per_second"], figures["data_wait"]) == (40.0, 0.25)
    assert figures["share_of_peak"] == pytest.approx(5e9 * 10 / 8 / 1e11)
    assert 0.05 < figures["memory_gib"] < 50
    assert meters.figures(10, 8.0)["data_wait"] == 0.5 / 8
    unknown = Meters(ScoreMatching(VPSDE()), 32, CPU, operations=lambda: 0.0, peak=lambda: 1e11)
    assert "share_of_peak" not in unknown.figures(10, 8.0)


def test_operations_are_those_of_the_products_forward_and_backward():
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Linear(5, 7, bias=False), torch.nn.Linear(7, 5, bias=False))
        network.forward = lambda x, time: network[1](network[0](x))
    assert operations_of(network, (5,)) == 2 * 2 * 35 + 2 * 2 * 35 + 2 * 35      # both ways, but for the gradient of x
    with torch.device("meta"):
        asks = torch.nn.Linear(5, 5)
        asks.forward = lambda x, time: x * float(x.sum())
    assert operations_of(asks, (5,)) == 0.0


def test_the_peak_is_that_of_a_product_that_takes_long_enough(monkeypatch):
    monkeypatch.setattr("scorefield.numerics.timing.SHORTEST", 1e-4)
    assert 1e8 < peak_operations(CPU, torch.float32) < 1e14


# ---- trackers ----------------------------------------------------------------------------------------------------


class FakeWandB(types.ModuleType):
    """The package wandb as far as this project uses it."""

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.logged, self.finished = [], [], 0
        self.__spec__ = types.SimpleNamespace(name="wandb")

    def init(self, **settings):
        self.inits.append(settings)
        return types.SimpleNamespace(log=lambda figures, step: self.logged.append((step, figures)), finish=self.finish)

    def finish(self):
        self.finished += 1

    def Image(self, array):      # noqa: N802
        return ("image", array.shape, array.dtype.name)


@pytest.fixture
def wandb(monkeypatch):
    module = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def quick(workdir, preview=None, **training):
    overrides = FEW | {f"training.{name}": value for name, value in training.items()}
    return train("configs/vp_swiss_roll.py", points(), workdir, "cpu", overrides, preview, progress=False)


def test_wandb_gets_every_line_and_picture_and_a_resumed_run_goes_on_as_the_same(wandb, tmp_path):
    def preview(*of):
        return torch.zeros(3, 6, 8, dtype=torch.uint8)

    run = quick(tmp_path / "mine", preview, trackers="wandb,tensorboard", sample_every=4)
    quick(tmp_path / "mine", preview, trackers="wandb,tensorboard", sample_every=4, steps=6)
    first, second = wandb.inits
    assert first["id"] == second["id"]
    assert (first["resume"], first["name"], first["project"]) == ("allow", "mine", "scorefield")
    assert first["config"]["model"]["width"] == 8 and wandb.finished == 2
    told = [(step, figures) for step, figures in wandb.logged if "training/loss" in figures]
    assert [(step, figures["training/loss"]) for step, figures in told] == [
        (line["step"], line["loss"]) for line in lines_of(run)]
    assert {name: value for _, figures in wandb.logged for name, value in figures.items() if name == "samples"} == {
        "samples": ("image", (6, 8, 3), "uint8")}
    assert list((run / "tensorboard").iterdir())
    quick(tmp_path / "other", trackers="wandb")
    assert wandb.inits[2]["id"] != first["id"] and not (tmp_path / "other/tensorboard").exists()


def test_none_means_no_tracker_and_stats_jsonl_stays(tmp_path):
    run = quick(tmp_path / "run", trackers="none")
    assert [line["step"] for line in lines_of(run)] == [2, 4] and not (run / "tensorboard").exists()


def test_a_tracker_that_is_unknown_or_not_installed_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="trackers must be.*'tensorbord'; choose from tensorboard, wandb"):
        quick(tmp_path / "run", trackers="tensorbord")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package wandb, which is not installed: pip install wandb") as caught:
        quick(tmp_path / "run", trackers="wandb")
    assert caught.value.arguments == ("training.trackers",) and not list(tmp_path.iterdir())


def test_any_tracker_is_a_class_and_a_line(tmp_path, monkeypatch):
    seen = []

    class Mine:
        def __init__(self, run, step):
            seen.append((run, step))

        def log(self, step, figures):
            seen.append((step, figures))

        def image(self, step, name, picture):
            seen.append((step, name, picture.shape))

        def close(self):
            seen.append("closed")

    monkeypatch.setitem(TRACKERS, "mine", Mine)
    with Log(tmp_path, 3, 9, World(), False, trackers=("mine",)) as log:
        log.write({"step": 4, "loss": 0.5}, torch.zeros(3, 2, 2))
    assert seen == [(tmp_path, 3), (4, {"training/loss": 0.5}), (4, "samples", (3, 2, 2)), "closed"]


# ---- what is measured once ---------------------------------------------------------------------------------------


def test_a_way_is_chosen_over_the_first_only_if_it_is_faster_by_the_margin(monkeypatch):
    taken = {"a": 1.0, "b": 0.99, "c": 0.5}
    monkeypatch.setattr("scorefield.numerics.timing.seconds", lambda work, device: taken[work()])
    a, b, c = (lambda name=name: name for name in "abc")
    assert faster([a, b], CPU, 3, margin=0.02) == 0 and faster([a, c], CPU, 3, margin=0.02) == 1
    assert faster([c, a, b], CPU, 3, margin=0.02) == 0


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def pictures(run, monkeypatch, fast, **training):
    """Train on pictures, on a machine where the memory format number `fast` is faster; how often that was measured."""
    measured = []

    def faster(ways, device, rounds, margin):
        measured.append([way() for way in ways])
        return fast

    monkeypatch.setattr(machines, "faster", faster)
    data = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = {"model.multipliers": "(1,)", "model.num_blocks": 1, "model.attention_resolutions": "()"}
    overrides = FEW | small | {f"training.{name}": value for name, value in training.items()}
    del overrides["model.layers"]
    train("configs/vp_digits.py", data, run, "cpu", overrides, progress=False)
    return len(measured)


def test_the_faster_memory_format_is_measured_once_and_kept_with_the_run(home, tmp_path, monkeypatch):
    assert pictures(tmp_path / "one", monkeypatch, fast=1) == 1
    kept = json.loads((tmp_path / "one/machine.json").read_text())["memory_format"]
    assert kept["value"] == "channels_last" and "torch" in kept["machine"]
    assert pictures(tmp_path / "one", monkeypatch, fast=0, steps=6) == 0      # goes on as it began
    assert pictures(tmp_path / "two", monkeypatch, fast=0) == 0               # all runs of a network are alike here
    assert json.loads((tmp_path / "two/machine.json").read_text())["memory_format"]["value"] == "channels_last"
    (home / "machine").rename(home / "elsewhere")
    assert pictures(tmp_path / "one", monkeypatch, fast=0, steps=8) == 0      # the run knows
    assert pictures(tmp_path / "three", monkeypatch, fast=0) == 1
    assert pictures(tmp_path / "four", monkeypatch, fast=0, memory_format="channels_last") == 0
    assert pictures(tmp_path / "five", monkeypatch, fast=0, batch_size=4) == 1      # another batch, another answer


def test_measuring_leaves_weights_gradients_modes_and_random_numbers_alone(home, tmp_path):
    torch.manual_seed(0)
    network = UNet(image_size=8, width=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(), dropout=0.5)
    model = Denoiser(network, VPSDE()).eval()
    before, state = {name: p.clone() for name, p in network.named_parameters()}, torch.get_rng_state()

    def loss(n):
        return model(torch.ones(n, 3, 8, 8), torch.full((n,), 0.5)).square().mean()

    chosen = Machine(tmp_path / "run", CPU).memory_format(model, "auto", loss, 4, World())
    assert chosen in ("contiguous", "channels_last") and torch.equal(torch.get_rng_state(), state) and not network.training
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in network.named_parameters())
    last = network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert last == (chosen == "channels_last") and not (tmp_path / "run").exists()


def test_a_network_without_pictures_is_not_measured(home, tmp_path):
    def loss(n):
        raise AssertionError("nothing is to be measured")

    assert Machine(tmp_path, CPU).memory_format(Denoiser(MLP((2,)), VPSDE()), "auto", loss, 4, World()) == "contiguous"


def test_a_damaged_record_of_the_machine_is_measured_again(home, tmp_path, monkeypatch):
    pictures(tmp_path / "one", monkeypatch, fast=1)
    for file in (*(home / "machine").iterdir(), tmp_path / "one/machine.json"):
        file.write_text("{")
    assert pictures(tmp_path / "one", monkeypatch, fast=0, steps=6) == 1


def test_figures_of_samples_are_logged_on_their_schedule(tmp_path):
    from scorefield.evaluation import Measures

    overrides = {"training.metrics_every": 2, "training.metrics": "energy,bits_per_dim", "training.metrics_samples": 12}
    data = from_arrays(points(), points()[:20])
    run = train("configs/vp_swiss_roll.py", data, tmp_path / "run", "cpu", FEW | overrides, progress=False,
                measures=Measures(cache=None))
    assert all({"energy", "bits_per_dim"} <= set(line) for line in lines_of(run)) and len(lines_of(run)) == 2
    plain = train("configs/vp_swiss_roll.py", data, tmp_path / "plain", "cpu", FEW, progress=False)
    assert [line["loss"] for line in lines_of(run)] == [line["loss"] for line in lines_of(plain)]


@pytest.mark.parametrize("settings, match", [
    ({"metrics": "fod"}, "unknown metric 'fod'"), ({"metrics": "inception_score"}, "inception_score"),
    ({"metrics": "energy,,mmd"}, "metrics must be"), ({"metrics": "energy", "metrics_samples": 1}, "needs at least")])
def test_figures_that_cannot_be_made_are_refused_before_training(settings, match, tmp_path):
    from scorefield.evaluation import Measures

    overrides = FEW | {"training.metrics_every": 2, **{f"training.{k}": v for k, v in settings.items()}}
    with pytest.raises(ValueError, match=match) as caught:
        train("configs/vp_swiss_roll.py", points(), tmp_path / "run", "cpu", overrides, progress=False, measures=Measures())
    assert any("metrics" in name for name in caught.value.arguments) and not list(tmp_path.iterdir())


def test_figures_without_what_makes_them_are_refused(tmp_path):
    with pytest.raises(ValueError, match="measures=evaluation.Measures"):
        quick(tmp_path / "run", metrics_every=2)
    assert load_config("configs/default.py").training.metrics_every == 0
