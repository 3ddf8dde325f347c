"""Whole runs with the settings of an update: extended without a jump, resumed to the bit, in parts, in fp16."""

import json

import pytest
import torch

from scorefield.checkpoints.formats.run import newest_checkpoint, read_state
from scorefield.training import train

SETTINGS = {"model.width": 8, "model.layers": 1, "training.steps": 20, "training.batch_size": 16, "training.warmup": 4,
            "training.learning_rate": 1e-2, "training.decay": "cosine", "training.eval_every": 0, "training.log_every": 1,
            "training.sample_every": 0, "training.checkpoint_every": 10, "training.precision": "fp32",
            "training.memory_format": "contiguous"}
pytestmark = pytest.mark.one_machine


def trained(folder, **more):
    train("configs/vp_swiss_roll.py", workdir=folder, device="cpu", progress=False,
          overrides=SETTINGS | {f"training.{name}": value for name, value in more.items()})
    return read_state(newest_checkpoint(folder))


def rates(folder):
    return [json.loads(line)["learning_rate"] for line in (folder / "stats.jsonl").read_text().splitlines()]


def same(a, b, parts=("network", "ema", "averages", "optimizer", "schedule", "scaler", "skipped")):
    def flat(value):
        return [leaf for item in value.values() for leaf in flat(item)] if isinstance(value, dict) else [value]

    pairs = [pair for part in parts for pair in zip(flat(a[part]), flat(b[part]), strict=True)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_a_cosine_run_that_is_given_more_steps_on_its_way_goes_on_without_a_jump(tmp_path):
    trained(tmp_path)
    before = rates(tmp_path)
    (tmp_path / "checkpoints" / "step_00000020.pt").unlink()      # as if it had been stopped after step 10
    end = trained(tmp_path, steps=60)
    after = rates(tmp_path)
    assert after[:11] == before[:11] and after[11] < after[10]      # the next update has the rate that it would have had
    assert after[35] == pytest.approx(before[10] / 2) and end["schedule"]["factor"] == 0      # half a cosine to step 60
    assert end["schedule"]["start"] == 10


def test_an_extended_run_that_is_stopped_equals_one_that_is_not(tmp_path):
    ends = []
    for name, stops in (("whole", [60]), ("halves", [60, 60])):
        trained(tmp_path / name)
        for i, steps in enumerate(stops):
            end = trained(tmp_path / name, steps=steps, checkpoint_every=15, keep=9)
            if i + 1 < len(stops):
                for path in sorted((tmp_path / name / "checkpoints").glob("*.pt"))[-2:]:      # killed before step 45
                    path.unlink()
        ends.append(end)
    assert ends[0]["step"] == 60 and same(*ends)


def test_a_run_in_parts_has_the_draws_and_the_weights_of_one_in_whole_batches(tmp_path):
    whole, parts = trained(tmp_path / "whole"), trained(tmp_path / "parts", accumulate=4)
    for name, weight in whole["network"].items():
        torch.testing.assert_close(parts["network"][name], weight, rtol=1e-3, atol=1e-5)


def test_a_run_in_fp16_goes_on_to_the_bit_and_logs_its_scale(tmp_path):
    whole = trained(tmp_path / "whole", precision="fp16", averages="power0.1", optimizer="adamw")
    (tmp_path / "whole" / "checkpoints" / "step_00000020.pt").unlink()
    again = trained(tmp_path / "whole", precision="fp16", averages="power0.1", optimizer="adamw")
    assert same(whole, again) and whole["scaler"]["scale"] > 0
    line = json.loads((tmp_path / "whole" / "stats.jsonl").read_text().splitlines()[-1])
    assert line["loss_scale"] == whole["scaler"]["scale"] and line["skipped_updates"] == whole["skipped"]
    assert all(weight.dtype == torch.float32 for weight in whole["network"].values())


def test_another_optimiser_is_said(tmp_path, capsys):
    trained(tmp_path)
    train("configs/vp_swiss_roll.py", workdir=tmp_path, device="cpu",
          overrides=SETTINGS | {"training.optimizer": "sgd", "training.steps": 22})
    assert "another optimizer than sgd" in capsys.readouterr().out


def test_the_norms_of_layers_are_in_the_log_but_not_on_the_terminal(tmp_path, capsys):
    train("configs/vp_swiss_roll.py", workdir=tmp_path, device="cpu",
          overrides=SETTINGS | {"training.log_groups": True, "training.steps": 2})
    line = json.loads((tmp_path / "stats.jsonl").read_text().splitlines()[-1])
    groups = {name: value for name, value in line.items() if name.startswith("grad_norm/")}
    assert len(groups) > 2
    assert sum(value**2 for value in groups.values()) ** 0.5 == pytest.approx(line["grad_norm"], rel=1e-4)
    assert "grad_norm/" not in capsys.readouterr().out
