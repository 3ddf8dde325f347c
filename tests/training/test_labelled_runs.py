"""What training asks of the labels of its data before it writes anything, and the names of the classes in a run."""

import json
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import without_config
from PIL import Image

from scorefield.checkpoints import load_denoiser
from scorefield.checkpoints.formats import run as run_format
from scorefield.checkpoints.formats import scorefield
from scorefield.checkpoints.formats.run import compared_names, read_config
from scorefield.configs import vp_digits, vp_swiss_roll
from scorefield.configs.sections import data, model, training
from scorefield.data import Dataset, Examples, from_arrays
from scorefield.models.networks.mlp import MLP
from scorefield.training import train
from scorefield.training.labels import CheckedLabels

FEW = {"training.steps": 2, "training.batch_size": 8, "training.log_every": 1, "training.checkpoint_every": 2,
       "training.sample_every": 0, "training.precision": "fp32"}
POINTS = FEW | {"model.width": 8, "model.layers": 1}
NAMES = ("cat", "dog", "cow")


def points(names=NAMES, n=40, classes=3):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return from_arrays(x, y_train=torch.arange(n) % classes, class_names=names)


def fit(run, dataset=None, classes=3, config=vp_swiss_roll, **more):
    chosen = POINTS | ({"model.classes": classes} if classes else {}) | more
    return train(config, dataset=dataset, workdir=run, device="cpu", overrides=chosen, progress=False)


def classifier(classes=3):
    config = vp_digits.get_config()
    config.data = data("arrays")
    config.model = model("classifier", classes=classes, width=8, multipliers=(1,), num_blocks=1, attention_resolutions=())
    config.training = training("classifier", **{key.partition(".")[2]: value for key, value in FEW.items()})
    return config


def pictures(classes=3, n=20):
    return from_arrays(torch.zeros(n, 1, 8, 8, dtype=torch.uint8), y_train=torch.arange(n) % classes)


def stored(run):
    return json.loads((run / "config.json").read_text())


def rewrite(run, names=None):
    """Change the names of the classes in a run's config.json, or take them out."""
    content = stored(run) | {"class_names": names}
    if names is None:
        del content["class_names"]
    (run / "config.json").write_text(json.dumps(content))


# Before anything is written


def refused(run, words, *arguments, **more):
    with pytest.raises(ValueError, match=words) as caught:
        fit(run, **more)
    assert set(arguments) <= set(caught.value.arguments) and "\n" not in str(caught.value)
    assert not run.exists()


def test_a_model_with_labels_needs_data_with_labels(tmp_path):
    refused(tmp_path / "a", "labels of 3 classes, and the examples of data set 'swiss_roll' have none; choose data with "
            "labels, or a model without classes", "model.classes", "data.dataset")
    refused(tmp_path / "b", "data set 'arrays' have none", "data.dataset", dataset=torch.randn(30, 2))


def test_held_out_examples_need_labels_too(tmp_path):
    some = from_arrays(torch.randn(20, 2), torch.randn(9, 2), y_train=torch.arange(20) % 3)
    refused(tmp_path / "a", "of data set 'arrays' only the training examples have labels", "data.dataset", dataset=some)
    fit(tmp_path / "b", some, classes=None)


def test_a_model_may_have_more_classes_than_the_data_and_not_fewer(tmp_path):
    refused(tmp_path / "a", "data set 'arrays' has 3 classes, but model.classes is 2; set model.classes to 3",
            "model.classes", dataset=points(), classes=2)
    fit(tmp_path / "b", points(), classes=3)
    fit(tmp_path / "c", points(), classes=5)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_classifier_needs_as_many_classes_as_the_data_have(tmp_path, classes):
    with pytest.raises(ValueError, match=f"has 3 classes, but model.classes is {classes}; set model.classes to 3") as caught:
        train(classifier(classes), pictures(), tmp_path / "run", "cpu", progress=False)
    assert caught.value.arguments == ("model.classes",) and not (tmp_path / "run").exists()


def test_a_classifier_needs_labels(tmp_path):
    with pytest.raises(ValueError, match="a classifier needs labels, and the examples of data set 'arrays' have none"):
        train(classifier(), torch.zeros(20, 1, 8, 8, dtype=torch.uint8), tmp_path / "run", "cpu", progress=False)
    assert not (tmp_path / "run").exists()


def fill(folder, n=6):
    folder.mkdir(parents=True)
    for i in range(n):
        Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(folder / f"{i}.png")


def test_a_folder_whose_classes_differ_trains_without_labels_and_says_why_it_cannot_with_them(tmp_path):
    for place in ("train/cat", "train/dog", "test/cat"):
        fill(tmp_path / "p" / place)
    config = classifier(2)
    config.data = data("folder", path=str(tmp_path / "p"), image_size=8, channels=1)
    with pytest.raises(ValueError, match="data set 'folder' have none: the class folders of .* only train has dog; choose"):
        train(config, workdir=tmp_path / "a", device="cpu", progress=False)
    assert not (tmp_path / "a").exists()
    plain = vp_digits.get_config()
    plain.data = config.data
    small = FEW | {"model.width": 8, "model.multipliers": (1,), "model.num_blocks": 1, "model.attention_resolutions": ()}
    run = train(plain, workdir=tmp_path / "b", device="cpu", overrides=small, progress=False)
    assert stored(run)["class_names"] == []


class Own:
    """A split as a user writes it: it holds no labels in memory."""

    def __init__(self, label, condition=True):
        self.label, self.told = label, condition

    def __len__(self):
        return len(self.label)

    def __getitem__(self, index):
        return torch.zeros(len(index), 2), {"label": self.label[index]} if self.told else {}


def test_labels_of_a_users_own_split_are_counted_by_their_names_and_checked_when_they_are_read(tmp_path):
    good, none = Own(torch.arange(40) % 3), Own(torch.arange(40) % 3, condition=False)
    fit(tmp_path / "a", Dataset("own", good, good, (2,), None, class_names=NAMES))
    refused(tmp_path / "b", "does not say how many classes; give its class_names", dataset=Dataset("own", good, good, (2,),
                                                                                              None))
    refused(tmp_path / "c", "'own' have none", dataset=Dataset("own", none, none, (2,), None))
    wrong = Own(torch.tensor([0, 1, 2, 3]))      # 3 would mean "no label"
    with pytest.raises(ValueError, match="own: example 3 has label 3; labels are 0 .. 2"):
        fit(tmp_path / "d", Dataset("own", wrong, good, (2,), None, class_names=NAMES))
    checked = CheckedLabels(wrong, 3, "own")
    assert len(checked) == 4 and checked[torch.tensor([2, 0])][1]["label"].tolist() == [2, 0]


def test_a_condition_of_another_name_is_asked_for_too(tmp_path, monkeypatch):
    monkeypatch.setattr(MLP, "__init__", _with_angle(MLP.__init__))
    refused(tmp_path / "a", "the model takes the condition 'angle'", "data.dataset", dataset=torch.randn(30, 2),
            classes=None)


def _with_angle(init):
    @wraps(init)
    def changed(self, *arguments, **settings):
        init(self, *arguments, **settings)
        self.conditions = ("angle",)
    return changed


# The names of the classes in a run


def test_a_run_has_the_names_of_its_classes_and_none_where_the_data_have_no_labels(tmp_path):
    assert stored(fit(tmp_path / "a", points()))["class_names"] == list(NAMES)
    assert stored(fit(tmp_path / "b", points(()), classes=3))["class_names"] == ["0", "1", "2"]
    assert stored(fit(tmp_path / "c", classes=None))["class_names"] == []


def test_a_run_with_labels_goes_on_with_the_same_names_alone(tmp_path):
    run = fit(tmp_path / "run", points())
    more = {"training.steps": 4}
    with pytest.raises(ValueError, match=r"another experiment: class_names\[1\] is 'dog' there and 'eel' here; change"):
        fit(run, points(("cat", "eel", "cow")), **more)
    with pytest.raises(ValueError, match="the number of class_names is 3 there and 4 here"):
        fit(run, points((*NAMES, "eel")), classes=3, **more)
    assert stored(fit(run, points(), **more))["training"]["steps"] == 4


def test_a_run_of_an_older_version_knows_no_names_and_goes_on(tmp_path):
    run = fit(tmp_path / "run", points())
    rewrite(run)
    without_config(run)
    assert "class_names" not in stored(run)
    fit(run, points(("a", "b", "c")), **{"training.steps": 4})
    assert stored(run)["class_names"] == ["a", "b", "c"]


def test_a_run_without_labels_goes_on_whatever_the_classes_are_called(tmp_path):
    run = fit(tmp_path / "run", points(), classes=None)
    fit(run, points(("a", "b", "c")), classes=None, **{"training.steps": 4})
    assert stored(run)["class_names"] == ["a", "b", "c"]


def test_names_are_compared_only_where_the_run_knows_them_and_its_model_has_classes():
    here = ["a", "b"]
    assert compared_names({"model": {"classes": 2}, "class_names": ["x", "y"]}, here) == ["x", "y"]
    for run in ({"model": {"classes": 2}}, {"model": {"classes": 2}, "class_names": []},
                {"model": {"classes": None}, "class_names": ["x", "y"]}, {"model": {}, "class_names": ["x", "y"]}):
        assert compared_names(run, here) == here


def test_names_go_with_a_run_to_safetensors_and_back(tmp_path):
    run = fit(tmp_path / "run", points())
    scorefield.write(run_format.read(run), tmp_path / "x.safetensors")
    there = scorefield.read(tmp_path / "x.safetensors")
    assert there.config["class_names"] == list(NAMES)
    run_format.write(there, tmp_path / "back")
    assert read_config(tmp_path / "back")["class_names"] == list(NAMES)
    assert load_denoiser(tmp_path / "back").takes.classes == 3


@pytest.mark.parametrize("names", ["cat", 3, {"0": "cat"}, [1, 2], [None]])
def test_names_that_are_no_list_of_words_are_damage(tmp_path, names):
    run = fit(tmp_path / "run", points())
    rewrite(run, names)
    with pytest.raises(ValueError, match="config.json is damaged.* no usable class_names"):
        load_denoiser(run)


# The command line


@pytest.mark.machine
def test_the_command_line_keeps_compares_and_asks_for_labels(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        fill(tmp_path / "pictures" / name)
    words = ["--mode", "train", "--config", "configs/digits_classifier.py", "--config.data.dataset=folder",
             "--config.data.path=pictures", "--config.data.image_size=8", "--config.data.channels=1",
             "--config.model.width=8", "--config.model.multipliers=(1,)", "--config.training.batch_size=4",
             "--workdir", "run"]
    code, _, err = command(*words, "--config.training.steps=1")
    assert code == 1 and err.count("\n") == 1 and not Path("run").exists()
    assert "has 2 classes, but model.classes is 10; set model.classes to 2 (--config.model.classes)" in err
    words.append("--config.model.classes=2")
    assert command(*words, "--config.training.steps=1")[0] == 0
    assert json.loads(Path("run/config.json").read_text())["class_names"] == ["cat", "dog"]
    (tmp_path / "pictures/dog").rename(tmp_path / "pictures/eel")
    code, _, err = command(*words, "--config.training.steps=2")
    assert code == 1 and "another experiment: class_names[1] is 'dog' there and 'eel' here" in err, err
    (tmp_path / "pictures/eel").rename(tmp_path / "pictures/dog")
    assert command(*words, "--config.training.steps=2")[0] == 0


@pytest.mark.machine
def test_an_imported_model_with_labels_takes_other_classes_and_asks_for_labels_before_it_is_written(command, tmp_path,
                                                                                                 monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = vp_digits.get_config()
    run = train(classifier(10), pictures(10), tmp_path / "run", "cpu", progress=False)
    assert config.data.dataset == "digits"
    assert command("--mode", "convert", "--workdir", run, "--output", "x.safetensors")[0] == 0
    more = ["--config.training.steps=3", "--config.training.batch_size=4"]
    start = ["--mode", "train", "--checkpoint", "x.safetensors", *more]
    for name in ("a", "b"):
        fill(tmp_path / "pictures" / name)
    code, _, err = command(*start, "--config.data.dataset=folder", "--config.data.path=pictures", "--workdir", "two")
    assert code == 1 and "has 2 classes, but model.classes is 10" in err and not Path("two").exists(), err
    for i in range(8):
        fill(tmp_path / "pictures" / f"c{i}")
    code, _, err = command(*start, "--config.data.dataset=folder", "--config.data.path=pictures", "--workdir", "ten")
    assert code == 0, err
    assert json.loads(Path("ten/config.json").read_text())["class_names"] == ["a", "b", *(f"c{i}" for i in range(8))]


def test_examples_of_any_integers_have_labels_of_64_bits():
    for dtype in (torch.uint8, torch.int16, torch.int32):
        examples = Examples(torch.zeros(2, 2), {"label": torch.tensor([1, 0], dtype=dtype)})
        assert examples.condition["label"].dtype == torch.int64
