"""Folders of pictures on the command line: what is said of them, and the commands of docs/data.md, which run as shown."""

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import SMALL, smooth_pictures, write_cifar10, write_cifar10_archive
from PIL import Image

from scorefield.cli.command import Command
from scorefield.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
QUICK = [*SMALL, "--config.model.width=4", "--config.training.steps=1", "--config.training.batch_size=2",
         "--config.training.sample_every=0", "--config.training.eval_every=0"]
SCORE = ["--mode", "likelihood", "--method", "exponential", "--steps", 8, "--num_images", 2]


def fill(folder, classes=("cat", "dog"), n=8):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i, pixels in enumerate(smooth_pictures(n, 32)):
            Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / name / f"{i}.png")
    (folder / "notes.txt").write_text("text")


@pytest.mark.one_machine
def test_what_was_taken_and_left_out_is_said_once_by_every_command_that_reads_the_data(command, tmp_path):
    fill(tmp_path / "pictures")
    where = ["--workdir", tmp_path / "run"]
    said = f"{tmp_path / 'pictures'}: took 16 files as pictures (PNG 16), left out 1 (.txt 1); every tenth is held out\n"
    code, out, err = command("--config", ROOT / "configs/vp_digits.py", *where, "--mode", "train", *QUICK,
                             "--config.data.dataset=folder", f"--config.data.path={tmp_path / 'pictures'}",
                             "--config.data.image_size=8", "--config.data.background=black", "--config.model.classes=2")
    assert code == 0 and out.count(said) == 1, out + err
    code, out, err = command(*where, *SCORE, "--classify")      # each class is an evaluation of its own
    assert code == 0 and out.count(said) == 1, out + err
    (tmp_path / "more").mkdir()
    for i in range(3):
        Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(tmp_path / f"more/{i}", "PNG")
    code, out, err = command(*where, *SCORE, "--images", tmp_path / "more")
    more = f"images={tmp_path / 'more'}: took 3 files as pictures (PNG 3), left out 0\n"
    assert code == 0 and out.count(more) == 1, out + err
    assert said not in out
    (tmp_path / "pts.csv").write_text("x,y\n1,2\n")
    code, _, err = command(*where, *SCORE, "--images", tmp_path / "pts.csv")
    assert code == 1 and err.count("\n") == 1 and "pickle" not in err
    assert "--images" in err and "is a text; give an .npy, an .npz or a folder of pictures" in err


def test_only_the_first_process_says_it(monkeypatch, capsys):
    dataset, spoken = SimpleNamespace(notes=("a line", "another")), []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        command = object.__new__(Command)
        command._said = set()
        assert command.told(dataset) is dataset and command.told(dataset) is dataset
        spoken.append(capsys.readouterr().out)
    assert spoken == ["a line\nanother\n", ""]


class HubImage:
    def __init__(self, decode=True):
        pass


class HubClasses:
    def __init__(self, names):
        self.names = names


class HubRows(list):
    features = {"image": HubImage(), "label": HubClasses([str(i) for i in range(10)])}

    def cast_column(self, name, kind):
        return self


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder to work in, with all that the commands of docs/data.md find there or in the cache or on the hub."""
    fill(tmp_path / "pictures")
    write_cifar10_archive(tmp_path / "downloads", write_cifar10(tmp_path / "cache/cifar10", 40, 10))
    pixels = smooth_pictures(20, 64)

    def load_dataset(name, subset, *, split, streaming, revision):
        size = {"ylecun/mnist": 28, "flwrlabs/celeba": 64, "benjamin-paine/imagenet-1k-64x64": 64}.get(name, 32)
        rows = [Image.fromarray(x[:, :size, :size].transpose(1, 2, 0)) for x in pixels]
        return HubRows({"image": x.convert("L") if size == 28 else x, "label": i % 10} for i, x in enumerate(rows))

    package = SimpleNamespace(Image=HubImage, ClassLabel=HubClasses, load_dataset=load_dataset,
                              get_dataset_split_names=lambda name, subset, revision: ["train", "validation", "test"])
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def documented():
    text = (ROOT / "docs/data.md").read_text().partition("## Your own arrays")[0].replace("\\\n", " ")
    lines = re.findall(r"^    python main\.py (.*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines if re.search(r"folder|hf:|--images|cifar10|patches32", line)]


@pytest.mark.slow
@pytest.mark.one_machine
def test_every_command_on_pictures_in_the_documentation_runs_as_shown(command, world, monkeypatch):
    """With a small network. All but the run that is scored afterwards are set up and stop before their first step."""
    lines, train = documented(), Trainer.train
    assert len(lines) >= 10
    for words in lines:
        small = ["--num_images", 2, "--steps", 8] if "train" not in words else [
            *QUICK, "--config.model.multipliers=(1,)", *(["--config.model.fir=false"] if "ncsnpp" in words[1] else [])]
        monkeypatch.setattr(Trainer, "train", train if "runs/mine" in words else lambda self: None)
        code, out, err = command(*words, *small)
        assert code == 0, (words, out, err)
    assert (world / "runs/mine/likelihood").is_dir()
    assert {folder.name for folder in (world / "runs").iterdir()} >= {"mine", "black", "classes", "mnist", "svhn", "celeba",
                                                                     "imagenet64", "vp_patches32", "vp_cifar10"}
