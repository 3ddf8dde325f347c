"""Which checkpoints stay."""

import json
import math

import pytest
import torch

from scorefield.checkpoints.formats.run import checkpoints_of
from scorefield.configs import vp_swiss_roll
from scorefield.data import load_dataset
from scorefield.training import set_up
from scorefield.training.keeping import Keeping, best_of, go_back, is_sound

CPU = torch.device("cpu")


def save(run, keeping, step, **figures):
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / f"checkpoints/step_{step:08d}.pt").touch()
    keeping.saved(step, figures)
    return [step for step, _ in checkpoints_of(run)]


def test_the_newest_the_best_and_the_last_sound_checkpoint_stay(tmp_path):
    keeping = Keeping(tmp_path, keep=2)
    assert save(tmp_path, keeping, 10, held_out_loss=1.0) == [10]
    assert save(tmp_path, keeping, 20, held_out_loss=0.1) == [10, 20]
    assert save(tmp_path, keeping, 30, held_out_loss=0.2) == [20, 30]
    assert save(tmp_path, keeping, 40, held_out_loss=1e9) == [20, 30, 40]
    keeping = Keeping(tmp_path, keep=2)      # a resumed run reads the record
    assert save(tmp_path, keeping, 50, held_out_loss=math.inf) == [20, 30, 40, 50]
    assert save(tmp_path, keeping, 60, held_out_loss=1e9) == [20, 30, 50, 60]
    assert (keeping.best, keeping.last_sound) == (20, 30) and "from_step 30" in keeping.advice()
    assert save(tmp_path, keeping, 70, held_out_loss=0.15) == [20, 60, 70]


def test_the_best_is_by_any_figure_and_either_way():
    figures = {1: {"fid": 3.0, "held_out_accuracy": 0.5}, 2: {"fid": math.nan}, 3: {"fid": 3.0, "held_out_accuracy": 0.9}}
    assert best_of(figures, "fid") == 3 and best_of(figures, "max:held_out_accuracy") == 3
    assert best_of(figures, "kid") is None


def test_a_checkpoint_without_an_evaluation_is_judged_by_the_loss_of_training():
    assert is_sound({"loss": 0.2}, {"loss": 0.1, "held_out_loss": 0.001}) and not is_sound({"loss": 0.4}, {"loss": 0.1})
    assert not is_sound({"loss": math.nan}, {}) and not is_sound({}, {})


@pytest.mark.parametrize("content", ["", "[]", "{", '{"checkpoints": {"a": 1}}', '{"checkpoints": {"1": {"loss": "x"}}}'])
def test_a_damaged_record_costs_the_record_alone(content, tmp_path):
    (tmp_path / "kept.json").write_text(content)
    keeping = Keeping(tmp_path, keep=1)
    assert save(tmp_path, keeping, 5, loss=1.0) == [5]
    assert json.loads((tmp_path / "kept.json").read_text())["last_sound"] == 5


def test_a_run_goes_back_to_a_checkpoint(tmp_path):
    keeping = Keeping(tmp_path, keep=9)
    for step in (1, 2, 3):
        save(tmp_path, keeping, step, loss=1.0)
    with pytest.raises(ValueError, match="no checkpoint of step 7; it has those of 1, 2, 3"):
        go_back(tmp_path, 7)
    assert [path.name for path in go_back(tmp_path, 1)] == ["step_00000002.pt", "step_00000003.pt"]
    assert [step for step, _ in checkpoints_of(tmp_path)] == [1]


@pytest.mark.parametrize("rate", [100.0, 1e6])
def test_a_learning_rate_that_ruins_a_run_leaves_a_sound_checkpoint_and_says_which(rate, tmp_path, capsys):
    def train(**settings):
        config = vp_swiss_roll.get_config()
        config.data.size = 200
        config.model.update(width=16, layers=1)
        config.training.update(steps=40, batch_size=16, warmup=0, precision="fp32", log_every=10, checkpoint_every=10,
                               eval_every=10, sample_every=0, keep=1)
        config.training.update(settings)
        set_up(config, load_dataset(config.data), tmp_path, CPU, progress=True).train()

    train()
    good = [step for step, _ in checkpoints_of(tmp_path)]
    try:
        train(steps=80, learning_rate=rate)
        told = capsys.readouterr().err
    except ArithmeticError as error:      # it may go as far as a step that is not finite
        told = " ".join(error.__notes__)
    record = json.loads((tmp_path / "kept.json").read_text())
    assert record["last_sound"] in good and record["best"] in good
    assert [step for step, _ in checkpoints_of(tmp_path)][:-1] == sorted({record["best"], record["last_sound"]})
    assert f"from_step {record['last_sound']}" in told
