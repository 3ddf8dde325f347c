"""Import of score_sde_pytorch's checkpoints: scores of the reference, training state, and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.build import load_denoiser
from models.ncsnpp import NCSNpp
from models.score_sde import infer_settings, load_score_sde, sde_of_reference, settings_of_reference, sources
from sde_lib import VESDE, smld

ORACLES = Path(__file__).parents[3] / "shared" / "oracles" / "score_sde_ckpt"
NAMES = ["ddpm_vp_small", "ddpmpp_vp_small", "ncsnpp_ve_small"]
oracles = pytest.mark.skipif(not ORACLES.is_dir(), reason=f"{ORACLES} is not there")
SMALL = {"image_size": 16, "channels": 2, "width": 8, "multipliers": (1, 2), "num_blocks": 2,
         "attention_resolutions": (16,), "skip_rescale": True, "groups": None, "progressive_input": "none",
         "progressive": "none", "combine": "sum", "fir": False, "embedding": "positional", "block": "biggan"}
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


# The reference's scores


@oracles
@pytest.mark.parametrize("told_by", ["file", "config"])
@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_references(name, weights, told_by):
    config = json.loads((ORACLES / f"{name}.json").read_text())["config"]
    known = {"settings": {"image_size": 16}}
    if told_by == "config":
        known = {"settings": settings_of_reference(config), "sde": sde_of_reference(config)}
    imported = load_score_sde(ORACLES / f"{name}.pth", ema=weights == "ema", **known)
    with np.load(ORACLES / f"{name}.npz") as arrays:
        x, t, expected = (torch.from_numpy(arrays[k]) for k in ("x", "t", f"score_{weights}_weights"))
    for time, tolerance in ((t.double(), 1e-5), (t, 1e-4)):      # float32 log sigma times large frequencies
        with torch.no_grad():
            score = imported.denoiser.score(x, time)
        error = (score - expected).flatten(1).abs().amax(1) / expected.flatten(1).abs().amax(1)
        assert float(error.max()) < tolerance
    assert not imported.denoiser.training


@oracles
@pytest.mark.parametrize("name", NAMES)
def test_the_file_alone_tells_what_its_config_does(name):
    config = json.loads((ORACLES / f"{name}.json").read_text())
    imported = load_score_sde(ORACLES / f"{name}.pth", settings={"image_size": 16})
    wanted = settings_of_reference(config["config"])
    assert {k: imported.settings[k] for k in wanted if k not in ("dropout", "fourier_scale")} == {
        k: v for k, v in wanted.items() if k not in ("dropout", "fourier_scale")}
    assert vars(imported.denoiser.sde) == vars(sde_of_reference(config["config"]))
    assert imported.step == 1234 and imported.ema_decay == config["config"]["model"]["ema_rate"]
    fixed = [p for n, p in imported.denoiser.network.named_parameters() if n == "fourier.frequencies"]
    assert sum(p.numel() for p in imported.denoiser.network.parameters()) == config["params"]
    assert len(fixed) == (name == "ncsnpp_ve_small")


@oracles
def test_a_numpy_scalar_learning_rate_becomes_a_float():
    group, = load_score_sde(ORACLES / "ddpmpp_vp_small.pth").optimizer["param_groups"]
    assert type(group["lr"]) is float and group["lr"] == 4.936e-05


# Which network a file needs


@pytest.mark.parametrize(("config", "match"), [
    ({}, "no model.name"), ({"model": {"name": "ncsnv2"}}, "'ncsnv2'; choose from ddpm, ncsnpp"),
    ({"model": {"name": "ncsnpp", "conditional": False}}, "conditional = False"),
    ({"model": {"name": "ncsnpp", "fir_kernel": [1, 2, 1]}}, "fir_kernel"),
    ({"model": {"name": "ddpm"}}, "no data.image_size"),
], ids=str)
def test_a_configuration_that_cannot_be_imported_is_a_value_error(config, match):
    with pytest.raises(ValueError, match=match):
        settings_of_reference(config)


def test_the_sde_of_a_configuration_is_one_of_three():
    with pytest.raises(ValueError, match="choose from vpsde, subvpsde, vesde"):
        sde_of_reference({"model": {}, "training": {"sde": "edm"}})
    with pytest.raises(ValueError, match="no model.beta_min"):
        sde_of_reference({"model": {}, "training": {"sde": "subvpsde"}})


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
    untold = {"groups", "skip_rescale"}
    assert {k: v for k, v in infer_settings(tensors).items() if k not in untold} == {
        k: v for k, v in settings.items() if k not in untold}


def test_both_fir_and_skip_rescale_may_be_given(state, write):
    imported = load_score_sde(write(state), settings={"fir": False, "skip_rescale": False})
    assert imported.settings["fir"] is False and imported.denoiser.network.scale == 1


def test_a_chain_with_positional_embedding_counts_its_labels_down(write, state):
    tensors = reference_tensors(NCSNpp(**SMALL))
    state |= {"model": tensors, "optimizer": None}
    state["ema"]["shadow_params"] = [tensors[k] for k in tensors if k != "sigmas"]
    imported = load_score_sde(write(state), sde=smld(100))
    assert imported.settings["last_label"] == 99 and imported.denoiser.time_input == "index"
    assert imported.settings["centred"] is False
    with pytest.raises(ValueError, match="pass sde=sde_lib.smld"):
        load_score_sde(write(state), sde=VESDE())


# The weights and the training state


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_raw_and_averaged_weights_stand_where_the_reference_has_them(state, write, options):
    imported = load_score_sde(write(state, **options), ema=False)
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
    assert all(torch.equal(v, raw[k]) for k, v in imported.denoiser.network.state_dict().items())


def test_the_optimisers_state_goes_on_with_the_same_steps(state, write):
    imported = load_score_sde(write(state), ema=False)
    network = imported.denoiser.network
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
            parameter.grad = plan[name].read(gradients)
    for key in trained:
        theirs[key].grad = gradients[key.removeprefix("module.")]
    ours.step()
    reference.step()
    after = {key.removeprefix("module."): parameter.detach() for key, parameter in theirs.items()}
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), plan[name].read(after), rtol=1e-5, atol=1e-7)
    assert (imported.step, imported.ema_decay, imported.ema_updates) == (7, 0.99, 7)


def test_an_optimiser_over_the_fixed_frequencies_too_is_understood(state, write):
    group = state["optimizer"]["param_groups"][0]
    state["optimizer"]["state"] = {i + 1: v for i, v in state["optimizer"]["state"].items()}
    expected = load_score_sde(write(state | {"optimizer": None})).optimizer
    assert expected is None
    group["params"] = list(range(len(group["params"]) + 1))
    converted = load_score_sde(write(state)).optimizer
    network = load_score_sde(write(state)).denoiser.network
    names = [name for name, _ in network.named_parameters()]
    assert set(range(len(names))) - set(converted["state"]) == {names.index("fourier.frequencies")}


# What is refused


def drop(key):
    return lambda state: state["model"].pop(key)


def put(key, tensor):
    return lambda state: state["model"].update({key: tensor})


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
    (lambda state: state.update(model={f"model.{k}": v for k, v in state["model"].items()}), "take off any prefix"),
    (lambda state: state.update(model=[1]), "no mapping"),
    (lambda state: state.pop("ema"), "expected the keys optimizer, model, ema, step, found optimizer, model, step"),
    (lambda state: state["ema"]["shadow_params"].pop(), "shadow_params.*some of other shapes"),
    (lambda state: state["ema"].pop("decay"), "should have a decay"),
    (lambda state: state.update(step="many"), "no number"),
    (lambda state: state["optimizer"]["param_groups"][0]["params"].pop(), "is not Adam's"),
], ids=range(16))
def test_what_does_not_fit_is_one_line_with_the_keys_and_what_to_do(state, write, spoil, match):
    spoil(state)
    path = write(state)
    with pytest.raises(ValueError, match=match) as caught:
        load_score_sde(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_many_keys_that_differ_are_counted_and_the_first_named(state, write):
    with pytest.raises(ValueError, match=r"extra \(all_modules\.\S+, \S+, \S+ and \d+ more\).*pass the settings"):
        load_score_sde(write(state), settings=infer_settings(reference_tensors(NCSNpp(**SMALL | {"num_blocks": 1}))),
                       sde=smld())


@pytest.mark.parametrize("settings", [{"depth": 3}, {"block": "resnet"}, {"image_size": 15}], ids=str)
def test_settings_that_no_network_has_name_the_file(state, write, settings):
    with pytest.raises(ValueError, match="no network has these settings"):
        load_score_sde(write(state), settings=settings)


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, 0.99])
def test_a_truncated_file_is_named(state, write, keep):
    path = write(state)
    content = path.read_bytes()
    path.write_bytes(content[:keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match="checkpoint.pth is truncated, altered or no checkpoint"):
        load_score_sde(path)


def test_a_flipped_bit_is_found(state, write):
    path = write(state)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not match|truncated, altered"):
        load_score_sde(path)


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
    with pytest.raises(ValueError, match="refused, and nothing of it was run: its pickle asks for posix.mkdir"):
        load_score_sde(path)
    assert not mark.exists()


@pytest.mark.parametrize("foreign", [np.zeros(2), np.array([Payload(print)], dtype=object), Path("x"), np.str_("a"),
                                     np.complex128(1), np.datetime64(0, "s")], ids=lambda v: type(v).__name__)
def test_of_numpy_only_scalar_numbers_are_read(state, write, foreign):
    with pytest.raises(ValueError, match="checkpoint.pth"):
        load_score_sde(write(state | {"extra": foreign}))


@pytest.mark.parametrize("number", [np.float64(0.1), np.float32(0.5), np.int64(-3), np.uint8(7), np.bool_(True)], ids=repr)
def test_numpy_numbers_become_pythons(state, write, number):
    state["optimizer"]["param_groups"][0]["lr"] = number
    lr = load_score_sde(write(state)).optimizer["param_groups"][0]["lr"]
    assert lr == number.item() and type(lr) is type(number.item())


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_score_sde(tmp_path / "none.pth")


@oracles
def test_load_denoiser_takes_the_file_as_it_takes_a_run():
    path, x = ORACLES / "ncsnpp_ve_small.pth", torch.rand(2, 3, 16, 16)
    for ema in (True, False):
        expected = load_score_sde(path, ema).denoiser.score(x, 0.5)
        assert torch.equal(load_denoiser(path, ema).score(x, 0.5), expected)
