"""load_denoiser finds the format of a path, and asks the Hugging Face hub for what is no path."""

import errno
import os
import sys
import types

import pytest
import torch
from helpers import small_checkpoint
from ml_collections import ConfigDict

from scorefield.checkpoints import Checkpoint, load_denoiser
from scorefield.checkpoints.formats import diffusers, scorefield
from scorefield.checkpoints.formats import run as run_format
from scorefield.checkpoints.load import find
from scorefield.configs.default import get_config
from scorefield.configs.sections import model, sde
from scorefield.models.build import complete


class FakeHub:
    """huggingface_hub as far as it is used: the repository owner/name, and what of it is in the cache, `folder`.

    told  what is raised instead of telling the repository's files
    sent  what is raised instead of sending those that are not cached
    """

    class HTTPError(OSError):
        def __init__(self, status, words):
            super().__init__(f"{status} {words}\n\nfor url https://huggingface.co")
            self.response = types.SimpleNamespace(status_code=status)

    class LocalEntryNotFoundError(FileNotFoundError):
        pass

    class HFValidationError(ValueError):
        pass

    def __init__(self, monkeypatch, folder, files=(), told=None, sent=None, cached=True):
        self.asked, self.local = [], []
        hub = types.ModuleType("huggingface_hub")
        hub.constants = types.SimpleNamespace(HF_HUB_CACHE="/the/cache")
        hub.errors = self

        def model_info(name, revision=None, timeout=None):
            if told:
                raise told
            if name != "owner/name":
                raise self.HTTPError(404, "Client Error. Repository Not Found")
            return types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=file) for file in files])

        def snapshot_download(name, revision=None, allow_patterns=(), local_files_only=False):
            (self.local if local_files_only else self.asked).append((name, revision, allow_patterns))
            if sent and not local_files_only:
                raise sent
            if local_files_only and not cached:
                raise self.LocalEntryNotFoundError("not in the cache")
            return str(folder)

        hub.model_info, hub.snapshot_download = model_info, snapshot_download
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


SERVER_FAULT = FakeHub.HTTPError(503, "Server Error: Service Unavailable")
NO_NETWORK = ConnectionError("Name or service not known")


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
    with pytest.raises(ValueError, match=r"is not a checkpoint; give a run's folder .*, a \.pth or a \.pt"):
        find(tmp_path / name)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        find(tmp_path)


@pytest.mark.parametrize("source", ["/none/here", "none.safetensors", "runs/none/deeper", "./runs/none", "runs/none.pth",
                                    "runs/none.pt", "runs/none.safetensors", "runs/none.bin", "runs/none.ckpt"])
def test_a_missing_path_is_not_asked_of_the_hub(monkeypatch, tmp_path, source):
    hub = FakeHub(monkeypatch, tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist; give a run's folder"):
        load_denoiser(source)
    assert not hub.asked and not hub.local


def test_a_folder_named_as_the_owner_does_not_hide_the_hub(monkeypatch, places, tmp_path):
    FakeHub(monkeypatch, places["run"], ["config.json"])
    (tmp_path / "owner").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_denoiser("owner/name").sde


@pytest.mark.parametrize(("source", "revision"), [("owner/name", None), ("owner/name@v1.0", "v1.0")])
@pytest.mark.parametrize(("files", "weights"), [
    (["model.safetensors", "model.bin"], ["model.safetensors"]),
    (["checkpoint_24.pth", "logs/other.pth"], ["checkpoint_24.pth"]),
    (["model.bin", "vae/model.safetensors"], ["model.bin"]),
    (["diffusion_pytorch_model.bin", "safety_checker/model.safetensors"], ["diffusion_pytorch_model.bin"]),
    (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"], ["diffusion_pytorch_model.bin"]),
    (["unet/config.json", "unet/diffusion_pytorch_model.bin", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
      "all.safetensors"], ["unet/diffusion_pytorch_model.bin"]),
    (["unet/config.json", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"],
     ["unet/diffusion_pytorch_model.safetensors"]),
    (["config.json"], []),
])
def test_a_repository_is_fetched_with_the_one_copy_of_its_weights_that_is_read(monkeypatch, places, source, revision, files,
                                                                               weights):
    hub = FakeHub(monkeypatch, places["run"], files)
    load_denoiser(source)
    [(name, asked, patterns)] = hub.asked
    assert (name, asked, patterns[-len(weights):] if weights else []) == ("owner/name", revision, weights)
    assert set(patterns) - set(weights) == {"config.json", "scheduler_config.json", "model_index.json", "unet/config.json",
                                            "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"}


@pytest.mark.parametrize("failure", [{"told": NO_NETWORK}, {"told": SERVER_FAULT}, {"sent": SERVER_FAULT}])
def test_what_the_cache_has_whole_needs_no_answer(monkeypatch, places, failure):
    repository = places["file"].parent / "repository"
    repository.mkdir()
    places["file"].rename(repository / "model.safetensors")
    hub = FakeHub(monkeypatch, repository, **failure)
    assert load_denoiser("owner/name@v1.0").sde
    assert [asked[:2] for asked in hub.local] == [("owner/name", "v1.0")]


def test_shards_of_which_the_cache_lacks_one_do_not_pass_for_a_model(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    for name in ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-00001-of-00002.safetensors"):
        (tmp_path / name).write_text("{}")
    FakeHub(monkeypatch, tmp_path, told=NO_NETWORK)
    with pytest.raises(OSError, match="not complete in /the/cache.*Name or service not known"):
        load_denoiser("owner/name")
    (tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors").write_text("{}")
    with pytest.raises(ValueError, match="config.json: sample_size = None"):      # it is read
        load_denoiser("owner/name")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("when", ["told", "sent"])
@pytest.mark.parametrize(("failure", "message"), [
    (NO_NETWORK, "ConnectionError: Name or service not known"), (SERVER_FAULT, "HTTPError: 503 Server Error"),
    (FakeHub.HTTPError(429, "Too Many Requests"), "429 Too Many Requests"),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/the/cache/blobs"), "Permission denied: '/the/cache/blobs'"),
])
def test_what_cannot_be_fetched_says_why(monkeypatch, tmp_path, when, cached, failure, message):
    (tmp_path / "config.json").write_text("{}")      # of a cache that lacks the weights
    FakeHub(monkeypatch, tmp_path, cached=cached, **{when: failure})
    expected = f"no file or folder 'owner/name' here.*not complete in /the/cache.*{message}"
    with pytest.raises(OSError, match=expected) as error:
        load_denoiser("owner/name")
    assert "\n" not in str(error.value) and "does not answer" not in str(error.value)


def test_a_fault_that_huggingface_hub_wraps_is_told_itself(monkeypatch, tmp_path):
    wrapped = FakeHub.LocalEntryNotFoundError("cannot find the requested files in the local cache")
    wrapped.__cause__ = SERVER_FAULT
    FakeHub(monkeypatch, tmp_path, sent=wrapped, cached=False)
    with pytest.raises(OSError, match="503 Server Error"):
        load_denoiser("owner/name")


@pytest.mark.parametrize("failure", [
    *({when: FakeHub.HTTPError(status, "Client Error")} for when in ("told", "sent") for status in (401, 403, 404)),
    {"told": FakeHub.HFValidationError("Client Error: no id")},
])
def test_what_the_hub_refuses_is_the_users_error(monkeypatch, places, failure):
    hub = FakeHub(monkeypatch, places["run"], **failure)
    message = (r"no file or folder 'owner/name' here.*hub has no such model, or you have no access to it \(.*Client Error"
               r".*co/owner/name$")
    with pytest.raises(ValueError, match=message):
        load_denoiser("owner/name")
    assert not hub.local


def test_an_unknown_repository_is_the_users_error(monkeypatch, tmp_path):
    FakeHub(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"'owner/nane'.*\(404 Client Error.*https://huggingface.co/owner/nane"):
        load_denoiser("owner/nane")


def test_without_huggingface_hub_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="no file or folder 'owner/name' here.*pip install huggingface_hub"):
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


@pytest.mark.parametrize(("config", "match"), [
    ({"sed": {"name": "vp"}}, "no section 'sed'; did you mean 'sde'"), ({"sde.name": "ve"}, "no section 'sde.name'"),
    ({"sde": {"nmae": "vp"}}, "no field 'sde.nmae'; did you mean 'sde.name'"),
    ({"sde": "vp"}, "section 'sde' must be a mapping"), ({"levels": 17}, "no section 'levels'"), ("x.py", "nested mapping"),
    ({"model": {"width": "8"}}, "model.width must be of type int, got '8'"), ({"shape": 5}, "shape must be a list"),
    ({"shape": []}, "shape must be a list"), ({"reduce_mean": "False"}, "reduce_mean must be True or False"),
    (ConfigDict({"sdee": {"name": "vp"}}), "no section 'sdee'"), (ConfigDict({"sde": "vp"}), "must be a mapping"),
    ({"shape": [3]}, r"trained with shape=\[2\], not \[3\]$"), ({"data": {"low": 0.5}}, "data.low")], ids=str)
@pytest.mark.parametrize("place", ["file", "run"])
def test_a_config_that_says_nothing_known_or_something_else_is_refused(places, place, config, match):
    with pytest.raises(ValueError, match=match):
        load_denoiser(places[place], config=config)


def test_a_whole_config_may_be_given(places, checkpoint):
    config = get_config()
    config.model, config.sde = (make(**complete(checkpoint.config)[name]) for name, make in (("model", model), ("sde", sde)))
    assert load_denoiser(places["file"], config=config).sde
    config.model.width += 1
    with pytest.raises(ValueError, match="trained with model.width="):
        load_denoiser(places["file"], config=config)


def test_a_folder_that_holds_something_is_not_written_to(checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty; choose another folder"):
        run_format.write(checkpoint, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
