"""The experiments of configs/: networks and settings as published, and no file that says what its parent does."""

import ast
import math
import re
from pathlib import Path

import pytest
import torch

from scorefield.configs.loading import config_names, load_config
from scorefield.configs.sections import SECTIONS
from scorefield.models import build_denoiser, build_sde

FOLDER = Path(__file__).parents[1] / "configs"
SHAPES = {"digits": (1, 8, 8), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32), "patches32": (3, 32, 32),
          "swiss_roll": (2,), "array": (1, 64)}
LATENT_SHAPES = {"runs/fashion_autoencoder": (4, 7, 7)}
PAIRS = {"bridge_swiss_to_gaussians": (2,), "bridge_digits_to_fashion": (1, 8, 8)}      # the shape of both data sets

# Those of Song et al. 2021 to the parameter; EDM's is its published 55,733,891 but for the inputs of augmentation.
PARAMETERS = {
    "vp_digits": 651_041, "flow_digits": 651_041, "vp_digits_labels": 652_449,
    "digits_teacher": 695_872, "digits_progressive": 695_872, "digits_guided": 794_688, "digits_consistency": 695_872,
    "digits_scm": 695_872,
    "vp_swiss_roll": 166_786, "flow_swiss_roll": 166_786, "vp_fashion_mnist": 6_469_889, "vp_fashion_mnist_small": 408_641,
    "edm_cifar10": 55_732_739, "dit_digits": 651_780, "dit_fashion": 402_948,
    "vp_digits_dequantized": 674_027, "vp_table": 182_720, "vp_series": 116_593,
    "digits_cascade": 672_065, "digits_cascade_first": 651_041, "fashion_cascade": 414_033, "fashion_cascade_first": 954_049,
    "bridge_swiss_to_gaussians": 267_012, "bridge_digits_to_fashion": 1_121_920,
    "vp_digits_hybrid": 651_330, "vp_digits_variance": 651_330, "digits_classifier": 119_818, "vp_patches32": 1_063_651,
    "vp_patches32_small": 637_043,
    "fashion_autoencoder": 241_749, "fashion_latents": 957_508,
    "vp_cifar10": 35_746_307, "subvp_cifar10": 35_746_307, "ve_cifar10": 35_746_307,
    "vp_cifar10_ddpmpp": 61_804_419, "vp_cifar10_ddpmpp_deep": 106_632_579,
    "subvp_cifar10_ddpmpp": 61_804_419, "subvp_cifar10_ddpmpp_deep": 106_632_579,
    "ve_cifar10_ddpmpp": 61_870_083, "ve_cifar10_ddpmpp_deep": 106_698_243,
    "vp_cifar10_ncsnpp": 62_693_251, "vp_cifar10_ncsnpp_deep": 107_521_411,
    "subvp_cifar10_ncsnpp": 62_693_251, "subvp_cifar10_ncsnpp_deep": 107_521_411,
    "ve_cifar10_ncsnpp": 62_758_915, "ve_cifar10_ncsnpp_deep": 107_587_075, "ve_celeba64_ncsnpp": 62_693_251,
    "ve_lsun_bedroom_ncsnpp": 65_574_549, "ve_lsun_church_ncsnpp": 65_574_549, "ve_celebahq256_ncsnpp": 65_574_549,
    "ve_ffhq256_ncsnpp": 65_574_549, "ve_ffhq1024_ncsnpp": 105_785_896,
}


def load(name):
    return load_config(str(FOLDER / f"{name}.py"))


def shape_of(data):
    own = data.dataset == "folder"
    if data.get("autoencoder"):
        return LATENT_SHAPES[data.autoencoder]
    channels, *sides = (data.channels, data.image_size, data.image_size) if own else SHAPES[data.dataset]
    return (channels, *(side // data.get("reduce", 1) for side in sides))


def test_every_config_is_listed_here():
    assert sorted(PARAMETERS) == config_names()


@pytest.mark.parametrize("name", PARAMETERS)
def test_its_network_has_its_published_size(name):
    config = load(name)
    with torch.device("meta"):
        denoiser = build_denoiser(config, PAIRS.get(name) or shape_of(config.data))
    assert sum(p.numel() for p in denoiser.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "sde"), [
    (r"vp_.*", "VPSDE(beta_min=0.1, beta_max=20.0)"), (r"subvp_.*", "SubVPSDE(beta_min=0.1, beta_max=20.0)"),
    (r"ve_cifar10.*", "VESDE(sigma_min=0.01, sigma_max=50.0)"), (r"edm_.*", "VESDE(sigma_min=0.002, sigma_max=80.0)"),
    (r"ve_celeba64_.*", "SMLDChainSDE(sigma_min=0.01, sigma_max=90.0, steps=1000"),
    (r"ve_lsun_bedroom_.*", "VESDE(sigma_min=0.01, sigma_max=378.0)"),
    (r"ve_lsun_church_.*", "VESDE(sigma_min=0.01, sigma_max=380.0)"),
    (r"ve_(celebahq|ffhq)256_.*", "VESDE(sigma_min=0.01, sigma_max=348.0)"),
    (r"ve_ffhq1024_.*", "VESDE(sigma_min=0.01, sigma_max=1348.0)"),
])
def test_its_sde_is_as_published(name, sde):
    matching = [config for config in config_names() if re.fullmatch(name, config)]
    assert matching and all(repr(build_sde(load(config))).startswith(sde) for config in matching)


@pytest.mark.parametrize("name", [n for n in PARAMETERS if n.endswith(("ddpmpp", "ncsnpp", "deep"))])
def test_its_training_is_that_of_score_sde(name):
    """Song et al. 2021, appendix H.1 and H.3, and their published configs."""
    config = load(name)
    training, model, exploding, size = config.training, config.model, name.startswith("ve_"), shape_of(config.data)[1]
    assert training.batch_size == {32: 128, 64: 128, 256: 64, 1024: 8}[size]
    assert training.steps == (2_400_000 if size >= 256 else 950_000 if name.endswith("deep") else 1_300_000)
    assert training.ema_decay == (0.999 if exploding and size < 1024 else 0.9999)
    summed = exploding and size < 1024      # there the loss is half the sum over a picture, elsewhere the mean
    scale = 2 / (3 * size * size) if summed else 1.0
    assert (training.learning_rate, training.warmup) == (2e-4, 5000)
    assert (training.grad_clip, training.adam_eps) == pytest.approx((scale, 1e-8 * scale))
    assert model.dropout == (0.0 if size >= 256 else 0.1)
    assert (config.data.low, config.data.high, config.data.flip) == (0.0 if exploding else -1.0, 1.0, True)
    assert model.centred is not exploding and model.input_std is None
    assert model.fir == ("ncsnpp" in name) and model.parametrization == "eps"
    told = ("positional", "999t") if not exploding else ("positional", "index") if size == 64 else ("fourier", "log_sigma")
    assert (model.embedding, model.time_input) == told
    assert model.last_label == (999 if size == 64 else None)


def test_edm_cifar10_is_trained_as_published():
    """Karras et al. 2022, table 1 and appendix F.2; durations there are in examples."""
    config = load("edm_cifar10")
    training, model, size = config.training, config.model, config.training.batch_size
    assert (size, training.learning_rate, model.dropout, model.input_std) == (512, 1e-3, 0.13, 0.5)
    assert size * training.steps == 200_000_000
    assert size * training.warmup == pytest.approx(10_000_000, rel=1e-4)
    assert size * math.log(0.5) / math.log(training.ema_decay) == pytest.approx(500_000, rel=1e-3)      # its half-life
    assert (model.parametrization, model.time_input, training.weighting, training.importance) == (
        "edm", "c_noise", "edm", True)
    assert (config.data.low, config.data.high) == (-1.0, 1.0)      # the data whose standard deviation is input_std


def parent_of(tree):
    module, = (alias.name for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "scorefield.configs"
               for alias in node.names)
    return module


def settings_of(tree):
    """What a config file says: the fields that it sets, and those that a new section gives beside the class's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "renew":
            section = node.args[1].value
            yield section, SECTIONS[section].word, True
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
                section = node.targets[0].attr
                yield section, SECTIONS[section].word, True
                yield from ((section, keyword.arg, False) for keyword in node.value.keywords)
            else:
                owner = node.targets[0].value
                yield getattr(owner, "attr", getattr(owner, "id", None)), node.targets[0].attr, False


@pytest.mark.parametrize("name", config_names())
def test_it_says_only_what_differs_from_its_parent_or_from_the_class(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    ours, theirs = load(name), load(parent_of(tree))
    says = list(settings_of(tree))
    renewed = {section for section, _, whole in says if whole}
    assert says
    for section, field, whole in says:
        if whole:
            assert ours[section][field] != theirs[section][field], f"{section}.{field}"
        elif section in renewed:
            defaults = SECTIONS[section].complete({SECTIONS[section].word: ours[section][SECTIONS[section].word]})
            assert ours[section][field] != defaults[field], f"{section}.{field}"
        else:
            assert ours[section][field] != theirs[section][field], f"{section}.{field}"
