"""Checkpoints on the command line: --mode convert between the formats, and --checkpoint instead of a run of one's own."""

import importlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, write_cifar10
from PIL import Image

from scorefield.checkpoints import load_denoiser, read_checkpoint
from scorefield.checkpoints.formats.score_sde_layout import sources
from scorefield.models.networks.ncsnpp import NCSNpp

ITS_NETWORK = ("model.width = 8", "model.multipliers = (1, 2)", "model.num_blocks = 1")
NETWORK = {"width": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (16,)}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def published(tmp_path):
    """A small DDPM++ for 32 x 32 pictures as score_sde_pytorch writes it, at step 2."""
    torch.manual_seed(0)
    network = NCSNpp(**NETWORK)
    keys = {key: source.shape(network.get_parameter(name).shape)
            for name, source in sources(network, False).items() for key in source.keys}
    tensors = {key: 0.1 * torch.randn(shape) for key, shape in keys.items()}
    adam = torch.optim.Adam([torch.nn.Parameter(tensor) for tensor in tensors.values()])
    torch.save({"optimizer": adam.state_dict(), "model": {f"module.{key}": tensor for key, tensor in tensors.items()},
                "ema": {"decay": 0.99, "num_updates": 2, "shadow_params": [0.9 * tensor for tensor in tensors.values()]},
                "step": 2}, tmp_path / "published.pth")
    return tmp_path / "published.pth"


def config_file(name, parent, *lines):
    """A config file in the current folder that changes `parent` by these lines."""
    body = "".join(f"    config.{line}\n" for line in lines)
    Path(f"{name}.py").write_text(f"from scorefield.configs import {parent} as parent\n"
                                  "from scorefield.configs.sections import data\n\n\n"
                                  f"def get_config():\n    config = parent.get_config()\n{body}    return config\n")
    return f"{name}.py"


def samples(run):
    with np.load(f"{run}/samples/auto_steps3.npz") as arrays:
        return arrays["x"]


SAMPLE = ["--mode", "sample", "--num_samples", 4, "--steps", 3]


# One line from a published file


def test_a_published_file_samples_and_scores_in_one_line_each(command, published, tmp_path):
    code, out, err = command(*SAMPLE, "--checkpoint", published)
    assert code == 0, err
    assert "wrote runs/published from" in out and "VPSDE" in out and "step 2, raw and averaged weights, optimiser" in out
    assert samples("runs/published").shape == (4, 3, 32, 32)
    np.savez("mine.npz", x=np.zeros((2, 3, 32, 32), np.uint8))
    code, out, err = command("--mode", "likelihood", "--checkpoint", published, "--images", "mine.npz", "--method",
                             "exponential", "--steps", 8)
    assert code == 0, err
    assert "2 examples of mine.npz" in out


@pytest.mark.machine
def test_training_goes_on_from_a_published_file(command, published, tmp_path):
    write_cifar10(tmp_path / "data", num_train=20, num_test=4)
    words = ["--mode", "train", "--checkpoint", published, f"--config.data.path={tmp_path / 'data'}",
             *[word for word in SMALL if ".model." not in word]]
    code, out, err = command(*words)
    assert code == 0, err
    assert "continues from runs/published/checkpoints/step_00000002.pt" in out
    config = json.loads(Path("runs/published/config.json").read_text())
    assert config["training"]["ema_decay"] == 0.99 and config["origin"]["step"] == 2
    after = read_checkpoint("runs/published")
    assert (after.step, after.ema_updates) == (4, 4) and float(after.optimizer["state"][0]["step"]) == 2
    code, out, err = command(*words[:-1], "--config.training.checkpoint_every=2")      # the same again: it is done
    assert code == 0 and "is at step 4 already" in out
    code, out, err = command(*SAMPLE, "--checkpoint", published)      # would not be what the file holds
    assert code == 1 and "runs/published was trained further since" in err and "give --workdir" in err
    assert command(*SAMPLE, "--workdir", "runs/published")[0] == 0


@pytest.mark.machine
def test_pictures_of_ones_own_are_trained_on_in_the_files_size(command, published, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.fromarray(np.full((40, 40, 3), 20 * i, np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    code, out, err = command("--mode", "train", "--checkpoint", published, "--config.data.dataset=folder",
                             f"--config.data.path={tmp_path / 'pictures'}", *[w for w in SMALL if ".model." not in w])
    assert code == 0, err
    assert "size of its pictures is guessed" in out and "10 examples of shape (3, 32, 32)" in out


def test_what_the_file_does_not_tell_comes_from_flags_or_a_config(command, published, tmp_path):
    code, out, err = command(*SAMPLE, "--checkpoint", published, "--config.sde.name=subvp", "--workdir", "sub")
    assert code == 0, err
    assert "SubVPSDE" in out and json.loads(Path("sub/config.json").read_text())["sde"]["name"] == "subvp"
    mine = config_file("mine", "subvp_cifar10_ddpmpp", *ITS_NETWORK, "model.dropout = 0.25")
    code, out, err = command(*SAMPLE, "--checkpoint", published, "--config", mine, "--workdir", "mine")
    assert code == 0, err
    config = json.loads(Path("mine/config.json").read_text())
    assert config["sde"]["name"] == "subvp" and config["model"]["dropout"] == 0.25 and config["model"]["width"] == 8


def test_the_command_line_goes_before_the_file(command, published):
    code, _, err = command(*SAMPLE, "--checkpoint", published, "--config.training.ema_decay=0.5")
    assert code == 0, err
    assert json.loads(Path("runs/published/config.json").read_text())["training"]["ema_decay"] == 0.5


def test_under_torchrun_a_file_is_converted_first(command, published, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = command("--mode", "train", "--checkpoint", published)
    assert code == 1 and "mode convert writes in format run" in err and not Path("runs").exists()


def test_a_config_of_another_network_is_refused(command, published):
    code, _, err = command(*SAMPLE, "--checkpoint", published, "--config", "configs/vp_cifar10.py")
    assert code == 1 and "trained with model.network='ncsnpp', not 'unet'" in err and not Path("runs").exists()
    code, _, err = command(*SAMPLE, "--checkpoint", published, "--config.model.width=16")
    assert code == 1 and "of another shape" in err and "width is 8 there, not 16" in err and not Path("runs").exists()


# A config beside a checkpoint, and a run that was made of one


def stored(run):
    return json.loads((Path(run) / "config.json").read_text())


NEW = [word for word in SMALL if ".model." not in word]


@pytest.mark.costly
@pytest.mark.machine
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_training_follows_the_config_beside_the_checkpoint(command, published, tmp_path, there):
    write_cifar10(tmp_path / "data", num_train=20, num_test=4)
    mine = config_file("mine", "vp_cifar10_ddpmpp", *ITS_NETWORK, "training.ema_decay = 0.5", "training.adam_eps = 1e-6",
                       "training.grad_clip = 0.25", "data.flip = False")
    assert not there or command(*SAMPLE, "--checkpoint", published)[0] == 0
    code, _, err = command("--mode", "train", "--checkpoint", published, "--config", mine, *NEW,
                           f"--config.data.path={tmp_path / 'data'}")
    assert code == 0, err
    config = stored("runs/published")
    assert [config["training"][field] for field in ("ema_decay", "adam_eps", "grad_clip")] == [0.5, 1e-6, 0.25]
    assert config["data"]["flip"] is False and read_checkpoint("runs/published").step == 4
    code, out, err = command("--mode", "train", "--workdir", "runs/published", "--config", mine, *NEW,
                             "--config.training.steps=6", f"--config.data.path={tmp_path / 'data'}")
    assert code == 0, err
    assert "continues from runs/published/checkpoints/step_00000004.pt" in out


def test_without_a_config_training_follows_the_file(command, published, tmp_path):
    state = torch.load(published)
    state["optimizer"]["param_groups"][0] |= {"lr": 3e-5, "betas": (0.8, 0.99), "eps": 1e-6}
    torch.save(state | {"step": 6000}, "later.pth")
    for source, rate in ((published, 2e-4), ("later.pth", 3e-5)):      # in their warm-up it is not the one to go on with
        assert command(*SAMPLE, "--checkpoint", source)[0] == 0
        assert stored(f"runs/{Path(source).stem}")["training"]["learning_rate"] == rate
    training = stored("runs/later")["training"]
    assert [training[field] for field in ("beta1", "beta2", "adam_eps", "ema_decay")] == [0.8, 0.99, 1e-6, 0.99]


@pytest.mark.slow
def test_what_the_checkpoint_tells_cannot_be_said_otherwise(command, published, digits_run):
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "digits.safetensors")[0] == 0
    for _ in range(2):      # before there is a run, and after
        for wrong, part in ((["--config", "configs/vp_cifar10.py"], "model.multipliers=(1, 2), not (1, 2, 2, 2)"),
                            (["--config.sde.beta_max=10"], "beta_max"), (["--config.data.low=0"], "low")):
            for source, more in (("digits.safetensors", wrong), (digits_run, [*wrong, "--workdir", "copy"])):
                code, _, err = command(*SAMPLE, "--checkpoint", source, *more)
                assert code == 1 and part in err and err.count("\n") == 1, err
        same = ["--config", config_file("same", "vp_digits", "model.width = 8", "sde.beta_max = 20.0")]
        for source, more in (("digits.safetensors", same), (digits_run, [*same, "--workdir", "copy"])):
            code, _, err = command(*SAMPLE, "--checkpoint", source, *more)
            assert code == 0, err


def test_an_imported_run_takes_the_published_config_by_workdir(command, published, tmp_path):
    assert command(*SAMPLE, "--checkpoint", published)[0] == 0
    mine = config_file("mine", "vp_cifar10_ddpmpp", *ITS_NETWORK)
    code, _, err = command(*SAMPLE, "--workdir", "runs/published", "--config", mine)
    assert code == 0, err
    code, _, err = command(*SAMPLE, "--workdir", "runs/published", "--config", "configs/vp_cifar10_ddpmpp.py")
    assert code == 1 and "runs/published was trained with model.multipliers=(1, 2), not (1, 2, 2, 2)" in err


@pytest.mark.costly
@pytest.mark.parametrize("word", ["--config.data.dataset=digitz", "--config.model.dropout=7", "--config.training.steps=0",
                                  "--config.model.widht=8", "--grid=fine", "--steps=0"])
def test_a_mistake_leaves_nothing_behind_an_import(command, published, tmp_path, word):
    code, _, err = command("--mode", "sample", "--checkpoint", published, word)
    assert code == 1 and err.count("\n") == 1, err
    assert not Path("runs").exists()
    assert command(*SAMPLE, "--checkpoint", published)[0] == 0


def test_data_that_were_guessed_may_be_said_later(command, digits_run, tmp_path):
    write_cifar10(tmp_path / "data", num_train=20, num_test=4)
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "d.safetensors")[0] == 0
    assert command(*SAMPLE, "--checkpoint", "d.safetensors", "--config.data.dataset=folder")[0] == 0
    code, out, err = command("--mode", "likelihood", "--checkpoint", "d.safetensors", "--config.data.dataset=digits",
                             "--config.data.dequantize=true", "--method", "exponential", "--steps", 8, "--num_images", 4)
    assert code == 0, err
    code, out, err = command("--mode", "train", "--checkpoint", "d.safetensors", "--config.data.dataset=digits", *NEW,
                             "--config.training.steps=5")
    assert code == 0, err
    code, _, err = command("--mode", "likelihood", "--workdir", "runs/d", "--config.data.dataset=folder")
    assert code == 1 and "data.dataset is 'digits' there and 'folder' here" in err


@pytest.mark.costly
@pytest.mark.parametrize("words", [["--mode", "sample", "--num_samples", 4, "--steps", 3], ["--mode", "report"],
                                   ["--mode", "convert", "--output", "x.safetensors"]], ids=lambda words: words[1])
def test_a_config_of_a_folder_may_leave_out_its_sizes_each_time(command, published, words):
    mine = config_file("mine", "vp_cifar10_ddpmpp", *ITS_NETWORK, "data = data('folder', path='pictures', image_size=32)")
    for _ in range(2):
        assert command(*SAMPLE, "--checkpoint", published, "--config", mine)[0] == 0
    code, _, err = command(*words, "--workdir", "runs/published", "--config", mine)
    assert code == 0, err


def test_converting_a_run_beside_a_config_that_says_otherwise_is_refused(command, published):
    assert command(*SAMPLE, "--checkpoint", published)[0] == 0
    mine = config_file("mine", "vp_cifar10_ddpmpp", *ITS_NETWORK, "model.dropout = 0.3")
    code, _, err = command("--mode", "convert", "--workdir", "runs/published", "--config", mine, "--output", "x.pth")
    assert code == 1 and "model.dropout is 0.1 there and 0.3 here" in err and not Path("x.pth").exists()


def test_converting_a_checkpoint_looks_at_no_run(command, published):
    Path("runs").mkdir()
    Path("runs/published").write_text("x")
    assert command("--mode", "convert", "--checkpoint", published, "--output", "x.safetensors")[0] == 0


@pytest.mark.machine
@pytest.mark.slow
def test_levels_come_from_the_data_set_that_is_said(command, tmp_path):
    small = ["--config.model.network=ncsnpp", "--config.model.time_input=999t",
             *[word for word in SMALL if "attention" not in word]]
    assert command("--mode", "train", "--config", "configs/vp_digits.py", "--workdir", "run", *small,
                   "--config.model.attention_resolutions=(8,)")[0] == 0
    code, out, err = command("--mode", "convert", "--workdir", "run", "--output", "x.pth")
    assert code == 0 and "to read it back give " in out, err
    flags = out.strip().partition("to read it back give ")[2].split()
    assert "--config.data.dataset=digits" in flags and "--config.data.image_size=8" in flags
    scored = ["--mode", "likelihood", "--method", "exponential", "--steps", 8, "--num_images", 4]
    for place in (["--workdir", "run"], ["--checkpoint", "x.pth", *flags]):
        code, _, err = command(*scored, *place, "--config.data.dequantize=true")
        assert code == 0, err
    name = "likelihood/summary_method_exponential_steps8_num_images4.json"
    scores = [json.loads((Path(run) / name).read_text()) for run in ("run", "runs/x")]
    assert scores[0]["bits_per_dim"] == scores[1]["bits_per_dim"] and scores[1]["levels"] == 17


def test_a_picture_that_no_memory_holds_is_one_line(command, published, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(importlib.import_module("scorefield.evaluation.generate"), "draw_batch", fail)
    code, _, err = command(*SAMPLE, "--checkpoint", published)
    assert code == 1 and err.count("\n") == 1 and "can't allocate memory" in err


@pytest.mark.costly
@pytest.mark.machine
@pytest.mark.parametrize("given", [[], ["--config"]], ids=["flags", "config"])
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_pictures_of_ones_own_are_scored_and_trained_on_first_and_later(command, published, tmp_path, there, given):
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.fromarray(np.full((40, 40, 3), 20 * i, np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    own = ["--config.data.dataset=folder", f"--config.data.path={tmp_path / 'pictures'}", "--checkpoint", published]
    own += [*given, config_file("mine", "vp_cifar10_ddpmpp", *ITS_NETWORK, "model.dropout = 0.3")] if given else []
    assert not there or command(*SAMPLE, "--checkpoint", published)[0] == 0
    code, out, err = command("--mode", "likelihood", *own, "--method", "exponential", "--steps", 8, "--num_images", 2)
    assert code == 0, err
    code, out, err = command("--mode", "train", *own, *NEW)
    assert code == 0, err
    assert "10 examples of shape (3, 32, 32)" in out
    assert stored("runs/published")["model"]["dropout"] == (0.3 if given else 0.1)
    assert command("--mode", "likelihood", "--workdir", "runs/published", "--config.data.image_size=32", "--method",
                   "exponential", "--steps", 8, "--num_images", 2)[0] == 0


def test_a_file_that_was_touched_moved_or_copied_is_the_same(command, published, tmp_path):
    assert command(*SAMPLE, "--checkpoint", published)[0] == 0
    os.utime(published)
    assert command(*SAMPLE, "--checkpoint", published)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    moved = published.rename(tmp_path / "elsewhere" / "published.pth")
    code, out, err = command(*SAMPLE, "--checkpoint", moved)
    assert code == 0 and "wrote runs/published from" not in out, err
    code, _, err = command(*SAMPLE, "--checkpoint", "published")      # no such file, and a run of that name
    assert code == 1 and "published does not exist;" in err


def test_a_folder_with_other_weights_of_an_older_date_has_changed(command, digits_run):
    for name, more in (("a", []), ("b", ["--noema"])):
        output = f"{name}.safetensors"
        assert command("--mode", "convert", "--workdir", digits_run, "--output", output, *more)[0] == 0
    Path("folder").mkdir()
    Path("a.safetensors").rename("folder/model.safetensors")
    assert command(*SAMPLE, "--checkpoint", "folder")[0] == 0
    Path("b.safetensors").rename("folder/model.safetensors")
    os.utime("folder/model.safetensors", (0, 0))
    code, _, err = command(*SAMPLE, "--checkpoint", "folder")
    assert code == 1 and "runs/folder was not made from folder as it is now" in err


def test_a_home_in_the_workdir_is_expanded(command, digits_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "~/d.safetensors")[0] == 0
    for _ in range(2):
        code, _, err = command(*SAMPLE, "--checkpoint", "~/d.safetensors", "--workdir=~/run")
        assert code == 0, err
    assert command(*SAMPLE, "--workdir=~/run")[0] == 0
    assert (tmp_path / "home/run/samples/auto_steps3.npz").is_file() and not Path("~").exists()


def test_what_cannot_be_written_is_told_by_its_own_name(command, digits_run):
    Path("file").write_text("x")
    code, _, err = command("--mode", "convert", "--workdir", digits_run, "--output", "file/x.safetensors")
    assert code == 1 and "file" in err and ".tmp" not in err, err


@pytest.mark.parametrize("change", [
    {"shape": 5}, {"shape": []}, {"levels": "x"}, {"levels": 0}, {"config": None}, {"sde": 5}, {"data": "x"}, {"model": []},
    {"training": "x"}, {"num_scales": "x"}, {"origin": 5}], ids=str)
@pytest.mark.parametrize("mode", ["sample", "likelihood", "convert", "train"])
def test_a_config_json_that_was_spoilt_is_one_line(command, digits_run, mode, change, tmp_path):
    shutil.copytree(digits_run, "run")
    content = {k: v for k, v in (stored("run") | change).items() if v is not None}
    Path("run/config.json").write_text(json.dumps(content))
    more = {"convert": ["--output", "x.safetensors"], "sample": SAMPLE[2:], "train": ["--config.training.steps=4"],
            "likelihood": ["--method", "exponential", "--steps", 8, "--num_images", 2]}
    code, _, err = command("--mode", mode, "--workdir", "run", *more[mode])
    assert code == 1 and err.count("\n") == 1 and "run/config.json" in err, err


def test_without_its_data_the_error_says_what_else_to_score(command, published):
    code, _, err = command("--mode", "likelihood", "--checkpoint", published, "--config.data.path=nowhere")
    assert code == 1 and "or score your own pictures (--images" in err


SPELLINGS = ["./a.safetensors", "folder/../a.safetensors", "{cwd}/a.safetensors", "link.safetensors"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_file_is_the_same_by_any_spelling(command, digits_run, tmp_path, spelling):
    Path("folder").mkdir()
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "a.safetensors")[0] == 0
    Path("link.safetensors").symlink_to("a.safetensors")
    assert command(*SAMPLE, "--checkpoint", "a.safetensors")[0] == 0
    code, out, err = command(*SAMPLE, "--checkpoint", spelling.format(cwd=tmp_path), "--workdir", "runs/a")
    assert code == 0 and "wrote runs/a from" not in out, err


def test_at_cuts_nothing_off_a_path(command, digits_run):
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "a@b.safetensors")[0] == 0
    assert command(*SAMPLE, "--checkpoint", "a@b.safetensors")[0] == 0 and Path("runs/a@b").is_dir()


def test_a_folder_that_changed_since_is_not_taken_for_the_old_one(command, digits_run):
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "mine", "--format", "run")[0] == 0
    assert command(*SAMPLE, "--checkpoint", "mine", "--workdir", "copy")[0] == 0
    assert command(*SAMPLE, "--workdir", "mine")[0] == 0      # what it writes is no change
    assert command(*SAMPLE, "--checkpoint", "mine", "--workdir", "copy")[0] == 0
    assert command("--mode", "train", "--workdir", "mine", "--config.training.steps=5")[0] == 0
    code, _, err = command(*SAMPLE, "--checkpoint", "mine", "--workdir", "copy")
    assert code == 1 and "copy was not made from mine as it is now, but from" in err
    code, _, err = command(*SAMPLE, "--checkpoint", "mine", "--workdir", "mine")
    assert code == 1 and "mine is a run already; give it as --workdir" in err


def test_an_import_that_is_killed_leaves_nothing_that_blocks(command, published, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        assert command(*SAMPLE, "--checkpoint", published)[0] == 130
    assert not list(Path("runs").iterdir())
    assert command(*SAMPLE, "--checkpoint", published)[0] == 0


def test_a_file_for_others_tells_no_paths_of_this_machine(command, published, tmp_path):
    assert command(*SAMPLE, "--checkpoint", published, f"--config.data.path={tmp_path}/secret")[0] == 0
    assert command("--mode", "convert", "--workdir", "runs/published", "--output", "x.safetensors")[0] == 0
    assert str(tmp_path).encode() not in Path("x.safetensors").read_bytes()


def test_an_export_that_is_refused_makes_no_folders(command, digits_run):
    code, _, err = command("--mode", "convert", "--workdir", digits_run, "--output", "a/b/c.pth")
    assert code == 1 and not Path("a").exists()
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "a/b/c.safetensors")[0] == 0


# A run in a file


def test_a_run_in_a_file_samples_scores_and_trains_as_the_run(command, digits_run):
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "digits.safetensors")[0] == 0
    for place in (["--workdir", digits_run], ["--checkpoint", "digits.safetensors"]):
        code, _, err = command(*SAMPLE, *place)
        assert code == 0, err
        code, _, err = command("--mode", "likelihood", *place, "--method", "exponential", "--steps", 8, "--num_images", 8)
        assert code == 0, err
    assert np.array_equal(samples(digits_run), samples("runs/digits"))
    name = "likelihood/summary_method_exponential_steps8_num_images8.json"
    scores = [json.loads((Path(run) / name).read_text()) for run in (digits_run, "runs/digits")]
    assert scores[0]["bits_per_dim"] == scores[1]["bits_per_dim"]
    code, out, err = command("--mode", "train", "--checkpoint", "digits.safetensors", "--config.training.steps=6")
    assert code == 0, err
    assert "continues from runs/digits/checkpoints/step_00000004.pt" in out


def test_a_run_copied_as_a_run_goes_on_to_the_same_bits(command, digits_run, tmp_path):
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "copy", "--format", "run")[0] == 0
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "other", "--format", "run")[0] == 0
    for run in ("copy", "other"):
        code, _, err = command("--mode", "train", "--workdir", run, "--config.training.steps=6")
        assert code == 0, err
    first, second, before = (read_checkpoint(run) for run in ("copy", "other", digits_run))
    assert all(torch.equal(first.raw[name], second.raw[name]) for name in first.raw)
    assert float(first.optimizer["state"][0]["step"]) == float(before.optimizer["state"][0]["step"]) + 2 == 6


def test_raw_weights_are_written_when_asked(command, digits_run):
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "raw.safetensors", "--noema")[0] == 0
    written, run = read_checkpoint("raw.safetensors"), read_checkpoint(digits_run)
    assert all(torch.equal(written.averaged[name], run.raw[name]) for name in run.raw)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "run"])
def test_a_published_file_in_any_format_is_the_same_denoiser(command, published, kind):
    output = "out" if kind == "run" else f"out.{kind}"
    more = ["--format", "run"] if kind == "run" else []
    code, _, err = command("--mode", "convert", "--checkpoint", published, "--output", output, *more)
    assert code == 0, err
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_denoiser(output).score(x, 0.5), load_denoiser(published).score(x, 0.5))


# Mistakes


@pytest.mark.parametrize(("words", "parts"), [
    ([], ["--output"]), (["--output", "folder"], ["has no suffix of a format", "--format"]),
    (["--output", "x.pth"], ["no network 'unet'"]),
    (["--output", "x.bin", "--format", "scorefield"], ["ends in .safetensors"]),
    (["--output", "x.safetensors", "--format", "run"], ["format run writes a folder"]),
    (["--output", "taken.safetensors"], ["exists already", "--output"]),
    (["--output", "x.safetensors", "--steps", "3"], ["takes no steps", "--steps"]),
    (["--output", "x.safetensors", "--checkpoint", "none.pth"], ["none.pth does not exist"]),
    (["--output", "x.safetensors", "--checkpoint", "taken.safetensors", "--workdir", "y"], ["either checkpoint or workdir"]),
], ids=str)
def test_a_mistake_in_converting_is_one_line_and_writes_nothing(command, digits_run, words, parts, tmp_path):
    Path("taken.safetensors").write_text("mine")
    where = [] if "--checkpoint" in words else ["--workdir", digits_run]
    code, out, err = command("--mode", "convert", *where, *words)
    assert code == 1 and err.count("\n") == 1 and all(part in err for part in parts), err
    assert [file.name for file in tmp_path.iterdir() if file != digits_run] == ["taken.safetensors"]


def test_a_checkpoint_that_changed_since_is_not_taken_for_the_old_one(command, digits_run):
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "a.safetensors")[0] == 0
    assert command(*SAMPLE, "--checkpoint", "a.safetensors")[0] == 0
    Path("a.safetensors").unlink()
    assert command("--mode", "convert", "--workdir", digits_run, "--output", "a.safetensors", "--noema")[0] == 0
    code, _, err = command(*SAMPLE, "--checkpoint", "a.safetensors")
    assert code == 1 and "runs/a was not made from a.safetensors as it is now, but from" in err


def test_a_file_with_code_in_it_makes_no_run(command, tmp_path):
    class Payload:
        def __reduce__(self):
            return Path.mkdir, (tmp_path / "ran",)

    torch.save({"model": Payload(), "ema": {}, "step": 0}, "evil.pth")
    code, _, err = command(*SAMPLE, "--checkpoint", "evil.pth")
    assert code == 1 and "refused, and nothing of it was run" in err
    assert not (tmp_path / "ran").exists() and not Path("runs").exists()
