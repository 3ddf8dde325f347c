"""Class-conditional folders of diffusers give the outputs that diffusers computed, without diffusers.

tests/oracles/diffusers_labels.json has each folder's config.json, scheduler, and names and shapes of the weights; the .npz
has the outputs of UNet2DModel. Weights and inputs are sines of a running number. diffusers 0.42.1 made both by
`python tests/checkpoints/formats/test_diffusers_labels.py`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scorefield.checkpoints.checkpoint import Checkpoint
from scorefield.checkpoints.formats.diffusers import read, write
from scorefield.models.build import build_denoiser
from scorefield.numerics.errors import ArgumentError

ORACLE = Path(__file__).parents[2] / "oracles" / "diffusers_labels.json"
BLOCKS = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": [8, 16], "layers_per_block": 1,
          "norm_num_groups": 4, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
          "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "attention_head_dim": 4}
SKIP = BLOCKS | {"norm_num_groups": None, "down_block_types": 2 * ["SkipDownBlock2D"], "norm_eps": 1e-6,
                 "up_block_types": 2 * ["SkipUpBlock2D"], "mid_block_scale_factor": 2**0.5, "attention_head_dim": None}
SCALED = {"resnet_time_scale_shift": "scale_shift"}
CASES = {      # the settings of UNet2DModel
    "table": BLOCKS | {"num_class_embeds": 3}, "scale_shift": BLOCKS | SCALED,
    "all": BLOCKS | SCALED | {"num_class_embeds": 3, "attn_norm_num_groups": 4, "freq_shift": 1, "flip_sin_to_cos": False},
    "timestep": BLOCKS | {"class_embed_type": "timestep", "num_class_embeds": 3},
    "skip": SKIP | SCALED | {"time_embedding_type": "fourier", "num_class_embeds": 3},
    "skip, timestep": SKIP | SCALED | {"class_embed_type": "timestep", "num_class_embeds": 3, "attn_norm_num_groups": 4},
}
LABELS, INDICES, SIGMAS = torch.tensor([0, 2, 1]), torch.tensor([0, 10, 999]), torch.tensor([0.01, 1.0, 50.0])


def sines(shape, start):
    numbers = torch.arange(start, start + int(np.prod(shape)), dtype=torch.float64)
    return (0.3 * torch.sin(1.7 * numbers + 0.001 * numbers**1.5)).float().reshape(shape)


def weights(shapes):
    return {name: sines(shape, 1000 * i) for i, (name, shape) in enumerate(sorted(shapes.items()))}


def pictures():
    return 3 * sines((3, 3, 8, 8), 7)


def make():
    """Write the oracle, by diffusers."""
    import diffusers

    stored, outputs = {}, {}
    for name, config in CASES.items():
        model = diffusers.UNet2DModel(**config).eval()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict(weights(shapes))
        fourier = config.get("time_embedding_type") == "fourier"
        label = LABELS if config.get("num_class_embeds") else None
        with torch.no_grad():
            outputs[name] = model(pictures(), SIGMAS if fourier else INDICES, class_labels=label).sample.numpy()
        scheduler = ({"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01, "sigma_max": 50.0} if fourier else
                     {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
                      "beta_schedule": "linear"})
        stored[name] = {"config": {"_class_name": "UNet2DModel"} | config, "scheduler": scheduler, "shapes": shapes}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(content)}" for name, content in stored.items())
    ORACLE.write_text(f"{{{lines}}}\n")
    np.savez_compressed(ORACLE.with_suffix(".npz"), **outputs)


@pytest.fixture
def folder(tmp_path):
    """Writes the folder of a case, with changes of its config.json."""
    def folder(name, **changes):
        stored = json.loads(ORACLE.read_text())[name]
        (tmp_path / "config.json").write_text(json.dumps(stored["config"] | changes))
        (tmp_path / "scheduler_config.json").write_text(json.dumps(stored["scheduler"]))
        save_file(weights(stored["shapes"]), tmp_path / "diffusion_pytorch_model.safetensors")
        return tmp_path
    return folder


def scores(denoiser, label=LABELS):
    """What UNet2DModel gives at the oracle's inputs."""
    model = denoiser if label is None else denoiser.given(label=label)
    with torch.no_grad():
        if denoiser.sde.steps:
            return model.eps(pictures(), (INDICES.double() + 1) / 1000)
        return model.score(pictures(), denoiser.sde.time(-SIGMAS.double().log()))


def assert_close(output, expected):
    expected = torch.as_tensor(expected)
    scale = expected.abs().flatten(1).amax(1)[:, None, None, None]
    assert float(scale.min()) > 1e-3
    torch.testing.assert_close(output / scale, expected / scale, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_those_that_diffusers_computed(name, folder):
    label = LABELS if "num_class_embeds" in CASES[name] else None
    denoiser = read(folder(name)).denoiser()
    assert denoiser.takes.classes == (3 if label is not None else None) and not denoiser.takes.label_dropout
    assert_close(scores(denoiser, label), np.load(ORACLE.with_suffix(".npz"))[name])


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_back_is_the_folder_that_was_read(name, folder, tmp_path):
    first = read(folder(name))
    assert write(first, tmp_path / "again") == ""
    again, label = read(tmp_path / "again"), LABELS if "num_class_embeds" in CASES[name] else None
    assert again.averaged.keys() == first.averaged.keys()
    assert all(torch.equal(again.averaged[key], value) for key, value in first.averaged.items())
    assert again.config["model"] == first.config["model"] and again.config.get("training") == first.config.get("training")
    assert_close(scores(again.denoiser(), label), np.load(ORACLE.with_suffix(".npz"))[name])
    before, after = (json.loads((place / "config.json").read_text()) for place in (tmp_path, tmp_path / "again"))
    for field in ("num_class_embeds", "class_embed_type", "attn_norm_num_groups", "resnet_time_scale_shift"):
        default = "default" if field == "resnet_time_scale_shift" else None
        assert before.get(field, default) == after.get(field, default)


def test_no_label_is_refused_for_a_folder_that_has_no_row_for_it(folder):
    checkpoint = read(folder("table"), {"training": {"label_dropout": 0.1, "steps": 7}})
    assert checkpoint.config["training"] == {"label_dropout": 0.0, "steps": 7}
    assert checkpoint.averaged["label.weight"].shape == (4, 32) and not checkpoint.averaged["label.weight"][3].any()
    with pytest.raises(ArgumentError, match="label=None means no label, which this model never saw"):
        checkpoint.denoiser().given(label=None)
    with pytest.raises(ArgumentError, match="labels go from 0 to 2, got 3"):
        checkpoint.denoiser().given(label=3)


def test_a_last_class_that_means_no_label_is_read_as_such_if_the_config_says_so(folder):
    given = {"model": {"classes": 2}, "training": {"label_dropout": 0.2}}
    denoiser, plain = read(folder("table"), given).denoiser(), read(folder("table")).denoiser()
    assert denoiser.takes.classes == 2 and denoiser.takes.label_dropout
    assert torch.equal(scores(denoiser, None), scores(plain, torch.tensor(2)))
    for other in ({"model": {"classes": 2}}, {"model": {"classes": 4}, "training": {"label_dropout": 0.2}}):
        with pytest.raises(ValueError, match="trained with model.classes=3, not "):
            read(folder("table"), other)


def test_labels_as_numbers_of_an_unknown_count_need_the_count(folder):
    path = folder("timestep", num_class_embeds=None)
    with pytest.raises(ValueError, match=r"num_class_embeds = None with .*'timestep' .*; give model.classes"):
        read(path)
    denoiser = read(path, {"model": {"classes": 3}}).denoiser()
    assert_close(scores(denoiser), np.load(ORACLE.with_suffix(".npz"))["timestep"])


@pytest.mark.parametrize(("changes", "match"), [
    ({"class_embed_type": "identity"}, "class_embed_type = 'identity' .*its labels are vectors"),
    ({"num_class_embeds": 0}, "num_class_embeds = 0"), ({"num_class_embeds": -3}, "num_class_embeds = -3"),
    ({"num_class_embeds": 3.0}, "damaged: num_class_embeds = 3.0"),
    ({"_label_dropout": 1.0}, "damaged: _label_dropout = 1.0"),
    ({"_label_dropout": "x"}, "damaged: _label_dropout"), ({"num_class_embeds": 1, "_label_dropout": 0.1}, "only 2 or more"),
    ({"num_class_embeds": 4}, r"class_embedding.weight is \(3, 32\) instead of \(4, 32\)"),
    ({"num_class_embeds": None}, r"1 extra \(class_embedding.weight\)"),
    ({"class_embed_type": "timestep"}, "missing .*class_embedding.linear_1.weight"),
    ({"attn_norm_num_groups": 8}, "attn_norm_num_groups = 8"), ({"cross_attention_dim": 7}, "cross_attention_dim = 7"),
], ids=str)
def test_labels_that_do_not_fit_are_errors_of_one_line(changes, match, folder):
    with pytest.raises(ValueError, match=match) as caught:
        read(folder("table", **changes))
    assert "\n" not in str(caught.value)


def test_fourier_features_with_labels_as_numbers_are_refused(folder):
    with pytest.raises(ValueError, match="class_embedding 'timestep' needs embedding 'positional'"):
        read(folder("skip", class_embed_type="timestep"))


def trained(dropout, embedding="table", **settings):
    """A checkpoint of ours with 3 classes and random weights."""
    config = {"sde": {"name": "ddpm"}, "data": {"low": -1.0, "high": 1.0}, "shape": [3, 8, 8], "levels": 256,
              "training": {"label_dropout": dropout}, "model": {
                  "network": "unet", "parametrization": "eps", "time_input": "index", "width": 8, "multipliers": (1, 2),
                  "num_blocks": 1, "attention_resolutions": (), "classes": 3, "class_embedding": embedding, **settings}}
    shapes = {name: tuple(value.shape) for name, value in build_denoiser(config, (3, 8, 8)).network.state_dict().items()}
    return Checkpoint(config, weights(shapes))


@pytest.mark.parametrize(("dropout", "embedding", "said"), [
    (0.1, "table", "the last of its 4 classes, 3, means no label"),
    (0.1, "timestep", "the last of its 4 classes, 3, means no label"),
    (0.0, "table", "it does not store the embedding of no label, which was never trained"), (0.0, "timestep", "")])
def test_no_label_goes_there_and_back_if_it_was_trained(dropout, embedding, said, tmp_path):
    checkpoint = trained(dropout, embedding)
    message = write(checkpoint, tmp_path)
    assert message.startswith(said) and bool(message) == bool(said)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_class_embeds"] == (4 if dropout else 3) and config.get("_label_dropout", 0.0) == dropout
    if embedding == "table":
        rows = load_file(tmp_path / "diffusion_pytorch_model.safetensors")["class_embedding.weight"]
        assert torch.equal(rows, checkpoint.averaged["label.weight"][:len(rows)]) and len(rows) == (4 if dropout else 3)
    again = read(tmp_path)
    assert again.config["model"]["classes"] == 3 and again.config["training"] == {"label_dropout": dropout}
    one, other = checkpoint.denoiser(), again.denoiser()
    assert torch.equal(scores(one), scores(other)) and other.takes == one.takes
    if dropout:
        assert torch.equal(one.given(label=None).eps(pictures(), 0.5), other.given(label=None).eps(pictures(), 0.5))
        assert all(torch.equal(again.averaged[name], value) for name, value in checkpoint.averaged.items())


def test_without_a_middle_norm_only_a_network_of_scale_and_shift_can_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"with model.middle_norm = False: .*scale_shift"):
        write(trained(0.0, middle_norm=False), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    checkpoint = trained(0.1, middle_norm=False, scale_shift=True)
    write(checkpoint, tmp_path / "folder")
    assert torch.equal(scores(read(tmp_path / "folder").denoiser()), scores(checkpoint.denoiser()))


if __name__ == "__main__":
    make()
