"""Sections of a config: exactly the fields of the class that they name, with that class's defaults."""

import inspect
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from scorefield.configs.default import get_config
from scorefield.configs.loading import all_fields, apply, from_stored
from scorefield.configs.sections import SECTIONS, data, declared, model, renew, require_sections, sde, section, training
from scorefield.models.networks.unet import UNet
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE


def test_a_section_has_the_arguments_of_its_class_with_their_defaults():
    arguments = inspect.signature(UNet).parameters.items()
    own = {name: p.default for name, p in arguments if name not in ("image_size", "channels")}
    assert own.items() <= model("unet").to_dict().items()
    assert sde("vp").to_dict() == {"name": "vp"} | {n: p.default for n, p in inspect.signature(VPSDE).parameters.items()}
    assert data("swiss_roll").to_dict() == {"dataset": "swiss_roll", "size": 10_000, "seed": 0}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_class_of_every_section_makes_one(name):
    for word in SECTIONS[name].registry:
        made = section(name, word)
        assert made[SECTIONS[name].word] == word and set(made) == {SECTIONS[name].word, *SECTIONS[name].fields(word)}


@pytest.mark.parametrize(("make", "field"), [
    (lambda: sde("ve", beta_min=0.2), "sde.beta_min"), (lambda: model("mlp", num_blocks=3), "model.num_blocks"),
    (lambda: data("digits", size=3), "data.size"), (lambda: training("classifier", importance=True), "training.importance"),
    (lambda: sde("vpp"), "sde.name"),
])
def test_a_field_of_another_class_is_refused_by_name(make, field):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert caught.value.arguments == (field,)


def test_naming_another_class_brings_its_defaults_and_keeps_what_belongs_to_neither():
    config = get_config()
    config.sde = sde("ve", sigma_max=90.0)
    config.model.time_input, config.model.width = "log_sigma", 64
    config.data.low = 0.0
    renew(config, "sde", "subvp")
    renew(config, "model", "mlp")
    renew(config, "data", "cifar10")
    assert config.sde.to_dict() == sde("subvp").to_dict()
    assert config.model.to_dict() == model("mlp", time_input="log_sigma").to_dict()
    assert config.data.to_dict() == data("cifar10", low=0.0).to_dict()
    renew(config, "data", "swiss_roll")
    assert config.data.to_dict() == data("swiss_roll").to_dict()


@pytest.mark.parametrize(("change", "match"), [
    (("training.batch_size", -3), "batch_size must be above 0, got -3"), (("data.low", 3.0), "low must be below high"),
    (("training.decay", "linear"), "unknown decay 'linear'; choose from constant, cosine"),
    (("training.memory_format", "rows"), "choose from auto, channels_last, contiguous"),
])
def test_numbers_and_words_that_cannot_be_are_refused(change, match):
    config = get_config()
    name, _, field = change[0].partition(".")
    config[name][field] = change[1]
    with pytest.raises(ArgumentError, match=match) as caught:
        require_sections(config)
    assert change[0] in caught.value.arguments


def test_a_section_that_lacks_a_field_says_how_to_choose_a_class():
    config = get_config()
    config.sde = ConfigDict({"name": "ve"})
    expected = r"'sde' lacks sigma_max, sigma_min; choose a class with config.sde = sde\('ve'\)"
    with pytest.raises(ArgumentError, match=expected):
        require_sections(config)


def test_a_required_field_that_is_missing_is_named_when_it_is_needed():
    config = get_config()
    apply(config, [("data.dataset", "folder")])
    with pytest.raises(ArgumentError, match="data.image_size has no default for 'folder'; give it"):
        SECTIONS["data"].split(config.data)


def test_the_type_of_a_field_is_known_for_every_class():
    assert declared("model.fir") is bool and declared("sde.name") is str
    with pytest.raises(ArgumentError, match="no field 'model.firr'; did you mean 'model.fir'"):
        declared("model.firr")


def test_a_run_of_version_0_1_has_the_same_config_in_the_new_form():
    stored = json.loads((Path(__file__).parent / "run_of_version_0_1.json").read_text())
    config = from_stored(stored, "config.json")
    require_sections(config)
    assert config.data.to_dict() == data("digits", dequantize=True).to_dict()
    assert config.sde.to_dict() == sde("vp").to_dict()
    assert config.model.to_dict() == model("unet", time_input="half_log_snr", width=32, multipliers=(1, 2), num_blocks=1,
                                           attention_resolutions=(), dropout=0.0).to_dict()
    assert (config.training.weighting, config.training.importance) == ("likelihood", True)
    assert config.training.memory_format == "auto"
    again = json.loads(json.dumps(config.to_dict()))
    assert all_fields(from_stored(again, "config.json")) == all_fields(config)


@pytest.mark.parametrize(("channels_last", "memory_format"), [
    (None, "auto"), (True, "channels_last"), (False, "contiguous")])
def test_the_memory_format_of_an_older_run_is_kept(channels_last, memory_format):
    stored = json.loads((Path(__file__).parent / "run_of_version_0_1.json").read_text())
    stored["training"]["channels_last"] = channels_last
    assert from_stored(stored, "config.json").training.memory_format == memory_format
