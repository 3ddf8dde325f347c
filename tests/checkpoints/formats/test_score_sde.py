"""Checkpoints of score_sde_pytorch: scores of the reference, training state, the way back, and what is refused."""

import ast
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from scorefield.checkpoints import Checkpoint, load_denoiser
from scorefield.checkpoints.checkpoint import merged
from scorefield.checkpoints.formats.pickles import read_pickle
from scorefield.checkpoints.formats.score_sde import config_of_reference, read
from scorefield.checkpoints.formats.score_sde import write as write_back
from scorefield.checkpoints.formats.score_sde_layout import infer_settings, sources
from scorefield.checkpoints.formats.score_sde_training import loss_ratio
from scorefield.models import NCSNpp, build_denoiser, build_sde

ORACLES = [Path(__file__).parents[2] / "oracles", Path(__file__).parents[4] / "shared" / "oracles" / "score_sde_ckpt"]
SMALL = {"image_size": 16, "channels": 2, "width": 8, "multipliers": (1, 2), "num_blocks": 2,
         "attention_resolutions": (16,), "skip_rescale": True, "groups": None, "progressive_input": "none",
         "progressive": "none", "combine": "sum", "fir": False, "embedding": "positional", "block": "biggan"}
SHARE = 2 / (2 * 16 * 16)      # of half the sum over a picture of SMALL, which is the reference's loss for VE, our mean
DDPM = {"block": "ddpm", "skip_rescale": False, "groups": 4}
PLUS = {"fir": True, "progressive_input": "residual"}
WIDE = {"fir": True, "progressive_input": "input_skip", "progressive": "output_skip", "embedding": "fourier"}


def reference_tensors(network, negated=False, draw=torch.randn):
    """Tensors as score_sde_pytorch names and orders them, for a network like this one."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    keys = {key: source.shape(shapes[name]) for name, source in sources(network, negated).items() for key in source.keys}
    return {"sigmas": torch.linspace(50, 0.01, 10).double()} | {key: 0.1 * draw(shape) for key, shape in keys.items()}


@pytest.fixture
def state():
    """A checkpoint of a small NCSN++ for VE, after one step of Adam over all its parameters but the fixed ones."""
    torch.manual_seed(0)
    tensors = reference_tensors(NCSNpp(**SMALL | WIDE))
    trained = [key for key in tensors if key not in ("sigmas", "all_modules.0.W")]
    parameters = [torch.nn.Parameter(tensors[key].clone()) for key in trained]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    adam = torch.optim.Adam(parameters)
    adam.step()
    return {"optimizer": adam.state_dict(), "model": {f"module.{key}": tensor for key, tensor in tensors.items()},
            "ema": {"decay": 0.99, "num_updates": 7, "shadow_params": [tensors[key] + 1 for key in trained]}, "step": 7}


@pytest.fixture
def write(tmp_path):
    def write(state, **options):
        torch.save(state, tmp_path / "checkpoint.pth", **options)
        return tmp_path / "checkpoint.pth"
    return write


@pytest.fixture(params=["ncsnpp_ve_raw", "ddpm_vp_small", "ddpmpp_vp_small", "ncsnpp_ve_small"])
def published(request):
    """A checkpoint of the reference, its .json and .npz beside it; only the first is in this repository."""
    found = [folder / f"{request.param}.pth" for folder in ORACLES if (folder / f"{request.param}.pth").is_file()]
    if not found:
        pytest.skip(f"{request.param}.pth is not there")
    return found[0]


# The reference's scores


@pytest.mark.parametrize("told_by", ["file", "config"])
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_scores_equal_the_references(published, weights, told_by):
    config = json.loads(published.with_suffix(".json").read_text())["config"]
    known = {"data": {"image_size": 16}} if told_by == "file" else config_of_reference(config)
    denoiser = read(published, known).denoiser(ema=weights == "ema")
    with np.load(published.with_suffix(".npz")) as arrays:
        x, t, expected = (torch.from_numpy(arrays[k]) for k in ("x", "t", f"score_{weights}_weights"))
    for time, tolerance in ((t.double(), 1e-5), (t, 1e-4)):      # float32 log sigma times large frequencies
        with torch.no_grad():
            score = denoiser.score(x, time)
        error = (score - expected).flatten(1).abs().amax(1) / expected.flatten(1).abs().amax(1)
        assert float(error.max()) < tolerance
    assert not denoiser.training


def test_the_file_alone_tells_what_its_config_does(published):
    reference = json.loads(published.with_suffix(".json").read_text())
    wanted = config_of_reference(reference["config"])
    imported = read(published, {"data": {"image_size": 16}})
    told = imported.config
    untold = ("dropout", "fourier_scale")
    assert {k: told["model"].get(k) for k in wanted["model"] if k not in untold} == {
        k: v for k, v in wanted["model"].items() if k not in untold}
    assert told["shape"] == wanted["shape"] and told["data"]["low"] == wanted["data"]["low"]
    assert vars(build_sde(ConfigDict(told))) == vars(build_sde(ConfigDict(wanted)))
    assert imported.step == 1234
    assert told["training"]["ema_decay"] == reference["config"]["model"]["ema_rate"]
    network = imported.denoiser().network
    fixed = [p for n, p in network.named_parameters() if n == "fourier.frequencies"]
    assert sum(p.numel() for p in network.parameters()) == reference["params"]
    assert len(fixed) == (wanted["sde"]["name"] == "ve")


@pytest.mark.parametrize("published", ["ddpmpp_vp_small"], indirect=True)
def test_a_numpy_scalar_learning_rate_becomes_a_float(published):
    group, = read(published).optimizer["param_groups"]
    assert type(group["lr"]) is float and group["lr"] == 4.936e-05


# Which network a file needs

REFERENCE = {"data": {"image_size": 16, "num_channels": 3, "centered": True}, "model": {
    "name": "ncsnpp", "nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.1}}


@pytest.mark.parametrize(("config", "match"), [
    ({}, "no model.name"), ({"model": {"name": "ncsnv2"}}, "'ncsnv2'; choose from ddpm, ncsnpp"),
    ({"model": {"name": "ncsnpp", "conditional": False}}, "conditional = False"),
    ({"model": {"name": "ncsnpp", "fir_kernel": [1, 2, 1]}}, "fir_kernel"),
    ({"model": {"name": "ddpm"}}, "no model.nf"),
], ids=str)
def test_a_configuration_that_cannot_be_imported_is_a_value_error(config, match):
    with pytest.raises(ValueError, match=match):
        config_of_reference(config)


def test_the_sde_of_a_configuration_is_one_of_three():
    with pytest.raises(ValueError, match="choose from vpsde, subvpsde, vesde"):
        config_of_reference(REFERENCE | {"training": {"sde": "edm"}})
    with pytest.raises(ValueError, match="no model.beta_min"):
        config_of_reference(REFERENCE | {"training": {"sde": "subvpsde"}})


def test_a_configuration_tells_whether_its_loss_is_a_mean_and_its_network_is_divided_by_sigma():
    ends = {"beta_min": 0.1, "beta_max": 20, "sigma_min": 0.01, "sigma_max": 50, "scale_by_sigma": True}
    config = REFERENCE | {"model": REFERENCE["model"] | ends, "training": {"sde": "vesde"}}
    assert config_of_reference(config)["reduce_mean"] is False
    assert config_of_reference(config | {"training": {"sde": "vesde", "reduce_mean": True}})["reduce_mean"] is True
    with pytest.raises(ValueError, match="scale_by_sigma = True under 'vp' cannot be imported, only False"):
        config_of_reference(config | {"training": {"sde": "vpsde"}})


@pytest.mark.parametrize(("sde", "continuous", "expected"), [
    ("vpsde", True, {"name": "vp", "beta_min": 0.1, "beta_max": 20.0}),
    ("vpsde", False, {"name": "ddpm", "beta_min": 0.1, "beta_max": 20.0, "steps": 500}),
    ("vesde", False, {"name": "smld", "sigma_min": 0.01, "sigma_max": 50.0, "steps": 500})])
def test_discrete_training_is_that_of_a_chain(sde, continuous, expected):
    ends = {"beta_min": 0.1, "beta_max": 20, "sigma_min": 0.01, "sigma_max": 50, "num_scales": 500}
    config = REFERENCE | {"model": REFERENCE["model"] | ends, "training": {"sde": sde, "continuous": continuous}}
    assert config_of_reference(config)["sde"] == expected


@pytest.mark.parametrize("flags", [
    {}, DDPM, PLUS, WIDE, WIDE | {"combine": "cat"}, DDPM | PLUS, {"num_blocks": 1}, DDPM | {"num_blocks": 1},
    {"multipliers": (1,)}, {"image_size": 64, "multipliers": (1, 1, 2, 2), "num_blocks": 3},
    {"image_size": 32, "multipliers": (1, 2, 2), "attention_resolutions": (16, 8)},
    DDPM | {"image_size": 32, "multipliers": (1, 2, 2), "attention_resolutions": (16, 8)},
    {"image_size": 64, "multipliers": (1, 2, 2), "attention_resolutions": (16,)},
    DDPM | {"progressive_input": "input_skip", "combine": "cat", "progressive": "output_skip"},
    DDPM | {"progressive_input": "residual"}], ids=str)
def test_names_and_shapes_tell_the_network(flags):
    settings = SMALL | flags
    with torch.device("meta"):
        tensors = reference_tensors(NCSNpp(**settings), draw=torch.empty)
    untold = {"groups", "skip_rescale"} | (set() if settings["attention_resolutions"] else {"image_size"})
    assert {k: v for k, v in infer_settings(tensors).items() if k not in untold} == {
        k: v for k, v in settings.items() if k not in untold}


def test_both_fir_and_skip_rescale_may_be_given(state, write):
    imported = read(write(state), {"model": {"fir": False, "skip_rescale": False}})
    assert imported.config["model"]["fir"] is False and imported.denoiser().network.scale == 1


def test_a_chain_with_positional_embedding_counts_its_labels_down(write, state):
    tensors = reference_tensors(NCSNpp(**SMALL))
    state |= {"model": tensors, "optimizer": None}
    state["ema"]["shadow_params"] = [tensors[k] for k in tensors if k != "sigmas"]
    imported = read(write(state), {"sde": {"name": "smld"}})
    model = imported.config["model"]
    assert model["last_label"] == 9 and model["time_input"] == "index" and model["centred"] is False      # of ten sigmas
    assert imported.config["sde"] == {"name": "smld", "sigma_min": 0.01, "sigma_max": 50, "steps": 10}
    with pytest.raises(ValueError, match="sde.name = smld"):
        read(write(state), {"sde": {"name": "ve"}})


def test_a_network_trained_on_ddpms_chain_is_told_its_indices(write, state):
    tensors = reference_tensors(NCSNpp(**SMALL))
    state |= {"model": tensors, "optimizer": None}
    state["ema"]["shadow_params"] = [tensors[k] for k in tensors if k != "sigmas"]
    assert read(write(state)).config["model"]["time_input"] == "999t"
    state["model"]["sigmas"] = torch.ones(100)
    model = read(write(state), {"sde": {"name": "ddpm", "steps": 100}}).config["model"]
    assert read(write(state), {"sde": {"name": "ddpm"}}).config["sde"] == {"name": "ddpm", "steps": 100}
    with pytest.raises(ValueError, match="sde.steps=100, not 1000"):
        read(write(state), {"sde": {"name": "ddpm", "steps": 1000}})
    assert model["time_input"] == "index" and model.get("last_label") is None and model["centred"] is True


def test_a_chain_without_sigmas_asks_for_all_that_makes_one(write, state):
    tensors = {key: tensor for key, tensor in reference_tensors(NCSNpp(**SMALL)).items() if key != "sigmas"}
    state |= {"model": tensors, "optimizer": None}
    state["ema"]["shadow_params"] = list(tensors.values())
    given = {"name": "smld", "sigma_min": 0.01, "sigma_max": 50.0}
    with pytest.raises(ValueError, match=r"does not store its steps \(no key sigmas\); give sde.steps$"):
        read(write(state), {"sde": given})
    assert read(write(state), {"sde": given | {"steps": 20}}).config["model"]["last_label"] == 19


@pytest.mark.parametrize(("sde", "told"), [({"sigma_max": 50.0, "sigma_min": 0.01}, None), ({"sigma_max": 49.0}, 50.0)])
def test_sigmas_of_the_file_may_be_repeated_but_not_changed(write, state, sde, told):
    state["model"]["module.sigmas"] = torch.linspace(np.log(50), np.log(0.01), 10).exp()      # in float32
    if told is None:
        assert read(write(state), {"sde": sde}).config["sde"] == {"name": "ve", **sde}
    else:
        with pytest.raises(ValueError, match="trained with sde.sigma_max=50.0, not 49.0"):
            read(write(state), {"sde": sde})


# The weights and the training state


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_raw_and_averaged_weights_stand_where_the_reference_has_them(state, write, options):
    imported = read(write(state, **options))
    model = {key.removeprefix("module.all_modules."): tensor for key, tensor in state["model"].items()}
    raw, averaged = imported.raw, imported.averaged
    assert all(torch.equal(weights["fourier.frequencies"], model["0.W"]) for weights in (raw, averaged))
    assert torch.equal(raw["conv_in.weight"], model["3.weight"])
    torch.testing.assert_close(averaged["conv_in.weight"], model["3.weight"] + 1)
    qkv = torch.cat([model[f"5.NIN_{n}.W"].T for n in range(3)])[:, :, None, None]
    assert torch.equal(raw["down.0.attentions.0.qkv.weight"], qkv)
    heads = [key for key in raw if key.endswith("head.conv.weight")]
    last = max(int(key.split(".")[0]) for key in model if key != "module.sigmas")
    assert len(heads) == 2 and torch.equal(raw[heads[-1]], -model[f"{last}.weight"])      # sigma score is -eps
    assert all(torch.equal(v, raw[k]) for k, v in imported.denoiser(ema=False).network.state_dict().items())


def test_the_optimisers_state_goes_on_with_the_same_steps(state, write):
    imported = read(write(state))
    network = imported.denoiser(ema=False).network.requires_grad_(True)
    ours = torch.optim.Adam(network.parameters())
    ours.load_state_dict(imported.optimizer)
    theirs = {key: torch.nn.Parameter(tensor.clone()) for key, tensor in state["model"].items()}
    trained = [key for key in theirs if key not in ("module.sigmas", "module.all_modules.0.W")]
    reference = torch.optim.Adam([theirs[key] for key in trained])
    reference.load_state_dict(state["optimizer"])
    gradients = {key.removeprefix("module."): torch.randn_like(parameter) for key, parameter in theirs.items()}
    plan = sources(network, negated=True)
    for name, parameter in network.named_parameters():
        if name != "fourier.frequencies":
            parameter.grad = plan[name].read(gradients) * SHARE
    for key in trained:
        theirs[key].grad = gradients[key.removeprefix("module.")]
    ours.step()
    reference.step()
    after = {key.removeprefix("module."): parameter.detach() for key, parameter in theirs.items()}
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), plan[name].read(after), rtol=1e-5, atol=1e-7)
    assert (imported.step, imported.ema_updates, imported.config["training"]) == (
        7, 7, {"ema_decay": 0.99, "beta1": 0.9, "beta2": 0.999, "adam_eps": 1e-8 * SHARE, "grad_clip": SHARE})


def test_an_optimiser_over_the_fixed_frequencies_too_is_understood(state, write):
    group = state["optimizer"]["param_groups"][0]
    state["optimizer"]["state"] = {i + 1: v for i, v in state["optimizer"]["state"].items()}
    expected = read(write(state | {"optimizer": None})).optimizer
    assert expected is None
    group["params"] = list(range(len(group["params"]) + 1))
    converted = read(write(state)).optimizer
    network = read(write(state)).denoiser().network
    names = [name for name, _ in network.named_parameters()]
    assert set(range(len(names))) - set(converted["state"]) == {names.index("fourier.frequencies")}


# What is refused


def drop(key):
    return lambda state: state["model"].pop(key)


def put(key, tensor):
    return lambda state: state["model"].update({key: tensor})


@pytest.mark.costly
@pytest.mark.parametrize(("spoil", "match"), [
    (drop("module.all_modules.4.Conv_0.bias"), r"1 missing \(all_modules.4.Conv_0.bias\)"),
    (drop("module.all_modules.4.Conv_0.weight"), "all_modules.4.Conv_0.weight is missing"),
    (drop("module.all_modules.3.weight"), "all_modules.3.weight is missing"),
    (put("module.all_modules.4.Conv_7.bias", torch.zeros(3)), r"1 extra \(all_modules.4.Conv_7.bias\)"),
    (put("module.all_modules.99.weight", torch.zeros(3)), "all_modules.[0-9]+.* is missing"),
    (put("module.all_modules.4.Conv_1.weight", torch.zeros(3, 3)), r"Conv_1.weight is \(3, 3\) instead of \(8, 8, 3, 3\)"),
    (put("module.sigmas", torch.zeros(())), "sigma_min"),
    (lambda state: state["model"].clear(), "expected keys such as module.all_modules.0.weight, found none"),
    (lambda state: state.update(model={"net.conv.weight": torch.zeros(1)}), "found net.conv.weight"),
    (lambda state: state.update(model={f"model.{k}": v for k, v in state["model"].items()}), "remove any prefix"),
    (lambda state: state.update(model=[1]), "not a mapping"),
    (lambda state: state.pop("ema"), "expected the keys optimizer, model, ema, step, found optimizer, model, step"),
    (lambda state: state["ema"]["shadow_params"].pop(), "shadow_params.*some of other shapes"),
    (lambda state: state["ema"].pop("decay"), "should have a decay"),
    (lambda state: state.update(step="many"), "are not numbers"),
    (lambda state: state["optimizer"]["param_groups"][0]["params"].pop(), "is not Adam's"),
], ids=range(16))
def test_what_does_not_fit_is_one_line_with_the_keys_and_what_to_do(state, write, spoil, match):
    spoil(state)
    path = write(state)
    with pytest.raises(ValueError, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_many_keys_that_differ_are_counted_and_the_first_named(state, write):
    settings = {k: v for k, v in (SMALL | {"num_blocks": 1}).items() if k not in ("image_size", "channels")}
    with pytest.raises(ValueError, match=r"extra \(all_modules\.\S+, \S+, \S+ and \d+ more\).*give the settings"):
        read(write(state), {"model": settings, "shape": [2, 16, 16], "sde": {"name": "smld"}})


def test_another_architecture_is_refused_by_name(state, write):
    with pytest.raises(ValueError, match="model.network='ncsnpp', not 'unet'"):
        read(write(state), {"model": {"network": "unet"}})


@pytest.mark.parametrize("config", [{"model": {"depth": 3}}, {"model": {"block": "resnet"}}, {"data": {"image_size": 15}}],
                         ids=str)
def test_settings_that_no_network_has_name_the_file(state, write, config):
    with pytest.raises(ValueError, match="checkpoint.pth: no network has these settings"):
        read(write(state), config)


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, 0.99])
def test_a_truncated_file_is_named(state, write, keep):
    path = write(state)
    content = path.read_bytes()
    path.write_bytes(content[:keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match="checkpoint.pth is truncated, altered or not a checkpoint"):
        read(path)


def test_a_flipped_bit_is_found(state, write):
    path = write(state)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not match|truncated, altered"):
        read(path)


class Payload:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["model", "ema", "step", "optimizer"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(state, write, tmp_path, where, options):
    mark = tmp_path / "ran"
    path = write(state | {where: Payload(os.mkdir, str(mark))}, **options)
    with pytest.raises(ValueError, match="refused, and nothing of it was run: its pickle uses posix.mkdir"):
        read(path)
    assert not mark.exists()


@pytest.mark.parametrize("foreign", [np.zeros(2), np.array([Payload(print)], dtype=object), Path("x"), np.str_("a"),
                                     np.complex128(1), np.datetime64(0, "s")], ids=lambda v: type(v).__name__)
def test_of_numpy_only_scalar_numbers_are_read(state, write, foreign):
    with pytest.raises(ValueError, match="checkpoint.pth"):
        read(write(state | {"extra": foreign}))


@pytest.mark.parametrize("number", [np.float64(0.1), np.float32(0.5), np.int64(-3), np.uint8(7), np.bool_(True),
                                    np.array(0.1, ">f8")[()], np.array([2.5], ">f4").view(">f4")[0]], ids=repr)
def test_numpy_numbers_become_pythons(state, write, number):
    state["optimizer"]["param_groups"][0]["lr"] = number
    lr = read(write(state)).optimizer["param_groups"][0]["lr"]
    assert lr == number.item() and type(lr) is type(number.item())


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.pth")


def test_load_denoiser_takes_the_file_as_it_takes_a_run(state, write):
    path, x = write(state), torch.rand(2, 2, 16, 16)
    for ema in (True, False):
        expected = read(path).denoiser(ema).score(x, 0.5)
        assert torch.equal(load_denoiser(path, ema).score(x, 0.5), expected)


# The way back


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_what_is_written_back_is_the_file_that_was_read(published, tmp_path):
    write_back(read(published), tmp_path / "back.pth")
    theirs, ours = read_pickle(published), read_pickle(tmp_path / "back.pth")
    assert list(theirs["model"]) == list(ours["model"])
    for key in theirs["model"]:
        torch.testing.assert_close(ours["model"][key], theirs["model"][key], rtol=1e-6 if "sigmas" in key else 0, atol=0,
                                   check_dtype="sigmas" not in key)
    assert same(theirs["ema"]["shadow_params"], ours["ema"]["shadow_params"])
    assert ours["step"] == theirs["step"] and ours["ema"]["decay"] == theirs["ema"]["decay"]
    assert same(theirs["optimizer"]["state"], ours["optimizer"]["state"])
    parameters = len(theirs["model"]) - 1      # all of them, as the reference's Adam has it; the oracles' leaves out W
    assert len(ours["optimizer"]["param_groups"][0]["params"]) == parameters


def test_a_file_without_an_optimiser_is_written_with_one_before_its_first_step(state, write, tmp_path):
    write_back(read(write(state | {"optimizer": None})), tmp_path / "back.pth")
    optimizer = read_pickle(tmp_path / "back.pth")["optimizer"]
    assert optimizer["state"] == {} and len(optimizer["param_groups"][0]["params"]) == len(state["model"]) - 1


@pytest.mark.costly
@pytest.mark.parametrize(("change", "match"), [
    ({"model": {"network": "unet"}}, "no network 'unet'"), ({"sde": {"name": "cosine"}}, "no SDE 'cosine'"),
    ({"model": {"time_input": "half_log_snr"}}, "model.time_input is 'log_sigma'"),
    ({"model": {"parametrization": "v"}}, "model.parametrization is 'eps'"),
    ({"model": {"input_std": 0.5}}, "model.input_std is None, here it is 0.5"),
    ({"sde": {"name": "ddpm", "schedule": "cosine"}}, "schedule 'cosine'"),
    ({"sde": {"name": "ddpm", "betas": (0.1, 0.2)}}, r"schedule \(0.1, 0.2\)"),
    ({"model": {"norm_eps": 1e-5}}, "model.norm_eps is 1e-06, here it is 1e-05"),
    ({"model": {"freq_shift": 0}}, "model.freq_shift is 1, here it is 0"),
    ({"model": {"attention_head_dim": 4}}, "model.attention_head_dim is None"),
    ({"model": {"groups": 4}}, "model.groups is None"), ({"model": {"block": "ddpm", "groups": 4}}, "model.groups is 32"),
    ({"sde": {"name": "vp"}, "model": {"time_input": "999t"}, "data": {"low": -1.0}}, "here 'vp' has 'fourier'"),
    ({"model": {"embedding": "positional", "time_input": "999t"}}, "here 've' has 'positional'"),
    ({"model": {"classes": 3}}, "model.classes is None, here it is 3"), ({"model": {"scale_shift": True}}, "scale_shift is"),
    ({"model": {"middle_norm": False}}, "model.middle_norm is True"),
    ({"model": {"last_label": 9}}, "model.last_label is None"), ({"model": {"centred": True}}, "model.centred is False"),
    ({"data": {"low": -1.0}}, "data.low is 0.0"), ({"data": {"high": 2.0}}, "data.high is 1.0"),
    ({"sde": {"name": "smld", "steps": 10}, "model": {"embedding": "positional", "time_input": "index", "last_label": 8}},
     "model.last_label is 9, here it is 8")], ids=str)
def test_what_the_reference_does_not_have_is_not_written(state, write, tmp_path, change, match):
    imported = read(write(state))
    changed = merged(imported.config, change)
    if changed["model"]["network"] == "unet":
        changed["model"] = {"network": "unet"}
    foreign = dataclasses.replace(imported, config=changed)
    with pytest.raises(ValueError, match=match):
        write_back(foreign, tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()


@pytest.mark.parametrize("length", [10, 2000])
def test_as_many_sigmas_are_written_as_were_read(state, write, tmp_path, length):
    state["model"]["module.sigmas"] = torch.logspace(2, -2, length)
    write_back(read(write(state)), tmp_path / "back.pth")
    sigmas = read_pickle(tmp_path / "back.pth")["model"]["module.sigmas"]
    torch.testing.assert_close(sigmas, state["model"]["module.sigmas"].double(), rtol=1e-5, atol=0)


def test_without_a_file_to_follow_there_are_as_many_as_published(state, write, tmp_path):
    imported = read(write(state))
    for size, length in ((16, 1000), (256, 2000)):
        config = merged(imported.config, {"shape": [2, size, size], "model": {"attention_resolutions": (size,)}})
        del config["num_scales"]
        write_back(dataclasses.replace(imported, config=config), tmp_path / f"{size}.pth")
        assert len(read_pickle(tmp_path / f"{size}.pth")["model"]["module.sigmas"]) == length


@pytest.mark.parametrize("mean", [True, False, None])
def test_adams_state_is_in_our_units_of_the_loss_and_back_in_the_files(state, write, tmp_path, mean):
    imported = read(write(state), None if mean is None else {"reduce_mean": mean})
    factor = 1 if mean else SHARE
    theirs = state["optimizer"]["state"][3]["exp_avg"]      # of the bias of the second layer of time
    names = [name for name, _ in imported.denoiser().network.named_parameters()]
    ours = imported.optimizer["state"][names.index("time.2.bias")]["exp_avg"]
    torch.testing.assert_close(ours, theirs * factor, rtol=1e-6, atol=0)
    assert imported.config["training"]["grad_clip"] == factor
    assert imported.config["training"]["adam_eps"] == pytest.approx(1e-8 * factor)
    changed = merged(imported.config, {"training": {"grad_clip": 0.5}})      # no matter of units
    write_back(dataclasses.replace(imported, config=changed), tmp_path / "back.pth")
    back = read_pickle(tmp_path / "back.pth")["optimizer"]
    torch.testing.assert_close(back["state"][4]["exp_avg"], theirs, rtol=1e-6, atol=0)      # W is counted there
    note = write_back(imported, tmp_path / "again.pth")
    assert ("config={'reduce_mean': True}" in note) == (mean is True)
    assert back["param_groups"][0]["eps"] == pytest.approx(1e-8)


def test_published_losses_are_means_but_for_ve_below_1024_pixels():
    config = {"sde": {"name": "ve"}, "shape": [3, 1024, 1024]}
    assert loss_ratio(config) == 1 and loss_ratio(config | {"shape": [3, 256, 256]}) == 3 * 256 * 256 / 2
    assert loss_ratio(config | {"sde": {"name": "vp"}, "shape": [3, 8, 8]}) == 1
    assert loss_ratio(config | {"reduce_mean": False}) == 3 * 1024 * 1024 / 2


@pytest.mark.parametrize(("change", "flags"), [
    ({"shape": [2, 32, 32], "model": {"attention_resolutions": (32,)}}, "data.image_size=32"), (
    {"sde": {"name": "vp", "beta_max": 10.0}}, "sde.beta_max=10.0"),
    ({"sde": {"name": "subvp"}, "model": {"skip_rescale": False, "dropout": 0.3}},
     "model.dropout=0.3 model.skip_rescale=False sde.name=subvp"),
    ({"model": {"fir": True}}, "model.fir=True"), ({"training": {"learning_rate": 1e-3}}, "=0.001")], ids=str)
def test_what_a_file_does_not_tell_is_said_when_it_is_written(write, state, tmp_path, change, flags):
    network = NCSNpp(**SMALL)
    config = {"sde": {"name": "vp"}, "shape": [2, 16, 16], "levels": 256, "data": {"low": -1.0, "high": 1.0},
              "model": {k: v for k, v in SMALL.items() if k not in ("image_size", "channels")} | {
                  "network": "ncsnpp", "parametrization": "eps", "time_input": "999t"}}
    checkpoint = Checkpoint(merged(config, change), network.state_dict())
    note = write_back(checkpoint, tmp_path / "x.pth")
    assert note.startswith("to read it back give ") and note.endswith(flags)
    told = {}
    for word in note.removeprefix("to read it back give ").split():
        (section, field), value = word.partition("=")[0].split("."), word.partition("=")[2]
        told.setdefault(section, {})[field] = value if field == "name" else ast.literal_eval(value)
    x = torch.randn(1, *checkpoint.config["shape"])
    assert torch.equal(read(tmp_path / "x.pth", told).denoiser().score(x, 0.5), checkpoint.denoiser().score(x, 0.5))


def test_a_model_of_latents_is_written_as_large_as_they_are(write, state, tmp_path):
    latents = {"shape": [2, 32, 32], "mean": [0.0, 0.0], "std": [1.0, 1.0], "decoder_std": 1.0, "digest": "abc"}
    config = {"sde": {"name": "vp"}, "shape": [3, 256, 256], "levels": 256, "data": {"low": -1.0, "high": 1.0},
              "latents": latents, "model": {k: v for k, v in SMALL.items() if k not in ("image_size", "channels")} | {
                  "network": "ncsnpp", "parametrization": "eps", "time_input": "999t", "attention_resolutions": (32,)}}
    network = build_denoiser(config, latents["shape"]).network
    note = write_back(Checkpoint(config, network.state_dict()), tmp_path / "x.pth")
    assert "data.image_size=32;" in note and "samples x are latents of the autoencoder abc" in note
    assert len(read_pickle(tmp_path / "x.pth")["model"]["module.sigmas"]) == 1000


def test_a_constant_average_does_not_begin_anew(state, write):
    state["ema"]["num_updates"] = None      # use_num_updates = False
    assert read(write(state)).ema_updates == state["step"]


def test_adams_state_is_written_back_over_the_same_parameters(state, write, tmp_path):
    first = read(write(state))
    write_back(first, tmp_path / "back.pth")
    again = read(tmp_path / "back.pth")
    assert first.optimizer["state"] and same(first.optimizer["state"], again.optimizer["state"])
    assert (again.step, again.ema_updates) == (7, 7)


def test_adams_moments_are_written_as_the_file_had_them(state, write, tmp_path):
    """Also of weights whose sign we turn: the second moment stays positive."""
    write_back(read(write(state)), tmp_path / "back.pth")
    back = read_pickle(tmp_path / "back.pth")
    names = [key for key in back["model"] if key != "module.sigmas"]
    ours = {names[i]: entry for i, entry in back["optimizer"]["state"].items()}
    trained = [key for key in state["model"] if key not in ("module.sigmas", "module.all_modules.0.W")]
    assert set(ours) == set(trained) and all(entry["exp_avg_sq"].min() >= 0 for entry in ours.values())
    for key, theirs in zip(trained, state["optimizer"]["state"].values(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours[key][moment], theirs[moment], rtol=1e-5, atol=0)


def test_averages_are_the_raw_weights_when_asked(state, write, tmp_path):
    imported = read(write(state))
    write_back(imported, tmp_path / "back.pth", ema=False)
    again = read(tmp_path / "back.pth")
    assert same(again.averaged, imported.raw) and same(again.raw, imported.raw)
