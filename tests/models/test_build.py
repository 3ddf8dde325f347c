"""From a config to a denoiser, and from a run's folder to a trained one, with damaged and hostile files refused."""

import contextlib
import json
import math
import pickle
import resource
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

from scorefield.checkpoints import load_denoiser
from scorefield.checkpoints.formats.run import newest_checkpoint, read_config, read_state, write_checkpoint
from scorefield.configs import default, sections
from scorefield.models import MLP, UNet, build_denoiser, build_sde
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import digest
from scorefield.sde_lib import SDES, VESDE, VPSDE, CosineVPSDE

SHAPES = {"mlp": (2,), "unet": (1, 8, 8)}
SMALL = {"mlp": {"width": 8, "layers": 1},
         "unet": {"width": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": ()}}


def small_config(network="mlp", sde="vp", **settings):
    config = default.get_config()
    config.sde, config.model = sections.sde(sde), sections.model(network, **SMALL[network] | settings)
    return config


def random_state(network, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in network.state_dict().items()}


def write_run(run, config, step=7):
    """A run's folder as `--mode train` leaves it, the weights random; returns the state that its checkpoint holds."""
    shape = SHAPES[config.model.network]
    resolved = config.to_dict() | {"config": "x", "shape": list(shape), "levels": 17}
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(json.dumps(resolved))
    network = build_denoiser(config, shape).network
    state = {"step": step, "seconds": 1.5, "network": random_state(network, step), "ema": random_state(network, -step),
             "ema_updates": step, "optimizer": torch.optim.Adam(network.parameters(), fused=True).state_dict()}
    write_checkpoint(run, step, state, None)
    return state


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "run", small_config())
    return tmp_path / "run"


@pytest.fixture
def checkpoint(run):
    return newest_checkpoint(run)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


# Loading what a run has left


@pytest.mark.parametrize("network", ["mlp", "unet"])
@pytest.mark.parametrize("ema", [True, False])
def test_a_run_is_loaded_with_its_averaged_or_its_raw_weights(tmp_path, network, ema):
    config = small_config(network, "ve", parametrization="v", time_input="log_sigma", input_std=0.5)
    config.sde.sigma_max = 30.0
    state = write_run(tmp_path / "run", config)
    denoiser = load_denoiser(str(tmp_path / "run"), ema=ema)
    assert same(dict(denoiser.network.state_dict()), state["ema" if ema else "network"])
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())
    assert repr(denoiser.sde) == repr(VESDE(sigma_max=30.0))
    expected = build_denoiser(config, SHAPES[network]).eval()
    expected.network.load_state_dict(state["ema" if ema else "network"])
    x = torch.randn(3, *SHAPES[network], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(denoiser.score(x, 0.3), expected.score(x, 0.3))


def test_the_averaged_weights_of_the_newest_checkpoint_are_the_default(run):
    write_run(run, small_config(), step=9)
    newest = write_run(run, small_config(), step=10)
    write_run(run, small_config(), step=8)
    (run / "checkpoints" / ".step_00000011.pt.42.tmp").write_bytes(b"half written")
    assert same(dict(load_denoiser(run).network.state_dict()), newest["ema"])


def test_read_state_gives_back_all_that_was_written(tmp_path):
    state = write_run(tmp_path / "run", small_config())
    assert same(read_state(newest_checkpoint(tmp_path / "run")), state)


# Missing, damaged, hostile


def refusal(error, call, *names):
    """The error of that very type that the call raises: one line, with the names in it."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, repr(caught.value)
    assert "\n" not in message and all(str(name) in message for name in names), message
    return message


def argument_refusal(call, argument, *names):
    """The error of one line that blames that argument, with the names in it."""
    message = refusal(ArgumentError, call, *names)
    with pytest.raises(ArgumentError) as caught:
        call()
    assert caught.value.arguments == (argument,)
    return message


def test_a_missing_run_is_not_the_folder_of_a_run(tmp_path):
    refusal(FileNotFoundError, lambda: load_denoiser(tmp_path / "none"), tmp_path / "none", "a run's folder")
    refusal(FileNotFoundError, lambda: read_config(tmp_path), tmp_path, "config.json")


def test_a_run_without_a_checkpoint_asks_to_train_first(run, checkpoint):
    checkpoint.unlink()
    refusal(FileNotFoundError, lambda: load_denoiser(run), run, "no checkpoint", "train first")
    (run / "checkpoints").rmdir()
    refusal(FileNotFoundError, lambda: load_denoiser(run), run, "no checkpoint", "train first")


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: "", lambda text: text.replace(":", ";", 1)])
def test_a_damaged_config_is_a_value_error_that_names_the_file(run, damage):
    path = run / "config.json"
    path.write_text(damage(path.read_text()))
    refusal(ValueError, lambda: load_denoiser(run), path, "damaged")


def test_a_checkpoint_truncated_anywhere_is_refused(run, checkpoint):
    whole = checkpoint.read_bytes()
    for length in {0, 1, 4, 30, *range(100, len(whole), len(whole) // 100), len(whole) - 1}:
        checkpoint.write_bytes(whole[:length])
        refusal(ValueError, lambda: load_denoiser(run), checkpoint, "no older checkpoint")


def test_a_byte_flipped_in_the_middle_of_any_tensor_is_refused(run, checkpoint):
    whole = checkpoint.read_bytes()
    tensors = [t for t in read_state(checkpoint)["network"].values() if t.any()]
    assert len(tensors) > 5
    for tensor in tensors:
        raw = tensor.numpy().tobytes()
        place = whole.index(raw) + len(raw) // 2
        checkpoint.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        refusal(ValueError, lambda: load_denoiser(run), checkpoint, "checksum")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_byte_flipped_in_the_directory_of_the_archive_is_refused_or_does_no_harm(tmp_path):
    state = {"network": {"weight": torch.arange(1.0, 301.0)}, "step": 3}
    path = write_checkpoint(tmp_path, 3, state, None)
    whole = path.read_bytes()
    wrong = []
    for place in range(whole.index(b"PK\x01\x02"), len(whole)):
        for mask in (0x01, 0x10, 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1:])
            try:
                if not same(read_state(path), state):
                    wrong.append((place, mask, "read as something else"))
            except ValueError:
                pass
            except Exception as error:
                wrong.append((place, mask, repr(error)))
    assert wrong == []


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [
    lambda payload, file: torch.save({"network": payload, "ema": payload}, file),
    lambda payload, file: torch.save({"ema": payload}, file, _use_new_zipfile_serialization=False),
    lambda payload, file: pickle.dump({"ema": payload}, file),
], ids=["zip", "legacy", "pickle"])
def test_a_hostile_pickle_is_refused_and_does_not_run(run, checkpoint, tmp_path, write):
    sign = tmp_path / "executed"
    with open(checkpoint, "wb") as file:
        write(Payload(sign), file)
    refusal(ValueError, lambda: load_denoiser(run), checkpoint)
    assert not sign.exists()
    with contextlib.suppress(Exception):
        torch.load(checkpoint, weights_only=False)
    assert sign.exists()      # the payload was live


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x05\x06" + bytes(18)], ids=repr)
def test_a_file_that_is_no_checkpoint_is_refused(run, checkpoint, content):
    checkpoint.write_bytes(content)
    refusal(ValueError, lambda: load_denoiser(run), checkpoint)


@pytest.mark.parametrize("content", [{"model": torch.zeros(3)}, torch.zeros(3), [1, 2], {}], ids=str)
def test_a_file_of_torch_that_is_not_of_this_project_is_refused(run, checkpoint, content):
    torch.save(content, checkpoint)
    refusal(ValueError, lambda: load_denoiser(run), checkpoint, "not written by Scorefield")


def test_a_checkpoint_whose_contents_were_changed_is_refused(run, checkpoint):
    sealed = torch.load(checkpoint)
    for change in (lambda: sealed.update(step=8), lambda: sealed["ema"]["last.bias"].add_(1e-6)):
        change()
        torch.save(sealed, checkpoint)
        refusal(ValueError, lambda: read_state(checkpoint), checkpoint, "damaged")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_small_file_that_asks_for_64_GiB_is_refused_before_it_gets_them(run, checkpoint, tmp_path, legacy):
    huge = torch.zeros(1).expand(2**34)      # stride 0
    for state in ({"ema": {"w": huge}, "sha256": "0"}, {"ema": [{"w": huge.view(2**17, 2**17)}], "sha256": "0"}):
        torch.save(state, checkpoint, _use_new_zipfile_serialization=not legacy)
        shutil.copy(checkpoint, tmp_path / "x.pth")
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (32 * 2**30, before[1]))
        try:
            refusal(ValueError, lambda: load_denoiser(run), checkpoint, "claims more bytes")
            refusal(ValueError, lambda: load_denoiser(tmp_path / "x.pth"), "claims more bytes")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(run, checkpoint):
    torch.save({"ema": {"w": torch.zeros(2**24)}, "sha256": "0"}, checkpoint)
    with zipfile.ZipFile(checkpoint) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert checkpoint.stat().st_size < 2**20
    refusal(ValueError, lambda: load_denoiser(run), checkpoint, "claim to hold 67,1")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_whose_weights_are_not_finite_is_passed_over(run, value):
    state = write_run(run, small_config(), step=9)
    state["ema"]["last.bias"][0] = value
    path = write_checkpoint(run, 9, state)
    with pytest.warns(UserWarning, match=f"{path} holds weights that are not finite; step_00000007.pt is used instead"):
        load_denoiser(run)


@pytest.mark.parametrize("ema", [None, {}, {"last.bias": torch.zeros(2)}], ids=str)
def test_a_checkpoint_without_the_weights_of_the_network_is_refused(run, ema):
    state = {"step": 8} | ({} if ema is None else {"ema": ema})
    path = write_checkpoint(run, 8, state, None)
    refusal(ValueError, lambda: load_denoiser(run), path, run / "config.json")


def test_a_checkpoint_of_another_width_is_refused(run):
    write_run(run, small_config(width=16), step=8)
    write_run(run, small_config(width=8), step=7)      # and with it the config
    refusal(ValueError, lambda: load_denoiser(run), run / "config.json", "step_00000008.pt")


# The digest of a checkpoint


SAMPLES = [
    {"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1}, {"b": 1, "a": 2}, {"a": {"b": 2}}, [1, 23], [12, 3], [[1], [2, 3]],
    [[1, 2], [3]], "1", 1, 1.0, True, None, math.nan, {}, [], torch.zeros(6), torch.zeros(2, 3), torch.zeros(3, 2),
    torch.zeros(6, dtype=torch.int32), torch.zeros(6, dtype=torch.bfloat16), torch.zeros(6, dtype=torch.bool),
    torch.zeros(0), torch.tensor(0.0), torch.tensor([0.0] * 5 + [1e-45]), [torch.zeros(2), torch.zeros(4)],
    [torch.zeros(4), torch.zeros(2)],
]


def test_the_digest_tells_apart_whatever_differs_in_a_name_type_shape_or_value():
    digests = [digest(sample) for sample in SAMPLES]
    clashes = [(a, b) for i, a in enumerate(SAMPLES) for j, b in enumerate(SAMPLES[:i]) if digests[i] == digests[j]]
    assert clashes == []


def test_the_digest_survives_writing_and_reading(tmp_path):
    state = {"samples": SAMPLES, "strided": torch.arange(12).reshape(3, 4).T, "slice": torch.arange(10)[2:5]}
    loaded = read_state(write_checkpoint(tmp_path, 1, state, None))
    assert digest(loaded) == digest(state) and torch.equal(loaded["strided"], state["strided"])


# Building


def test_every_sde_of_the_registry_is_built_by_its_name():
    for name, make in SDES.items():
        assert repr(build_sde(small_config(sde=name))) == repr(make()), name


def test_settings_of_the_config_reach_the_sde_and_the_network():
    config = small_config("unet", "cosine", dropout=0.25, parametrization="x0", time_input="half_log_snr")
    config.sde = sections.sde("cosine", s=0.01)
    denoiser = build_denoiser(config, (1, 8, 8))
    assert repr(denoiser.sde) == repr(CosineVPSDE(s=0.01))
    assert isinstance(denoiser.network, UNet) and denoiser.network.width == 8
    assert {m.p for m in denoiser.network.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    assert denoiser.parametrization.name == "x0" and denoiser.time_input == "half_log_snr"
    config = small_config("mlp", layers=3)
    network = build_denoiser(config, (5,)).network
    assert isinstance(network, MLP) and len(network.inner) == 3 and network.first.in_features == 5


def test_fields_that_are_not_there_take_the_defaults_of_the_class():
    denoiser = build_denoiser({"sde": {"name": "vp"}, "model": {"network": "mlp"}}, (2,))
    assert repr(denoiser.sde) == repr(VPSDE()) and denoiser.network.width == MLP((2,)).width
    assert denoiser.input_std is None


@pytest.mark.parametrize(("sde", "field", "value", "takes"), [
    ("vp", "sigma_max", 50.0, "beta_min, beta_max"), ("vp", "steps", 100, "beta_min, beta_max"),
    ("subvp", "s", 0.01, "beta_min, beta_max"), ("ve", "beta_min", 0.1, "sigma_min, sigma_max"),
    ("ddpm", "sigma_max", 20.0, "schedule, steps"), ("smld", "schedule", "linear", "steps, sigma_min, sigma_max"),
])
def test_a_setting_that_the_sde_does_not_take_is_refused(sde, field, value, takes):
    config = {"sde": {"name": sde, field: value}, "model": {"network": "mlp"}}
    message = argument_refusal(lambda: build_denoiser(config, (2,)), f"sde.{field}", repr(sde))
    assert all(word in message.split("it takes ")[1] for word in takes.split(", "))


@pytest.mark.parametrize(("network", "field", "value", "takes"), [
    ("mlp", "multipliers", (1, 2), "width, layers"), ("mlp", "dropout", 0.0, "width, layers"),
    ("unet", "layers", 4, "width, multipliers, num_blocks, attention_resolutions, dropout")])
def test_a_setting_that_the_network_does_not_take_is_refused(network, field, value, takes):
    config = {"sde": {"name": "vp"}, "model": {"network": network, field: value}}
    message = argument_refusal(lambda: build_denoiser(config, SHAPES[network]), f"model.{field}", repr(network))
    assert all(word in message.split("it takes ")[1] for word in takes.split(", "))


@pytest.mark.parametrize(("section", "field", "words"), [
    ("sde", "name", ["vp", "cosine", "subvp", "ve", "ddpm", "smld"]), ("model", "network", ["unet", "mlp"])])
def test_an_unknown_class_lists_those_that_exist(section, field, words):
    config = {"sde": {"name": "vp"}, "model": {"network": "mlp"}}
    config[section][field] = "nonesuch"
    argument_refusal(lambda: build_denoiser(config, (2,)), f"{section}.{field}", "'nonesuch'", "choose from", *words)


@pytest.mark.parametrize(("field", "words"), [
    ("parametrization", ["eps", "x0", "v", "score"]), ("time_input", ["999t", "index", "log_sigma"])])
def test_an_unknown_word_lists_those_that_exist(field, words):
    config = small_config()
    config.model[field] = "nonesuch"
    argument_refusal(lambda: build_denoiser(config, (2,)), f"model.{field}", "'nonesuch'", "choose from", *words)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 4, 4)], ids=str)
def test_a_unet_takes_pictures_and_series_only(shape):
    argument_refusal(lambda: build_denoiser(small_config("unet"), shape), "model.network", "pictures", shape)


def test_a_config_read_back_from_json_builds_the_same_denoiser():
    config = small_config("unet")
    again = ConfigDict(json.loads(json.dumps(config.to_dict())))
    first, second = (build_denoiser(c, (1, 8, 8)) for c in (config, again))
    assert str(first.network) == str(second.network) and repr(first.sde) == repr(second.sde)


@pytest.mark.parametrize("network", ["unet", "ncsnpp", "mlp", "dit"])
def test_classes_reach_the_network_and_label_dropout_counts_only_where_it_takes_labels(network):
    sizes = {"width": 8} | {"mlp": {}, "dit": {"layers": 1, "heads": 2}}.get(network, {"multipliers": (1,), "num_blocks": 1})
    for classes, dropout in ((None, 0.1), (None, 0.0), (3, 0.1), (3, 0.0), (3, None)):
        config = {"sde": {"name": "vp"}, "training": {"label_dropout": dropout},
                  "model": {"network": network, "parametrization": "eps", "classes": classes, **sizes}}
        takes = build_denoiser(config, (1, 8, 8)).takes
        assert takes.names == (() if classes is None else ("label",)) and takes.classes == classes
        assert takes.label_dropout == (classes is not None and bool(dropout))


def test_a_classifier_has_classes_but_takes_no_label():
    config = {"sde": {"name": "vp"}, "training": {"label_dropout": 0.1}, "model": {
        "network": "classifier", "parametrization": "eps", "width": 8, "classes": 3, "attention_head_dim": 4}}
    takes = build_denoiser(config, (1, 8, 8)).takes
    assert takes.names == () and takes.classes is None and not takes.label_dropout
