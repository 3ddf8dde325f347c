"""Folders of diffusers' UNet2DModel: outputs equal to diffusers' own, there and back, and what is refused."""

import dataclasses
import inspect
import json
import logging
import os
import warnings
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

from scorefield.checkpoints.checkpoint import Checkpoint, plain
from scorefield.checkpoints.formats.diffusers import CHOICES, FIELDS, read, recognises, write
from scorefield.checkpoints.formats.diffusers_layout import OLD
from scorefield.checkpoints.formats.diffusers_weights import BASE as WEIGHTS
from scorefield.configs import vp_cifar10
from scorefield.models.build import build_denoiser
from scorefield.sde_lib.transition import Transition, learned_between, reverse_variance

diffusers = pytest.importorskip("diffusers")
safetensors_torch = pytest.importorskip("safetensors.torch")

SMALL = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
         "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
THREE = {"block_out_channels": (16, 16, 48), "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D")}
SKIP = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": None,
        "down_block_types": 2 * ("SkipDownBlock2D",), "up_block_types": 2 * ("SkipUpBlock2D",), "norm_eps": 1e-6,
        "mid_block_scale_factor": 2**0.5, "attention_head_dim": None, "time_embedding_type": "fourier"}
SKIP_ATTENTION = {"block_out_channels": (128, 128), "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
                  "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D")}
CIFAR10 = {      # config.json of google/ddpm-cifar10-32
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256], "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]}
CIFAR10_SCHEDULER = {
    "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
    "beta_start": 0.0001, "clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None,
    "variance_type": "fixed_large"}


def randomised(network, std=0.1):
    """The same network with weights that let everything through."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name not in ("time_proj.weight", "fourier.frequencies"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return network.eval()


def their_model(config, std=0.1):
    torch.manual_seed(0)
    return randomised(diffusers.UNet2DModel(**config), std)


@pytest.fixture
def saved(tmp_path):
    """Saves a model of the config, and a scheduler if any, as diffusers does, into one folder."""
    def saved(config=SMALL, scheduler="DDPMScheduler", **scheduler_config):
        model = their_model(config)
        model.save_pretrained(tmp_path)
        if scheduler:
            getattr(diffusers, scheduler)(**scheduler_config).save_pretrained(tmp_path)
        return model
    return saved


@pytest.fixture
def edit(tmp_path):
    """Changes a JSON file of the folder."""
    def edit(name, **changes):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return edit


def batch(channels=3, size=8):
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(1))


def difference(one, other):
    """Largest difference relative to the largest value, the worst of the batch."""
    assert float(other.abs().min(0).values.max()) > 1e-3
    return float(((one - other).abs().flatten(1).amax(1) / other.abs().flatten(1).amax(1)).max())


LABELS = torch.tensor([0, 10, 999])
SIGMAS = torch.tensor([0.01, 1.0, 50.0])


# Import: the network


@pytest.mark.costly
@pytest.mark.parametrize("settings", [
    {}, {"attention_head_dim": None}, {"attention_head_dim": 16}, {"norm_eps": 0.1}, {"freq_shift": 1},
    {"flip_sin_to_cos": False}, {"downsample_padding": 0}, {"center_input_sample": True}, {"layers_per_block": 2},
    {"norm_num_groups": 8}, {"attn_norm_num_groups": 4}, {"in_channels": 1, "out_channels": 1}, {"dropout": 0.3},
    {"time_embedding_dim": 64}, {"act_fn": "swish"}, {"sample_size": (8, 8)}, THREE,
    {"block_out_channels": (16,), "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)},
], ids=str)
def test_outputs_equal_diffusers_for_every_setting(settings, saved, tmp_path):
    model, denoiser = saved(SMALL | settings), read(tmp_path).denoiser()
    x = batch(settings.get("in_channels", 3))
    with torch.no_grad():
        expected = model(x, LABELS).sample
        assert difference(denoiser.network(x, LABELS.float()), expected) < 1e-5
        assert difference(denoiser.eps(x, (LABELS.double() + 1) / 1000), expected) < 1e-5
    assert type(denoiser.network).__name__ == "UNet"
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())


def test_pictures_of_unequal_sides_come_from_diffusers_and_go_back(saved, tmp_path):
    model, checkpoint = saved(SMALL | {"sample_size": (8, 16)}), read(tmp_path)
    assert checkpoint.config["shape"] == [3, 8, 16]
    x = torch.randn(3, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    write(checkpoint, tmp_path / "export")
    assert json.loads((tmp_path / "export/config.json").read_text())["sample_size"] == [8, 16]
    with torch.no_grad():
        expected = model(x, LABELS).sample
        assert difference(checkpoint.denoiser().network(x, LABELS.float()), expected) < 1e-5
        assert difference(read(tmp_path / "export").denoiser().network(x, LABELS.float()), expected) < 1e-5


def test_a_standardisation_that_a_folder_cannot_hold_is_told(saved, tmp_path):
    saved()
    checkpoint = read(tmp_path)
    standardised = dataclasses.replace(checkpoint, config=checkpoint.config | {
        "levels": None, "standard": {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "columns": []}})
    note = write(standardised, tmp_path / "export")
    assert "x * (4.0, 5.0, 6.0) + (1.0, 2.0, 3.0)" in note and "no levels" in note
    assert "standardised" not in write(checkpoint, tmp_path / "plain")


@pytest.mark.parametrize("settings", [
    {}, SKIP_ATTENTION, SKIP_ATTENTION | {"attention_head_dim": 32, "norm_num_groups": 32, "attn_norm_num_groups": 32},
    {"norm_eps": 0.1}, {"attention_head_dim": 8}, {"center_input_sample": True}, {"layers_per_block": 2},
    {"block_out_channels": (16, 16, 32), "down_block_types": 3 * ("SkipDownBlock2D",),
     "up_block_types": 3 * ("SkipUpBlock2D",)},
], ids=str)
def test_scores_of_fourier_networks_with_skip_blocks_equal_diffusers(settings, saved, tmp_path):
    model, denoiser = saved(SKIP | settings, "ScoreSdeVeScheduler", sigma_max=50.0), read(tmp_path).denoiser()
    x = batch()
    with torch.no_grad():
        expected = model(x, SIGMAS).sample
        score = -denoiser.network(x, SIGMAS.log()) / SIGMAS[:, None, None, None]
        assert difference(score, expected) < 1e-5
        t = denoiser.sde.time(-SIGMAS.double().log())
        assert difference(denoiser.score(x, t), expected) < 1e-5
    assert type(denoiser.network).__name__ == "NCSNpp"


LEARNED = SMALL | {"out_channels": 6}


@pytest.mark.parametrize("step", [1, 10])
def test_a_learned_range_is_the_learned_variance_and_goes_back(step, saved, tmp_path):
    """The variance of a step of diffusers' own scheduler, also of a strided one."""
    model = saved(LEARNED, variance_type="learned_range")
    scheduler, denoiser = diffusers.DDPMScheduler(variance_type="learned_range"), read(tmp_path).denoiser()
    scheduler.set_timesteps(1000 // step)
    write(read(tmp_path), tmp_path / "export")
    told = json.loads((tmp_path / "export/scheduler_config.json").read_text())
    assert told["variance_type"] == "learned_range"
    x, index = batch(), 500
    with torch.no_grad():
        output = model(x, index).sample
        for one in (denoiser, read(tmp_path / "export").denoiser()):
            eps, share = one.with_share(x, (index + 1) / 1000, "eps")
            assert difference(torch.cat([eps, 2 * share - 1], 1), output) < 1e-5
        theirs = scheduler._get_variance(index, output[:, 3:])      # a log variance
        times = torch.tensor([index + 1, index + 1 - step], dtype=torch.float64) / 1000
        along = Transition.along(denoiser.sde, times)
        ours = learned_between(share, *(reverse_variance(kind, along)[0] for kind in ("beta_tilde", "beta"))).log()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings, kind", [(LEARNED, "fixed_small"), (LEARNED, "learned"), (SMALL, "learned_range")])
def test_a_scheduler_that_does_not_fit_the_networks_variance_is_refused(settings, kind, saved, tmp_path):
    saved(settings, variance_type=kind)
    with pytest.raises(ValueError, match="variance_type = .* cannot be imported, only"):
        read(tmp_path)


SCALED = {"resnet_time_scale_shift": "scale_shift"}
LABELLED = [{"num_class_embeds": 5}, SCALED, SCALED | {"num_class_embeds": 5, "attn_norm_num_groups": 4},
            {"class_embed_type": "timestep", "num_class_embeds": 5},
            {"class_embed_type": "timestep", "num_class_embeds": 5, "flip_sin_to_cos": False, "freq_shift": 1}]


@pytest.mark.parametrize("kind", [SMALL, SKIP | {"time_embedding_type": "positional"}], ids=["UNet", "NCSNpp"])
@pytest.mark.parametrize("settings", LABELLED, ids=str)
def test_outputs_with_labels_and_scale_and_shift_equal_diffusers(settings, kind, saved, tmp_path):
    if kind is not SMALL and "attn_norm_num_groups" in settings:      # only these are those of its other norms
        settings = settings | {"attn_norm_num_groups": 8}
    model, denoiser, x = saved(kind | settings), read(tmp_path).denoiser(), batch()
    label = torch.tensor([4, 0, 2]) if "num_class_embeds" in settings else None
    given = denoiser if label is None else denoiser.given(label=label)
    with torch.no_grad():
        expected = model(x, LABELS, class_labels=label).sample
        assert difference(given.eps(x, (LABELS.double() + 1) / 1000), expected) < 1e-6
    assert type(denoiser.network).__name__ == ("UNet" if kind is SMALL else "NCSNpp")


@pytest.mark.parametrize("settings", [{}, {"freq_shift": 1}, {"flip_sin_to_cos": False}], ids=str)
def test_outputs_of_positional_networks_with_skip_blocks_equal_diffusers(settings, saved, tmp_path):
    model, denoiser = saved(SKIP | {"time_embedding_type": "positional"} | settings), read(tmp_path).denoiser()
    x = batch()
    with torch.no_grad():
        assert difference(denoiser.eps(x, (LABELS.double() + 1) / 1000), model(x, LABELS).sample) < 1e-5


def test_a_field_that_a_config_leaves_out_means_what_it_means_to_diffusers():
    theirs = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    for field, (default, *_) in (FIELDS | CHOICES).items():
        assert default == plain(theirs[field].default), field


def test_google_ddpm_cifar10_is_the_default_unet_and_equals_diffusers(tmp_path):
    model = their_model({k: v for k, v in CIFAR10.items() if not k.startswith("_")}, std=0.03)
    (tmp_path / "config.json").write_text(json.dumps(CIFAR10))
    (tmp_path / "scheduler_config.json").write_text(json.dumps(CIFAR10_SCHEDULER))
    safetensors_torch.save_file(model.state_dict(), tmp_path / f"{WEIGHTS}.safetensors")
    checkpoint = read(tmp_path)
    denoiser = checkpoint.denoiser()
    assert sum(p.numel() for p in denoiser.network.parameters()) == 35_746_307
    chain = {"name": "ddpm", "schedule": "linear", "steps": 1000, "beta_min": 0.1, "beta_max": 20.0}
    assert checkpoint.config["sde"] == chain
    assert checkpoint.config["shape"] == [3, 32, 32] and checkpoint.config["levels"] == 256
    assert checkpoint.config["data"] == {"low": -1.0, "high": 1.0}
    assert checkpoint.raw is None and checkpoint.step == 0
    x = batch(size=32)[:1]
    with torch.no_grad():
        assert difference(denoiser.eps(x, 0.5), model(x, torch.tensor([499])).sample) < 1e-5


# Import: the chain


SCHEDULERS = [
    {"beta_schedule": schedule} for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
] + [{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
     {"num_train_timesteps": 37, "beta_start": 0.01, "beta_end": 0.3},
     {"num_train_timesteps": 37, "beta_schedule": "squaredcos_cap_v2"},
     {"num_train_timesteps": 3, "trained_betas": [0.1, 0.3, 0.2]}]


@pytest.mark.parametrize("settings", SCHEDULERS, ids=str)
def test_alpha_bar_equals_the_schedulers_at_every_index(settings, saved, tmp_path):
    saved(scheduler="DDPMScheduler", **settings)
    sde = read(tmp_path).denoiser().sde
    scheduler = diffusers.DDPMScheduler(**settings)
    t = torch.arange(1, sde.steps + 1, dtype=torch.float64) / sde.steps
    # absolute for the last index of the cosine, alpha-bar = 2e-9: their 1 - 0.999 is rounded to float32
    torch.testing.assert_close(sde.alpha(t).square(), scheduler.alphas_cumprod.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler",
                                       "EulerDiscreteScheduler", "UniPCMultistepScheduler", "DDPMParallelScheduler"])
def test_any_scheduler_of_betas_tells_the_chain(scheduler, saved, tmp_path):
    saved(scheduler=scheduler, num_train_timesteps=50, beta_end=0.1, prediction_type="v_prediction")
    config = read(tmp_path).config
    assert config["sde"] == {"name": "ddpm", "schedule": "linear", "steps": 50, "beta_min": 0.005, "beta_max": 5.0}
    assert config["model"]["parametrization"] == "v" and config["model"]["time_input"] == "index"


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_predictions_of_x0_equal_the_schedulers(prediction, saved, tmp_path):
    model, denoiser = saved(prediction_type=prediction, clip_sample=False), read(tmp_path).denoiser()
    scheduler, x = diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False), batch()[:1]
    with torch.no_grad():
        for label in (10, 500, 999):
            expected = scheduler.step(model(x, label).sample, label, x).pred_original_sample
            assert difference(denoiser.x0(x, torch.tensor((label + 1) / 1000).double()), expected) < 1e-5


def test_a_positional_network_of_a_ve_scheduler_is_told_sigma_and_gives_the_score(saved, tmp_path):
    model = saved(SMALL, "ScoreSdeVeScheduler", sigma_min=0.02, sigma_max=100.0)
    checkpoint = read(tmp_path)
    assert checkpoint.config["sde"] == {"name": "ve", "sigma_min": 0.02, "sigma_max": 100.0}
    assert checkpoint.config["data"] == {"low": 0.0, "high": 1.0}
    denoiser, x = checkpoint.denoiser(), batch()
    t = torch.tensor([0.1, 0.5, 1.0]).double()
    with torch.no_grad():
        assert difference(denoiser.score(x, t), model(x, denoiser.sde.sigma(t)).sample) < 1e-5


# Import: files


def test_the_folder_of_a_pipeline_is_read(saved, tmp_path):
    model = saved()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers.DDPMPipeline(model, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    assert (tmp_path / "pipeline/unet/config.json").is_file()
    assert_same(read(tmp_path / "pipeline"), read(tmp_path))


def test_a_bin_and_the_old_names_of_attention_are_read(saved, tmp_path):
    saved()
    expected = read(tmp_path)
    tensors = safetensors_torch.load_file(tmp_path / f"{WEIGHTS}.safetensors")
    (tmp_path / f"{WEIGHTS}.safetensors").unlink()
    torch.save(tensors, tmp_path / f"{WEIGHTS}.bin")
    assert_same(read(tmp_path), expected)
    for new, old in OLD.items():
        tensors = {key.replace(f".{new}.", f".{old}."): tensor for key, tensor in tensors.items()}
    assert any(".query." in key for key in tensors) and any(".proj_attn." in key for key in tensors)
    torch.save(tensors, tmp_path / f"{WEIGHTS}.bin")
    assert_same(read(tmp_path), expected)


def test_frequencies_that_an_old_file_has_twice_are_read(saved, tmp_path):
    saved(SKIP, "ScoreSdeVeScheduler")
    expected = read(tmp_path)
    path = tmp_path / f"{WEIGHTS}.safetensors"
    tensors = safetensors_torch.load_file(path)
    safetensors_torch.save_file(tensors | {"time_proj.W": tensors["time_proj.weight"].clone()}, path)
    assert_same(read(tmp_path), expected)
    safetensors_torch.save_file(tensors | {"time_proj.W": tensors["time_proj.weight"] + 1}, path)
    with pytest.raises(ValueError, match=r"1 extra \(time_proj.W\)"):
        read(tmp_path)


def test_weights_in_half_precision_are_read_into_float32(saved, tmp_path):
    saved().half().save_pretrained(tmp_path)
    checkpoint = read(tmp_path)
    assert {tensor.dtype for tensor in checkpoint.averaged.values()} == {torch.float32}
    assert torch.isfinite(checkpoint.denoiser().eps(batch(), 0.5)).all()


def test_without_a_scheduler_the_config_tells_the_chain(saved, tmp_path):
    saved(scheduler=None)
    with pytest.raises(ValueError, match=r"no scheduler_config.json.*sde.name=ddpm"):
        read(tmp_path)
    config = read(tmp_path, {"sde": {"name": "ddpm", "schedule": "cosine", "steps": 100}}).config
    assert config["sde"] == {"name": "ddpm", "schedule": "cosine", "steps": 100}
    assert config["model"]["time_input"] == "index" and config["model"]["parametrization"] == "eps"
    with pytest.raises(ValueError, match="'index' needs the SDE of a chain"):
        read(tmp_path, {"sde": {"name": "vp"}})
    assert read(tmp_path, {"sde": {"name": "vp"}, "model": {"time_input": "999t"}}).config["sde"] == {"name": "vp"}


def test_what_is_given_is_what_the_folder_does_not_tell(saved, tmp_path):
    saved(SMALL | {"sample_size": None})
    with pytest.raises(ValueError, match=r"sample_size = None .*data.image_size"):
        read(tmp_path)
    for given in ({"shape": [3, 16, 16]}, {"data": {"image_size": 16}}):
        config = read(tmp_path, given).config
        assert config["shape"] == [3, 16, 16] and config["model"]["attention_resolutions"] == (8,)


@pytest.mark.parametrize(("section", "field", "told", "other"), [
    ("sde", "name", "ddpm", "vp"), ("sde", "beta_max", 20.0, 10.0), ("model", "network", "unet", "ncsnpp"),
    ("model", "parametrization", "v", "eps"), ("model", "time_input", "index", "999t"), ("model", "width", 16, 8),
    ("model", "norm_eps", 1e-5, 1e-6), ("model", "freq_shift", 0, 1), ("model", "attention_head_dim", 4, 8),
    ("model", "centred", True, False), ("model", "downsample_padding", 1, 0), ("model", "groups", 4, 2),
    ("model", "input_std", None, 0.5), ("data", "low", -1.0, 0.0), ("data", "high", 1.0, 2.0)])
def test_what_the_folder_tells_can_be_repeated_but_not_changed(saved, tmp_path, section, field, told, other):
    saved(SMALL | {"attention_head_dim": 4}, prediction_type="v_prediction")
    assert told is None or read(tmp_path, {section: {field: told}}).config[section][field] == told
    with pytest.raises(ValueError, match=rf"trained with {section}\.{field}={told!r}, not {other!r}"):
        read(tmp_path, {section: {field: other}})
    assert read(tmp_path, {"model": {"dropout": 0.25}}).config["model"]["dropout"] == 0.25


def test_folders_of_diffusers_are_recognised(saved, tmp_path):
    saved()
    other = tmp_path / "other"
    other.mkdir()
    assert recognises(tmp_path) and not recognises(other) and not recognises(tmp_path / "config.json")
    (other / "config.json").write_text('{"sde": {}}')      # a run's
    assert not recognises(other)
    (other / "config.json").write_text("{")
    assert not recognises(other)
    (other / "model_index.json").write_text("{}")
    assert recognises(other)


# Import: what is refused


@pytest.mark.parametrize(("field", "value"), [
    ("act_fn", "gelu"), ("class_embed_type", "identity"), ("class_embed_type", "timestep"),
    ("num_class_embeds", 0), ("add_attention", False),
    ("resnet_time_scale_shift", "spatial"), ("downsample_type", "resnet"), ("upsample_type", "resnet"),
    ("mid_block_type", None), ("time_embedding_type", "learned"), ("time_embedding_type", "fourier"),
    ("time_embedding_dim", 100), ("mid_block_scale_factor", 1.5), ("attn_norm_num_groups", 8), ("norm_num_groups", None),
    ("norm_num_groups", 7), ("out_channels", 9), ("downsample_padding", 2), ("freq_shift", 2), ("attention_head_dim", 12),
    ("down_block_types", ["DownBlock2D", "ResnetDownsampleBlock2D"]),
    ("down_block_types", ["SkipDownBlock2D", "DownBlock2D"]),
    ("up_block_types", ["UpBlock2D", "AttnUpBlock2D"]), ("block_out_channels", [16, 24]), ("block_out_channels", [16]),
    ("block_out_channels", [0, 0]), ("sample_size", [8, 7]), ("sample_size", 7), ("encoder_hid_dim", 7),
    ("_class_name", "UNet2DConditionModel"), ("in_channels", "3"), ("dropout", None),
], ids=str)
def test_a_setting_that_no_network_here_follows_is_refused_by_name(field, value, saved, edit, tmp_path):
    saved()
    edit("config", **{field: value})
    with pytest.raises(ValueError, match=f"{field}|GroupNorm|image_size") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [
    ("in_channels", 1), ("mid_block_scale_factor", 1), ("norm_num_groups", 16), ("attn_norm_num_groups", 4),
    ("down_block_types", ["AttnSkipDownBlock2D", "SkipDownBlock2D"]), ("up_block_types", ["UpBlock2D", "UpBlock2D"]),
], ids=str)
def test_a_setting_that_ncsnpp_does_not_follow_is_refused_by_name(field, value, saved, edit, tmp_path):
    saved(SKIP, "ScoreSdeVeScheduler")
    edit("config", **{field: value})
    if field == "in_channels":
        edit("config", out_channels=1)
    if value == ["AttnSkipDownBlock2D", "SkipDownBlock2D"]:
        edit("config", up_block_types=["SkipUpBlock2D", "AttnSkipUpBlock2D"])
        field = "block_out_channels"
    with pytest.raises(ValueError, match=f"{field} = ") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [
    ("rescale_betas_zero_snr", True), ("use_flow_sigmas", True), ("timestep_type", "continuous"), ("snr_shift_scale", 3.0),
    ("prediction_type", "flow_prediction"), ("beta_schedule", "laplace"), ("beta_schedule", None), ("beta_start", None),
    ("num_train_timesteps", "1000"), ("num_train_timesteps", 0.5), ("trained_betas", [0.1, 0.2]), ("trained_betas", "no"),
], ids=str)
def test_a_scheduler_of_another_process_is_refused_by_the_field(field, value, saved, edit, tmp_path):
    saved()
    edit("scheduler_config", **{field: value})
    with pytest.raises(ValueError, match=field) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value) and "scheduler_config.json" in str(caught.value)


def test_schedulers_without_betas_and_fourier_networks_with_betas_are_refused(saved, tmp_path):
    saved(SMALL, "EDMEulerScheduler")
    with pytest.raises(ValueError, match="beta_schedule = None cannot be imported, only 'linear'"):
        read(tmp_path)
    saved(SKIP)
    with pytest.raises(ValueError, match="_class_name = 'DDPMScheduler' cannot be imported, only 'ScoreSdeVeScheduler'"):
        read(tmp_path)


def test_a_pipeline_of_more_than_a_unet_is_refused(saved, tmp_path):
    saved()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(ValueError, match="pipeline with vqvae"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize(("change", "match"), [
    (lambda t: t.pop("conv_in.bias"), r"1 missing \(conv_in.bias\)"),
    (lambda t: t.update(more=torch.zeros(1)), r"1 extra \(more\)"),
    (lambda t: t.update({"conv_in.bias": torch.zeros(3)}), r"conv_in.bias is \(3,\) instead of \(16,\)"),
    (lambda t: t.pop("down_blocks.1.attentions.0.to_k.weight"), r"1 missing \(down_blocks.1.attentions.0.to_k.weight\)"),
    (lambda t: [t.update({f"module.{k}": t.pop(k)}) for k in list(t)], "remove the prefix 'module.' from the keys"),
    (lambda t: [t.update({f"model.unet.{k}": t.pop(k)}) for k in list(t)], "remove the prefix 'model.unet.' from the keys"),
    (lambda t: [t.pop(k) for k in list(t)] and t.update(weight=torch.zeros(2)), "missing .* more.*1 extra"),
], ids=["missing", "extra", "shape", "attention", "DataParallel", "Lightning", "another"])
def test_keys_that_differ_are_listed(change, match, suffix, saved, tmp_path):
    saved()
    path = tmp_path / f"{WEIGHTS}.safetensors"
    tensors = safetensors_torch.load_file(path)
    change(tensors)
    path.unlink()
    (safetensors_torch.save_file if suffix == "safetensors" else torch.save)(tensors, tmp_path / f"{WEIGHTS}.{suffix}")
    with pytest.raises(ValueError, match=match) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value) and f"{WEIGHTS}.{suffix}" in str(caught.value)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("damage", [
    lambda data: data[:-1], lambda data: data[:len(data) // 2], lambda data: data[:5], lambda data: b"",
    lambda data: b"<html>Not found</html>", lambda data: bytes([data[0] ^ 255]) + data[1:]], ids=range(6))
def test_a_truncated_or_foreign_file_of_weights_is_refused(damage, suffix, saved, tmp_path):
    saved()
    path = tmp_path / f"{WEIGHTS}.{suffix}"
    if suffix == "bin":
        torch.save(safetensors_torch.load_file(tmp_path / f"{WEIGHTS}.safetensors"), path)
        (tmp_path / f"{WEIGHTS}.safetensors").unlink()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="truncated, altered or no") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["config", "scheduler_config", "model_index"])
@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_damaged_json_is_refused(name, text, saved, tmp_path):
    saved()
    (tmp_path / f"{name}.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=f"{name}.json is damaged") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_without_the_files_say_which_they_lack(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json of a UNet2DModel"):
        read(tmp_path)
    saved()
    (tmp_path / f"{WEIGHTS}.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has neither .*\.bin$"):
        read(tmp_path)
    (tmp_path / f"{WEIGHTS}.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="safetensors.index.json is damaged .its weight_map"):
        read(tmp_path)
    (tmp_path / f"{WEIGHTS}.safetensors.index.json").rename(tmp_path / f"{WEIGHTS}-00001-of-00002.bin")
    with pytest.raises(ValueError, match="but diffusion_pytorch_model-00001-of-00002.bin; save the weights again"):
        read(tmp_path)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(saved, tmp_path):
    saved()
    (tmp_path / f"{WEIGHTS}.safetensors").unlink()
    torch.save({"conv_in.weight": Payload(tmp_path / "ran")}, tmp_path / f"{WEIGHTS}.bin")
    with pytest.raises(ValueError, match="refused, and nothing of it was run"):
        read(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": {"conv_in.weight": torch.zeros(1)}, "epoch": 3}, tmp_path / f"{WEIGHTS}.bin")
    with pytest.raises(ValueError, match="not a mapping of names to tensors.*state_dict, epoch.*Lightning"):
        read(tmp_path)


# Export


UNET = {"network": "unet", "parametrization": "eps", "time_input": "index", "width": 16, "multipliers": (1, 2),
        "num_blocks": 1, "attention_resolutions": (4,)}
NCSNPP = {"network": "ncsnpp", "parametrization": "eps", "time_input": "log_sigma", "width": 16, "multipliers": (1, 2),
          "num_blocks": 1, "attention_resolutions": (), "embedding": "fourier", "fir": True, "centred": False,
          "progressive_input": "input_skip", "progressive": "output_skip"}
VE = {"sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0}, "data": {"low": 0.0, "high": 1.0}}


def ours(model=UNET, sde=None, data=None, shape=(3, 8, 8)):
    """A checkpoint with random averaged and raw weights."""
    config = {"sde": sde or {"name": "ddpm"}, "model": dict(model), "data": data or {"low": -1.0, "high": 1.0},
              "shape": list(shape), "levels": 256}
    torch.manual_seed(0)
    network = randomised(build_denoiser(ConfigDict(config), shape).network)
    averaged = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return Checkpoint(config, averaged, {name: tensor + 1 for name, tensor in averaged.items()})


def assert_same(one, other):
    assert one.config == other.config
    assert one.averaged.keys() == other.averaged.keys()
    assert all(torch.equal(one.averaged[name], other.averaged[name]) for name in one.averaged)


@pytest.fixture
def loaded(caplog):
    """diffusers' own model of a folder; fails on a missing or extra key and on any warning."""
    diffusers.utils.logging.enable_propagation()

    def loaded(folder, pipeline=None):
        with caplog.at_level(logging.WARNING), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=FutureWarning)
            model, info = diffusers.UNet2DModel.from_pretrained(folder, output_loading_info=True, low_cpu_mem_usage=False)
            pipe = pipeline and pipeline.from_pretrained(folder, low_cpu_mem_usage=False)
        assert not any(info.values()) and [record.getMessage() for record in caplog.records] == []
        return pipe or model.eval()
    yield loaded
    diffusers.utils.logging.disable_propagation()


@pytest.mark.parametrize("settings", [
    {}, {"attention_head_dim": 8}, {"norm_eps": 1e-5, "freq_shift": 0, "downsample_padding": 1, "groups": 8},
    {"centred": False}, {"dropout": 0.0}, {"multipliers": (1, 1, 3), "attention_resolutions": (8, 2)},
    {"parametrization": "v"}, {"parametrization": "x0"}, {"scale_shift": True}, {"scale_shift": True, "middle_norm": False},
], ids=str)
def test_an_exported_unet_is_the_same_in_diffusers_and_back(settings, loaded, tmp_path):
    checkpoint = ours(UNET | settings)
    write(checkpoint, tmp_path / "new" / "folder")
    model, denoiser, x = loaded(tmp_path / "new" / "folder"), checkpoint.denoiser(), batch()
    with torch.no_grad():
        assert difference(model(x, LABELS).sample, denoiser(x, (LABELS.double() + 1) / 1000)) < 1e-5
    again = read(tmp_path / "new" / "folder")
    assert all(torch.equal(again.averaged[name], tensor) for name, tensor in checkpoint.averaged.items())
    assert again.config["model"].items() >= (UNET | settings).items()
    assert again.denoiser().sde.alpha(0.5) == denoiser.sde.alpha(0.5)


@pytest.mark.parametrize("embedding", ["table", "timestep"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_exported_network_takes_the_same_labels_in_diffusers(dropout, embedding, loaded, tmp_path):
    checkpoint = ours(UNET | {"classes": 4, "class_embedding": embedding})
    checkpoint.config["training"] = {"label_dropout": dropout}
    write(checkpoint, tmp_path)
    model, denoiser, x, label = loaded(tmp_path), checkpoint.denoiser(), batch(), torch.tensor([3, 0, 1])
    t = (LABELS.double() + 1) / 1000
    with torch.no_grad():
        assert difference(model(x, LABELS, class_labels=label).sample, denoiser.given(label=label).eps(x, t)) < 1e-6
        if dropout:
            last = torch.full((3,), 4)
            assert difference(model(x, LABELS, class_labels=last).sample, denoiser.given(label=None).eps(x, t)) < 1e-6


@pytest.mark.parametrize("settings", [
    {}, {"scale_shift": True}, {"scale_shift": True, "middle_norm": False},
    {"centred": True, "attention_head_dim": 8, "norm_eps": 1e-5}, {"width": 128, "attention_resolutions": (4,)},
    {"embedding": "positional", "time_input": "sigma", "parametrization": "score"}], ids=str)
def test_an_exported_ncsnpp_is_the_same_in_diffusers_and_back(settings, loaded, tmp_path):
    checkpoint = ours(NCSNPP | settings, **VE)
    write(checkpoint, tmp_path)
    model, denoiser, x = loaded(tmp_path), checkpoint.denoiser(), batch()
    with torch.no_grad():
        t = denoiser.sde.time(-SIGMAS.double().log())
        assert difference(denoiser.score(x, t), model(x, SIGMAS).sample) < 1e-5
    again = read(tmp_path)
    assert all(torch.equal(again.averaged[name], tensor) for name, tensor in checkpoint.averaged.items())
    assert again.config["model"].items() >= (NCSNPP | settings).items() and again.config["sde"] == VE["sde"]


def test_import_and_export_give_the_weights_back(saved, tmp_path):
    expected = saved(SMALL | {"flip_sin_to_cos": False}).state_dict()
    write(read(tmp_path), tmp_path / "again")
    tensors = safetensors_torch.load_file(tmp_path / "again" / f"{WEIGHTS}.safetensors")
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert_same(read(tmp_path / "again"), read(tmp_path))


@pytest.mark.parametrize("ema", [True, False])
def test_the_averaged_or_the_raw_weights_are_exported(ema, tmp_path):
    checkpoint = ours()
    write(checkpoint, tmp_path, ema)
    expected = checkpoint.averaged if ema else checkpoint.raw
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read(tmp_path).averaged.items())


@pytest.mark.parametrize("sde", [
    {"name": "ddpm"}, {"name": "ddpm", "schedule": "cosine", "steps": 50}, {"name": "ddpm", "schedule": "scaled_linear"},
    {"name": "ddpm", "schedule": "sigmoid", "steps": 200, "beta_min": 0.2, "beta_max": 10.0},
    {"name": "ddpm", "betas": (0.1, 0.3, 0.2)}], ids=str)
def test_an_exported_chain_is_the_schedulers_and_comes_back(sde, tmp_path):
    checkpoint = ours(sde=sde)
    write(checkpoint, tmp_path)
    scheduler, chain = diffusers.DDPMScheduler.from_pretrained(tmp_path), checkpoint.denoiser().sde
    t = torch.arange(1, chain.steps + 1, dtype=torch.float64) / chain.steps
    exact = (1 - scheduler.betas.double()).cumprod(0)
    torch.testing.assert_close(exact, chain.alpha(t).square(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(read(tmp_path).denoiser().sde.alpha(t), chain.alpha(t), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["vp", "cosine", "sigmoid"])
def test_an_exported_continuous_sde_has_its_own_noise_at_every_label(name, loaded, tmp_path):
    checkpoint = ours(UNET | {"time_input": "999t"}, {"name": name})
    write(checkpoint, tmp_path)
    model, denoiser, x = loaded(tmp_path), checkpoint.denoiser(), batch()
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path)
    exact = (1 - scheduler.betas.double()).cumprod(0)
    t = torch.arange(1000, dtype=torch.float64) / 999
    torch.testing.assert_close(exact[1:], denoiser.sde.alpha(t[1:]).square(), rtol=1e-5, atol=1e-9)
    assert float(1 - exact[0]) == pytest.approx(float(denoiser.sde.sigma(1e-5)) ** 2, rel=1e-3)
    with torch.no_grad():
        assert difference(model(x, LABELS).sample, denoiser.eps(x, LABELS.double() / 999)) < 1e-5
    again = read(tmp_path).denoiser()
    with torch.no_grad():
        later, labels = x[1:], LABELS[1:].double()      # there is no score at label 0, which stands at t = 0
        assert difference(again.score(later, (labels + 1) / 1000), denoiser.score(later, labels / 999)) < 1e-5


def test_a_run_of_vp_cifar10_is_exported_by_its_whole_config(loaded, tmp_path):
    config = vp_cifar10.get_config()
    config.model.width = 16
    checkpoint = ours(config.model.to_dict(), config.sde.to_dict(), config.data.to_dict(), (3, 32, 32))
    write(checkpoint, tmp_path)
    model, denoiser, x = loaded(tmp_path), checkpoint.denoiser(), batch(size=32)
    with torch.no_grad():
        assert difference(model(x, LABELS).sample, denoiser.eps(x, LABELS.double() / 999)) < 1e-5


def test_an_exported_model_runs_in_ddpm_pipeline(loaded, tmp_path):
    write(ours(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json", f"{WEIGHTS}.safetensors", "model_index.json", "scheduler_config.json"]
    pipeline = loaded(tmp_path, diffusers.DDPMPipeline)
    assert pipeline.scheduler.config.clip_sample and pipeline.scheduler.config.variance_type == "fixed_large"
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(2, torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images
    assert pictures.shape == (2, 8, 8, 3) and 0 <= pictures.min() < pictures.max() <= 1


def test_an_exported_ve_model_runs_in_score_sde_ve_pipeline(tmp_path):
    write(ours(NCSNPP, **VE), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
        assert type(pipeline).__name__ == "ScoreSdeVePipeline" and pipeline.scheduler.config.sigma_max == 50.0
        pipeline.set_progress_bar_config(disable=True)
        pictures = pipeline(2, 3, torch.Generator().manual_seed(0), output_type="np").images
    assert pictures.shape == (2, 8, 8, 3) and 0 <= pictures.min() < pictures.max() <= 1


def test_an_export_that_fails_leaves_nothing_and_one_that_is_there_stays(tmp_path, monkeypatch):
    write(ours(), tmp_path / "there")
    with pytest.raises(ValueError, match="there is not empty"):
        write(ours(UNET | {"parametrization": "v"}), tmp_path / "there")

    def fail(descriptor):
        raise OSError("no space left")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write(ours(), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(("checkpoint", "match"), [
    (lambda: ours({"network": "mlp", "parametrization": "eps", "time_input": "index"}), "network = 'mlp'"),
    (lambda: ours(UNET | {"multipliers": (2, 1)}), r"multipliers = \(2, 1\)"),
    (lambda: ours(NCSNPP | {"progressive_input": "residual"}, **VE), "progressive_input = 'residual'"),
    (lambda: ours(NCSNPP | {"progressive": "none"}, **VE), "progressive = 'none'"),
    (lambda: ours(NCSNPP | {"block": "ddpm"}, **VE), "block = 'ddpm'"),
    (lambda: ours(NCSNPP | {"fir": False}, **VE), "fir = False"),
    (lambda: ours(NCSNPP | {"skip_rescale": False}, **VE), "skip_rescale = False"),
    (lambda: ours(NCSNPP | {"combine": "cat"}, **VE), "combine = 'cat'"),
    (lambda: ours(NCSNPP | {"groups": 8}, **VE), "groups = 8"),
    (lambda: ours(NCSNPP | {"attention_resolutions": (4,)}, **VE), "width = 16"),
    (lambda: ours(NCSNPP, shape=(1, 8, 8), **VE), "channels = 1"),
    (lambda: ours(NCSNPP | {"time_input": "sigma"}, **VE), "time_input = 'sigma'"),
    (lambda: ours(NCSNPP | {"time_input": "index"}), "Fourier embedding"),
    (lambda: ours(UNET | {"time_input": "half_log_snr"}, {"name": "vp"}), "time_input = 'half_log_snr'"),
    (lambda: ours(UNET | {"time_input": "999t"}, {"name": "subvp"}), "name = 'subvp'"),
    (lambda: ours(UNET | {"time_input": "999t"}), "ddpm with 999t"),
    (lambda: ours(UNET, {"name": "smld"}), "name = 'smld'"),
    (lambda: ours(UNET | {"parametrization": "score"}), "with index, score"),
    (lambda: ours(UNET | {"input_std": 0.5}), "input_std = 0.5"),
    (lambda: ours(data={"low": 0.0, "high": 1.0}), r"data.low, data.high = \(0.0, 1.0\).*\[-1, 1\]"),
    (lambda: ours(NCSNPP, VE["sde"]), r"data.low, data.high = \(-1.0, 1.0\).*\[0, 1\]"),
], ids=range(21))
def test_what_diffusers_cannot_hold_is_refused_before_anything_is_written(checkpoint, match, tmp_path):
    checkpoint = checkpoint()
    with pytest.raises(ValueError, match=match) as caught:
        write(checkpoint, tmp_path / "folder")
    assert "\n" not in str(caught.value) and "--config." not in str(caught.value)      # no flag can mend a trained network
    assert not Path(tmp_path / "folder").exists()
