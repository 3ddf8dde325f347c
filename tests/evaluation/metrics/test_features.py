"""Feature networks: the project's classifiers, TorchScript files, Inception's, and what is said where one does not fit."""

import sys
import types
from pathlib import Path

import pytest
import torch

from scorefield.data import from_arrays, load_dataset, make_codec
from scorefield.evaluation.metrics import Features, Reference, default_metrics, features_of, inception_network, make_metrics
from scorefield.evaluation.metrics.networks import DESIGNS, WEIGHTS, accuracy, load_classifier
from scorefield.numerics.errors import ArgumentError, MissingFileError


def colour(n, seed=0, size=8):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def digits():
    return load_dataset({"dataset": "digits"})


@pytest.mark.parametrize("name", DESIGNS)
def test_a_classifier_of_the_project_is_as_accurate_as_its_file_says(name):
    from safetensors import safe_open

    try:
        data = load_dataset({"dataset": name})
    except FileNotFoundError:
        pytest.skip("Fashion-MNIST is not here: apt-get install dataset-fashion-mnist")
    file = WEIGHTS / f"{name}.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    pictures, condition = data.test[torch.arange(len(data.test))]
    found = accuracy(load_classifier(name), pictures, condition["label"])
    assert found == pytest.approx(float(metadata["accuracy"]), abs=2e-4)
    assert found > {"digits": 0.99, "fashion_mnist": 0.89}[name]
    assert f"benchmarks.feature_networks {name}" in metadata["made_by"] and file.stat().st_size < 300_000


def test_the_digits_have_their_network_by_default_and_held_out_digits_are_better_than_noise(digits):
    features = features_of(None, digits)
    assert features.name == "digits" and default_metrics(digits, features) == ("fid", "kid", "precision", "recall",
                                                                                 "neighbours")
    reference = Reference(digits, make_codec(17), features)
    noise = torch.randint(0, 17, (300, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    names = ["fid", "kid", "precision", "recall", "inception_score"]
    metrics = make_metrics(names, reference)
    for metric in metrics.values():
        metric.update(noise)
    figures = {name: metric.result() for name, metric in metrics.items()}
    assert figures["fid"].value > 20 * figures["fid"].floor and figures["kid"].value > 20 * abs(figures["kid"].floor)
    assert figures["precision"].value < 0.1 < 0.7 < figures["precision"].floor
    assert figures["recall"].value < 0.1 < 0.7 < figures["recall"].floor
    assert figures["inception_score"].floor > 8 > figures["inception_score"].value


def test_data_without_a_network_of_the_project_get_none():
    assert features_of(None, from_arrays(torch.randn(20, 2))) is None
    assert features_of(None, from_arrays(colour(20))) is None


@pytest.mark.parametrize("name", ["fid", "kid", "precision", "recall", "inception_score"])
def test_metrics_of_features_of_pictures_need_a_network(name):
    with pytest.raises(ArgumentError, match="give features|needs a feature network"):
        make_metrics([name], Reference(from_arrays(colour(20)), make_codec(256)))


def test_a_network_for_another_shape_is_refused():
    with pytest.raises(ArgumentError, match=r"'digits' takes pictures of shape \(1, 8, 8\).*have \(3, 8, 8\)"):
        features_of("digits", from_arrays(colour(20)))


def test_a_network_for_pictures_is_refused_for_points():
    with pytest.raises(ArgumentError, match="takes pictures of integer levels.*that are reals"):
        features_of("digits", load_dataset({"dataset": "swiss_roll", "size": 100}))


def test_pictures_of_other_levels_are_scaled(digits):
    seen = []
    features = Features(lambda x: seen.append(x) or x.flatten(1).float())
    features.outputs(torch.tensor([[[[0, 4, 8, 16]]]], dtype=torch.uint8), 17)
    assert seen[0].tolist() == [[[[0, 64, 128, 255]]]] and seen[0].dtype == torch.uint8


@pytest.mark.parametrize(("network", "message"), [
    (lambda x: x.float(), r"must give features of shape \(4, D\), got shape \(4, 3, 8, 8\)"),
    (lambda x: (x, x), r"must give features of shape \(4, D\), got a tuple"),
    (lambda x: x.flatten(1)[:2].float(), r"got shape \(2, 192\)"),
    (lambda x: x.flatten(1).float() / 0 - 1, "not finite"),
    (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(7, 3)), r"does not take pictures of shape \(3, 8, 8\)")])
def test_a_network_that_does_not_fit_is_named_in_one_line(network, message):
    with pytest.raises(ArgumentError, match=message) as error:
        Features(network, "mine").outputs(colour(4), 256)
    assert "\n" not in str(error.value) and "'mine'" in str(error.value)


def test_a_network_that_gives_another_number_of_features_later_is_named():
    features = Features(lambda x: torch.ones(len(x), 3 if len(x) == 20 else 4))
    reference = Reference(from_arrays(colour(20), colour(20)), make_codec(256), features)
    reference.vectors("train", "features")
    with pytest.raises(ArgumentError, match="gave 3 features, then 4"):
        make_metrics(["fid"], reference)["fid"].update(colour(60))


class Script(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 6, 3)

    def forward(self, x):
        return self.convolution(x.float() / 255).amax((2, 3))


class Pooled(Script):
    def forward(self, x):
        return self.convolution(x.float() / 255).amax((2, 3), keepdim=True)


class Nvidia(Script):
    """Answers as NVIDIA's file does: its features only if asked, else probabilities."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        y = self.convolution(img.float() / 255).amax((2, 3))
        return y if return_features else y.softmax(1)[:, :2]


@pytest.mark.filterwarnings("ignore")      # TorchScript is deprecated
@pytest.mark.parametrize("module", [Script, Pooled, Nvidia])
def test_a_torchscript_file_is_a_feature_network(tmp_path, module):
    network, x = module(), colour(60)
    torch.jit.save(torch.jit.script(network), tmp_path / "net.pt")
    features = features_of(str(tmp_path / "net.pt"), from_arrays(x))
    expected = Script.forward(network, x)
    torch.testing.assert_close(features.outputs(x, 256)["features"], expected)
    other = module()
    torch.jit.save(torch.jit.script(other), tmp_path / "net.pt")
    assert features_of(str(tmp_path / "net.pt"), from_arrays(x)).digest != features.digest


@pytest.mark.parametrize(("name", "error", "message"), [
    ("nowhere.pt", MissingFileError, "there is no file 'nowhere.pt'"),
    ("digit", ArgumentError, "unknown feature network 'digit'; choose from digits, fashion_mnist, inception, FILE.pt; did"),
    (str(Path(__file__)), ArgumentError, "is not a TorchScript file")])
def test_a_name_that_is_no_network_is_one_line(name, error, message):
    with pytest.raises(error, match=message) as caught:
        features_of(name, from_arrays(colour(20)))
    assert "\n" not in str(caught.value)


def test_weights_belong_to_inception_alone(digits):
    with pytest.raises(ArgumentError, match="not of 'digits'"):
        features_of("digits", digits, "weights.pth")


class FakeExtractor(torch.nn.Module):
    """Of the interface of torch-fidelity 0.3 and 0.4: tuples in the order of the list, uint8 pictures of three channels."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert feature_extractor_weights_path is not None
        self.list = features_list
        self.weight = torch.load(feature_extractor_weights_path, weights_only=True)["weight"]

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.ndim == 4 and x.shape[1] == 3
        y = x.float().mean((2, 3)) @ self.weight / 255
        outputs = {"2048": y.repeat(1, 32), "logits_unbiased": y.repeat(1, 16)[:, :1008]}
        return tuple(outputs[name] for name in self.list)


@pytest.fixture
def fidelity(monkeypatch, tmp_path):
    """torch-fidelity, which needs torchvision, as far as it is used; and a file of weights for it."""
    part = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    part.FeatureExtractorInceptionV3 = FakeExtractor
    part.URL_INCEPTION_V3 = "https://weights.invalid/weights-inception-2015-12-05-6726825d.pth"
    package = types.ModuleType("torch_fidelity")
    package.feature_extractor_inceptionv3 = part
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", part)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    file = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save({"weight": torch.randn(3, 64, generator=torch.Generator().manual_seed(0))}, file)
    return file


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_gives_features_and_logits_of_grey_and_colour_from_a_local_file(fidelity, monkeypatch, channels):
    monkeypatch.setattr(inception_network, "HASH", inception_network.sha256_of(fidelity)[:8])
    x = colour(80)[:, :channels]
    dataset = from_arrays(x, colour(60, 1)[:, :channels])
    features = features_of("inception", dataset, fidelity)
    outputs = features.outputs(x, 256)
    assert outputs["features"].shape == (80, 2048) and outputs["logits"].shape == (80, 1008)
    metric = make_metrics(["inception_score"], Reference(dataset, make_codec(256), features))["inception_score"]
    metric.update(x)
    assert metric.result().value >= 1


def test_other_weights_than_those_of_the_literature_are_refused(fidelity):
    with pytest.raises(ArgumentError, match="does not hold the Inception weights of the literature.*theirs with 6726825d"):
        features_of("inception", from_arrays(colour(20)), fidelity)


def test_without_a_network_the_weights_are_asked_for_as_a_file(fidelity, monkeypatch):
    def fail(*arguments, **settings):
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(MissingFileError, match="could not be downloaded from https://.*give them as a local file"):
        features_of("inception", from_arrays(colour(20)))


def test_weights_are_downloaded_once_and_checked(fidelity, monkeypatch):
    monkeypatch.setattr(inception_network, "HASH", inception_network.sha256_of(fidelity)[:8])
    calls = []

    def download(url, path, hash_prefix, progress):
        calls.append((url, hash_prefix))
        Path(path).write_bytes(fidelity.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        features_of("inception", from_arrays(colour(20)))
    assert calls == [("https://weights.invalid/weights-inception-2015-12-05-6726825d.pth", inception_network.HASH)]


def test_a_missing_file_of_weights_is_named():
    with pytest.raises(MissingFileError, match="there is no file 'nowhere.pth' of Inception's weights"):
        features_of("inception", from_arrays(colour(20)), "nowhere.pth")


def test_without_torch_fidelity_the_extra_is_named(fidelity, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setattr(inception_network, "HASH", inception_network.sha256_of(fidelity)[:8])
    for weights in (None, fidelity):
        with pytest.raises(ArgumentError, match=r"pip install 'scorefield\[metrics\]'"):
            features_of("inception", from_arrays(colour(20)), weights)


@pytest.mark.filterwarnings("ignore")
def test_nvidia_s_file_needs_no_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    network, x = Nvidia(), colour(10)
    torch.jit.save(torch.jit.script(network), tmp_path / "inception-2015-12-05.pt")
    features = features_of("inception", from_arrays(x), tmp_path / "inception-2015-12-05.pt")
    torch.testing.assert_close(features.outputs(x, 256)["features"], Script.forward(network, x))
