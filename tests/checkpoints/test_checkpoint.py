"""What formats share: configs merged, and keys that do not fit named with what to do."""

import pytest
import torch

from scorefield.checkpoints.checkpoint import Checkpoint, merged, require_agreement, require_fit

EXPECTED = {"a.weight": (2, 3), "a.bias": (2,), "b.weight": (4,)}


def tensors(**changes):
    return {name: torch.zeros(shape) for name, shape in (EXPECTED | changes).items() if shape is not None}


def test_what_is_given_goes_before_what_is_told_and_none_gives_nothing():
    told = {"sde": {"name": "ve", "sigma_max": 50.0}, "shape": [3, 8, 8]}
    assert merged(told, None) == told
    assert merged(told, {"sde": {"name": None, "sigma_max": 30.0}}) == told | {"sde": {"name": "ve", "sigma_max": 30.0}}
    assert merged(told, {"model": {"width": 8}, "shape": None})["model"] == {"width": 8}
    assert told == {"sde": {"name": "ve", "sigma_max": 50.0}, "shape": [3, 8, 8]}      # as it was


def test_another_name_brings_its_own_settings():
    assert merged({"sde": {"name": "ve", "sigma_max": 50.0}}, {"sde": {"name": "vp"}}) == {"sde": {"name": "vp"}}


def test_what_fits_is_accepted():
    require_fit(EXPECTED, tensors(), "x", "do this")


@pytest.mark.parametrize(("changes", "match"), [
    ({"a.bias": None}, r"^x does not fit the network: keys 1 missing \(a.bias\); do this$"),
    ({"c": (1,)}, r"keys 1 extra \(c\); do this"),
    ({"a.weight": (3, 2)}, r"1 of another shape \(a.weight is \(3, 2\) instead of \(2, 3\)\)"),
    ({"a.bias": None, "c": (1,), "d": (1,), "e": (1,), "f": (1,)}, r"1 missing \(a.bias\); 4 extra \(c, d, e and 1 more\)"),
], ids=str)
def test_keys_that_differ_are_listed(changes, match):
    with pytest.raises(ValueError, match=match):
        require_fit(EXPECTED, tensors(**changes), "x", "do this")


def test_weights_that_are_not_finite_are_named():
    spoilt = tensors() | {"b.weight": torch.tensor([0.0, 1.0, float("nan"), 2.0])}
    with pytest.raises(ValueError, match=r"x holds weights that are not finite \(b.weight\); take an earlier checkpoint"):
        require_fit(EXPECTED, spoilt, "x", "do this")


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "unet.module."])
def test_a_wrappers_prefix_is_named(prefix):
    wrapped = {prefix + name: value for name, value in tensors().items()}
    with pytest.raises(ValueError, match=rf"3 missing .*3 extra .*remove the prefix '{prefix}' from the keys"):
        require_fit(EXPECTED, wrapped, "x", "do this")


def test_a_config_of_another_network_names_the_keys():
    config = {"sde": {"name": "vp"}, "data": {}, "shape": [2], "levels": None,
              "model": {"network": "mlp", "parametrization": "eps", "time_input": "999t", "width": 8, "layers": 1}}
    weights = {"layer.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"my file does not fit the network: keys \d+ missing .*1 extra \(layer.weight\)"):
        Checkpoint(config, weights, source="my file").denoiser()


def test_one_set_of_weights_serves_as_both():
    averaged, raw = {"weight": torch.zeros(2)}, {"weight": torch.ones(2)}
    both, one = Checkpoint({}, averaged, raw), Checkpoint({}, averaged)
    assert both.weights() is averaged and both.weights(ema=False) is raw
    assert one.weights() is averaged and one.weights(ema=False) is averaged


def test_fields_that_contradict_are_named_with_their_flag():
    stored = {"sde": {"name": "vp"}, "model": {"network": "ncsnpp", "width": 8, "multipliers": [1, 2]},
              "data": {"low": -1.0}, "shape": [3, 8, 8]}
    require_agreement(stored, {"model": {"multipliers": (1, 2), "width": None}, "data": {"path": "here"}}, "x")
    said = {"sde": {"beta_max": 20.0}, "model": {"block": "biggan", "dropout": 0.5}, "data": {"image_size": 8}}
    require_agreement(stored, said, "x")      # defaults, and what changes training alone
    with pytest.raises(ValueError, match=r"x was trained with model.width=8, not 16$"):
        require_agreement(stored, {"model": {"width": 16}}, "x")
    with pytest.raises(ValueError, match=r"sde.name='vp', not 've', model.block='biggan', not 'ddpm', data.low=-1.0, "
                                         r"not 0.0 \(and 2 more\)$"):
        require_agreement(stored, {"sde": {"name": "ve"}, "model": {"block": "ddpm"}, "shape": [1, 8, 8],
                                   "data": {"low": 0.0, "channels": 1}}, "x")
