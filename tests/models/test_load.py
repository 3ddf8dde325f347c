"""load_denoiser finds the format of a path, and asks the Hugging Face hub for what is no path."""

import sys
import types

import pytest
import torch
from helpers import small_checkpoint

from models import Checkpoint, load_denoiser
from models.formats import diffusers, scorefield
from models.formats import run as run_format
from models.load import find


class FakeHub:
    """huggingface_hub as far as it is used: one repository, which may be out of reach."""

    def __init__(self, monkeypatch, folder, files, online=True, cached=False):
        self.asked = []
        hub = types.ModuleType("huggingface_hub")
        hub.errors = types.ModuleType("huggingface_hub.errors")

        class HfHubHTTPError(Exception):
            pass

        class HFValidationError(ValueError):
            pass

        hub.errors.HfHubHTTPError, hub.errors.HFValidationError = HfHubHTTPError, HFValidationError

        def model_info(name, revision=None, timeout=None):
            if not online:
                raise ConnectionError("no network")
            if name != "owner/name":
                raise HfHubHTTPError("404 Client Error. Repository Not Found")
            return types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=file) for file in files])

        def snapshot_download(name, revision=None, allow_patterns=()):
            self.asked.append((name, revision, allow_patterns))
            if not online and not cached:
                raise FileNotFoundError("not in the cache")
            return str(folder)

        hub.model_info, hub.snapshot_download = model_info, snapshot_download
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        monkeypatch.setitem(sys.modules, "huggingface_hub.errors", hub.errors)


@pytest.fixture
def checkpoint():
    return small_checkpoint()


@pytest.fixture
def places(checkpoint, tmp_path):
    """The same weights in a file, in a run's folder, and as that run's checkpoint."""
    scorefield.write(checkpoint, tmp_path / "model.safetensors")
    run_format.write(checkpoint, tmp_path / "run")
    return {"file": tmp_path / "model.safetensors", "run": tmp_path / "run",
            "step": tmp_path / "run" / "checkpoints" / "step_00000005.pt"}


@pytest.mark.parametrize("place", ["file", "run", "step"])
def test_every_place_gives_the_same_denoiser(places, checkpoint, place):
    x = torch.randn(4, 2)
    assert torch.equal(load_denoiser(str(places[place])).score(x, 0.5), checkpoint.denoiser().score(x, 0.5))


def test_a_folder_of_one_file_is_that_file(places):
    (places["file"].parent / "repository").mkdir()
    moved = places["file"].rename(places["file"].parent / "repository" / "model.safetensors")
    assert find(moved.parent) == (scorefield, moved)


def test_a_config_that_says_its_class_is_no_runs(tmp_path, places):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert find(tmp_path / "unet") == (diffusers, tmp_path / "unet")
    assert find(places["run"]) == (run_format, places["run"])


@pytest.mark.parametrize("name", ["config.txt", "weights.ckpt"])
def test_what_is_no_checkpoint_says_what_is(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"is no checkpoint: neither a run's folder .* nor a \.pth"):
        find(tmp_path / name)
    with pytest.raises(ValueError, match="is no checkpoint"):
        find(tmp_path)


@pytest.mark.parametrize("source", ["/none/here", "none.safetensors", "runs/none/deeper", "tests/none"])
def test_a_missing_path_is_not_asked_of_the_hub(monkeypatch, tmp_path, source):
    hub = FakeHub(monkeypatch, tmp_path, [])
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no "):
        load_denoiser(source)
    assert not hub.asked


@pytest.mark.parametrize(("source", "revision"), [("owner/name", None), ("owner/name@v1.0", "v1.0")])
@pytest.mark.parametrize(("files", "patterns"), [
    (["model.safetensors", "model.bin"], ["*.json", "*.safetensors"]), (["model.bin"], ["*.json", "*.bin", "*.pth"])])
def test_a_repository_is_fetched_with_one_copy_of_its_weights(monkeypatch, places, source, revision, files, patterns):
    hub = FakeHub(monkeypatch, places["run"], files)
    monkeypatch.chdir(places["run"])
    load_denoiser(source)
    assert hub.asked == [("owner/name", revision, patterns)]


def test_what_the_cache_has_needs_no_network(monkeypatch, places):
    FakeHub(monkeypatch, places["run"], [], online=False, cached=True)
    assert load_denoiser("owner/name").sde


def test_without_a_network_the_error_says_so(monkeypatch, tmp_path):
    FakeHub(monkeypatch, tmp_path, [], online=False)
    with pytest.raises(OSError, match=r"no file or folder 'owner/name' here.*does not answer.*path of a copy"):
        load_denoiser("owner/name")


def test_an_unknown_repository_is_the_users_error(monkeypatch, tmp_path):
    FakeHub(monkeypatch, tmp_path, [])
    with pytest.raises(ValueError, match=r"'owner/nane' \(404 Client Error.*https://huggingface.co/owner/nane"):
        load_denoiser("owner/nane")


def test_without_huggingface_hub_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub"):
        load_denoiser("owner/name")


# A run made of a checkpoint


def test_a_run_keeps_all_that_training_needs(checkpoint, tmp_path):
    optimizer = {"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    full = Checkpoint(checkpoint.config, checkpoint.averaged, {k: v + 1 for k, v in checkpoint.averaged.items()}, 5, 4,
                      optimizer)
    run_format.write(full, tmp_path / "run")
    back = run_format.read(tmp_path / "run")
    assert (back.step, back.ema_updates) == (5, 4) and torch.equal(back.optimizer["state"][0]["exp_avg"], torch.ones(2))
    for name, weight in checkpoint.averaged.items():
        assert torch.equal(back.averaged[name], weight) and torch.equal(back.raw[name], weight + 1)


def test_a_run_is_written_with_raw_weights_when_asked(checkpoint, tmp_path):
    raw = {k: v + 1 for k, v in checkpoint.averaged.items()}
    full = Checkpoint(checkpoint.config, checkpoint.averaged, raw, 5)
    run_format.write(full, tmp_path / "run", ema=False)
    back = run_format.read(tmp_path / "run")
    for weights in (back.averaged, back.raw):
        assert all(torch.equal(weights[name], weight) for name, weight in raw.items())
    for ema, weights in ((True, checkpoint.averaged), (False, raw)):
        assert all(torch.equal(w, weights[k]) for k, w in full.denoiser(ema).network.state_dict().items())


def test_what_is_asked_of_a_run_must_agree_with_it(places):
    with pytest.raises(ValueError, match="trained with sde.name='vp', not 've'"):
        load_denoiser(places["run"], config={"sde": {"name": "ve"}})


def test_a_folder_that_holds_something_is_not_written_to(checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty; choose another folder"):
        run_format.write(checkpoint, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
