"""DiT from elsewhere: diffusers' folders both ways, outputs equal to diffusers' own; and published .pt files, outputs equal
to those of a reference that applies the published formulas to a file's own tensors.
"""

import argparse
import json
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scorefield.checkpoints import load_denoiser, read_checkpoint
from scorefield.checkpoints.checkpoint import Checkpoint
from scorefield.checkpoints.formats import diffusers as folders
from scorefield.checkpoints.formats import dit, openai
from scorefield.checkpoints.formats import scorefield as native
from scorefield.checkpoints.formats.hub import _weights
from scorefield.checkpoints.latents import codec_of
from scorefield.checkpoints.load import find
from scorefield.cli.main import main
from scorefield.models.build import build_denoiser
from scorefield.models.networks.dit import positions
from scorefield.numerics.errors import ArgumentError

INDICES, LABELS = torch.tensor([0, 10, 999]), torch.tensor([0, 4, 5])      # the last label is "no label"
SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 3, "num_layers": 3, "sample_size": 8,
         "num_embeds_ada_norm": 5}


def randomised(network):
    """The same network with weights that let everything through, and whose products float32 holds to 1e-6."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


def batch(channels=3):
    return torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(1))


def difference(one, other):
    assert float(other.abs().max()) > 1e-2
    return float((one - other).abs().max() / other.abs().max())


# ---- folders of diffusers -----------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """Saves a model of random weights, and a scheduler, as diffusers does, into one folder."""
    diffusers = pytest.importorskip("diffusers")

    def saved(**settings):
        model = randomised(diffusers.DiTTransformer2DModel(**SMALL | settings)).eval()
        model.save_pretrained(tmp_path)
        diffusers.DDPMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path)
        return model
    return saved


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("settings", [{}, {"out_channels": 6}, {"patch_size": 4, "norm_eps": 0.1}, {"attention_bias": False},
                                      {"num_layers": 1, "dropout": 0.3}], ids=str)
def test_outputs_equal_diffusers_and_the_folder_goes_back_as_it_came(settings, saved, tmp_path):
    """Their blocks have embeddings of their own, which differ in a model that diffusers has trained."""
    diffusers, model = pytest.importorskip("diffusers"), saved(**settings)
    checkpoint = read_checkpoint(tmp_path)
    denoiser = checkpoint.denoiser()
    with torch.no_grad():
        expected = model(batch(), INDICES, class_labels=LABELS).sample
        assert difference(denoiser.network(batch(), INDICES.float(), {"label": LABELS}), expected) < 1e-5
        own = denoiser.given(label=LABELS[:2]).predict(batch()[:2], (INDICES[:2].double() + 1) / 1000, "v")
        assert difference(own, expected[:2, :3]) < 1e-5
    note = folders.write(checkpoint, tmp_path / "out")
    assert "label 5 means no label" in note and "DiTPipeline.from_pretrained needs as vae" in note
    back = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out/transformer").eval()
    assert all(torch.equal(back.state_dict()[key], value) for key, value in model.state_dict().items()
               if settings.get("attention_bias", True) or key in model.state_dict())
    with torch.no_grad():
        assert difference(back(batch(), INDICES, class_labels=LABELS).sample, expected) < 1e-6
    again = read_checkpoint(tmp_path / "out")
    assert all(torch.equal(again.averaged[key], value) for key, value in checkpoint.averaged.items())
    assert {"model": again.config["model"], "training": again.config["training"]} == {
        "model": checkpoint.config["model"], "training": checkpoint.config["training"]}


def test_a_converted_pipeline_shares_its_embeddings_and_is_one_of_latents(saved, tmp_path):
    """As facebook/DiT-XL-2-256: parts in folders, the old class, a DDIMScheduler without a variance, copies of one
    embedding, an autoencoder, and names of labels.
    """
    diffusers = pytest.importorskip("diffusers")
    model = randomised(diffusers.DiTTransformer2DModel(**SMALL | {"out_channels": 6})).eval()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    model.save_pretrained(tmp_path / "transformer")
    edit(tmp_path / "transformer/config.json", _class_name="Transformer2DModel", cross_attention_dim=None,
         double_self_attention=False, attention_type="default", num_vector_embeds=None)
    diffusers.DDIMScheduler(beta_end=0.02, clip_sample=False).save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text(json.dumps({
        "_class_name": "DiTPipeline", "scheduler": ["diffusers", "DDIMScheduler"], "vae": ["diffusers", "AutoencoderKL"],
        "transformer": ["diffusers", "Transformer2DModel"], "id2label": {str(i): f"name{i}, other" for i in range(5)}}))
    checkpoint = read_checkpoint(tmp_path)
    assert "their autoencoder" in checkpoint.note and checkpoint.config["levels"] is None
    assert checkpoint.config["class_names"] == [f"name{i}" for i in range(5)]
    assert not checkpoint.config["model"]["block_embedding"] and "block_times.0.0.weight" not in checkpoint.averaged
    with torch.no_grad():
        expected = model(batch(), INDICES, class_labels=LABELS).sample
        assert difference(checkpoint.denoiser().network(batch(), INDICES.float(), {"label": LABELS}), expected) < 1e-5
    folders.write(checkpoint, tmp_path / "out")
    back = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out/transformer")
    assert all(torch.equal(back.state_dict()[key], value) for key, value in model.state_dict().items())


@pytest.fixture
def pipeline(tmp_path):
    """A folder of a DiTPipeline of pictures of 16 x 16, whose vae has the sides of 8 x 8 in its config; and the pipeline."""
    diffusers = pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 16),
        latent_channels=3, norm_num_groups=4, sample_size=8, scaling_factor=0.3)
    pipeline = diffusers.DiTPipeline(randomised(diffusers.DiTTransformer2DModel(**SMALL | {"out_channels": 6})).eval(),
                                     randomised(vae).eval(), diffusers.DDIMScheduler(clip_sample=False))
    pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline", pipeline


def test_a_pipeline_with_its_autoencoder_is_a_model_of_pictures(pipeline):
    folder, theirs = pipeline
    checkpoint = read_checkpoint(folder)
    assert checkpoint.config["shape"] == [3, 16, 16] and checkpoint.config["latents"]["shape"] == [3, 8, 8]
    assert checkpoint.config["levels"] == 256 and not checkpoint.note
    codec = codec_of(checkpoint.config["data"], checkpoint.config)
    with torch.no_grad():
        pictures = theirs.vae.decode(batch() / theirs.vae.config.scaling_factor).sample
    assert pictures.std() > 0.05
    assert torch.equal(codec.decode(batch()), ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8))


def test_a_pipeline_samples_pictures_by_the_command_line(pipeline, tmp_path):
    folder, run = pipeline[0], tmp_path / "run"
    main(["--mode", "sample", "--checkpoint", str(folder), "--workdir", str(run), "--device", "cpu", "--num_samples", "2",
          "--steps", "2", "--label", "1"])
    file, = (run / "samples").glob("*.npz")
    assert np.load(file)["x"].shape == (2, 3, 16, 16) and np.load(file)["x"].dtype == np.uint8
    main(["--workdir", str(run), "--mode", "convert", "--output", str(tmp_path / "one.safetensors"), "--device", "cpu"])
    assert read_checkpoint(tmp_path / "one.safetensors").config["latents"] == read_checkpoint(folder).config["latents"]
    note = folders.write(read_checkpoint(run), tmp_path / "out")
    assert "latents of the autoencoder" in note
    assert json.loads((tmp_path / "out/transformer/config.json").read_text())["sample_size"] == 8


def test_the_autoencoder_of_a_network_alone_is_named_by_the_user_and_must_fit(pipeline, tmp_path):
    folder, _ = pipeline
    given = {"data": {"autoencoder": str(folder / "vae")}}
    named = read_checkpoint(folder / "transformer", given | {"sde": {"name": "ddpm", "schedule": "linear"}})
    assert {**named.config["latents"]} == read_checkpoint(folder).config["latents"]
    file = tmp_path / "latents.pt"
    torch.save(state_of(channels=3, outputs=6), file)
    found = read_checkpoint(file, given)
    assert found.config["shape"] == [3, 16, 16] and "latents" not in found.note
    torch.save(state_of(channels=4, outputs=8), file)
    assert "name their autoencoder as data.autoencoder" in read_checkpoint(file).note
    with pytest.raises(ArgumentError, match=r"makes latents of shape \(3, 8, 8\), and this model has learned \(4, 8, 8\)"):
        read_checkpoint(file, given)
    with pytest.raises(ArgumentError, match="no autoencoder: /none does not exist"):
        read_checkpoint(file, {"data": {"autoencoder": "/none"}})


def test_an_autoencoder_without_a_scaling_tells_no_units(pipeline, tmp_path):
    checkpoint = read_checkpoint(pipeline[0] / "vae", {"shape": [3, 16, 16]})
    checkpoint.config["model"] |= {"scaling": None, "shift": None}
    native.write(checkpoint, tmp_path / "vae.safetensors")
    with pytest.raises(ArgumentError, match="has no scaling"):
        read_checkpoint(pipeline[0], {"data": {"autoencoder": str(tmp_path / "vae.safetensors")}})


def trained_here(**model):
    config = {"sde": {"name": "ddpm", "steps": 50}, "data": {"low": -1.0, "high": 1.0}, "levels": 17, "shape": [3, 8, 8],
              "training": {"label_dropout": 0.2}, "model": {
                  "network": "dit", "width": 32, "layers": 2, "heads": 4, "time_input": "index",
                  "parametrization": "eps"} | model}
    network = randomised(build_denoiser(config, config["shape"]).network)
    return Checkpoint(config, network.state_dict())


@pytest.mark.parametrize("model", [{}, {"classes": 5}, {"classes": 5, "learned_variance": True}], ids=str)
def test_a_model_trained_here_runs_in_diffusers_and_comes_back(model, tmp_path):
    diffusers, checkpoint = pytest.importorskip("diffusers"), trained_here(**model)
    note = folders.write(checkpoint, tmp_path / "out")
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "out", vae=diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=3, block_out_channels=(32,)))
    labels = LABELS if model else torch.zeros(3, dtype=torch.int64)
    network = checkpoint.denoiser().network
    with torch.no_grad():
        expected = network(batch(), torch.tensor([0.0, 10.0, 49.0]), *([{"label": labels}] if model else []))
        output = pipeline.transformer(batch(), torch.tensor([0, 10, 49]), class_labels=labels).sample
    assert difference(output, expected) < 1e-5 and "17 levels" in note
    assert pipeline.scheduler.config.num_train_timesteps == 50
    again = read_checkpoint(tmp_path / "out")
    assert again.averaged.keys() == checkpoint.averaged.keys()
    assert all(torch.equal(again.averaged[key], value) for key, value in checkpoint.averaged.items())
    assert again.config["model"]["classes"] == model.get("classes")
    assert again.config["training"].get("label_dropout") == (0.2 if model else None)


@pytest.mark.parametrize(("model", "parts"), [
    ({"skips": True}, ["model.skips = True", "only False"]), ({"freq_shift": 0}, ["model.freq_shift = 0", "only 1"]),
    ({"mlp_ratio": 2.0}, ["mlp_ratio"]), ({"low_res": 3}, ["model.low_res"])], ids=str)
def test_what_diffusers_dit_cannot_be_is_refused_before_anything_is_written(model, parts, tmp_path):
    with pytest.raises(ValueError, match="cannot export to diffusers") as caught:
        folders.write(trained_here(**model), tmp_path / "out")
    assert all(part in str(caught.value) for part in parts) and not (tmp_path / "out").exists()


def test_series_and_unequal_sides_cannot_be_exported(tmp_path):
    checkpoint = trained_here()
    for shape in ([3, 8], [3, 8, 4]):
        checkpoint.config["shape"] = shape
        with pytest.raises(ValueError, match="has square pictures, and the data of this model have the shape"):
            folders.write(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(("changes", "match"), [
    ({"activation_fn": "geglu"}, "activation_fn = 'geglu' cannot be imported, only 'gelu-approximate'"),
    ({"norm_type": "ada_norm"}, "norm_type = 'ada_norm'"),
    ({"norm_elementwise_affine": True}, "norm_elementwise_affine = True"),
    ({"cross_attention_dim": 64}, "cross_attention_dim = 64"), ({"out_channels": 5}, "out_channels = 5"),
    ({"num_layers": "3"}, "damaged: num_layers"), ({"num_layers": 2}, "does not fit the network"),
    ({"sample_size": 9}, "needs sides that 2 divides"), ({"_label_dropout": 1.5}, "damaged: _label_dropout"),
    ({"_class_name": "SD3Transformer2DModel"}, "_class_name = 'SD3Transformer2DModel'")], ids=str)
def test_folders_with_other_blocks_or_damage_are_refused_in_one_line(changes, match, saved, tmp_path):
    saved()
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(ValueError, match=match) as caught:
        read_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_the_weights_of_the_transformer_and_its_autoencoder():
    name = "diffusion_pytorch_model.safetensors"
    files = ["model_index.json", "transformer/config.json", f"transformer/{name}", "vae/config.json", f"vae/{name}"]
    assert _weights(files) == [f"transformer/{name}", f"vae/{name}"]
    assert _weights(["unet/config.json", f"unet/{name}", *files[3:]]) == [f"unet/{name}"]


# ---- published .pt files ------------------------------------------------------------------------------------------


def state_of(width=32, layers=2, patch=2, channels=4, rows=6, outputs=8, tokens=(4, 4)):
    """A state dict of DiT of random weights."""
    generator, state = torch.Generator().manual_seed(0), {"pos_embed": positions(tokens, width)[None]}

    def layer(name, *shape):
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * 0.15
        state[f"{name}.bias"] = torch.randn(shape[:1], generator=generator) * 0.15

    layer("x_embedder.proj", width, channels, patch, patch)
    layer("t_embedder.mlp.0", width, 256)
    layer("t_embedder.mlp.2", width, width)
    state["y_embedder.embedding_table.weight"] = torch.randn(rows, width, generator=generator)
    for i in range(layers):
        for name, shape in (("attn.qkv", (3 * width, width)), ("attn.proj", (width, width)), ("mlp.fc1", (4 * width, width)),
                            ("mlp.fc2", (width, 4 * width)), ("adaLN_modulation.1", (6 * width, width))):
            layer(f"blocks.{i}.{name}", *shape)
    layer("final_layer.linear", patch * patch * outputs, width)
    layer("final_layer.adaLN_modulation.1", 2 * width, width)
    return state


def reference(state, x, timesteps, label, heads):
    """The output of DiT (Peebles and Xie 2023, figure 3) with these tensors, in their dtype."""
    def linear(name, h):
        return F.linear(h, state[f"{name}.weight"].to(x), state[f"{name}.bias"].to(x))

    def changed(h, shift, scale):
        return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    patch = state["x_embedder.proj.weight"].shape[2]
    angles = timesteps.to(x)[:, None] * torch.exp(-math.log(10_000) / 128 * torch.arange(128).to(x))
    waves = torch.cat([angles.cos(), angles.sin()], 1)
    told = F.silu(linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", waves)))
                  + state["y_embedder.embedding_table.weight"].to(x)[label])
    h = F.conv2d(x, state["x_embedder.proj.weight"].to(x), state["x_embedder.proj.bias"].to(x), stride=patch)
    rows, columns = h.shape[2:]
    h = h.flatten(2).mT + state["pos_embed"].to(x)
    for i in range(len({key.split(".")[1] for key in state if key.startswith("blocks.")})):
        shift, scale, gate, shift_2, scale_2, gate_2 = linear(f"blocks.{i}.adaLN_modulation.1", told).chunk(6, 1)
        q, k, v = linear(f"blocks.{i}.attn.qkv", changed(h, shift, scale)).reshape(*h.shape[:2], 3, heads, -1).unbind(2)
        weights = torch.softmax(torch.einsum("bqhc,bkhc->bhqk", q, k) / q.shape[-1]**0.5, -1)
        attended = torch.einsum("bhqk,bkhc->bqhc", weights, v).flatten(2)
        h = h + gate[:, None] * linear(f"blocks.{i}.attn.proj", attended)
        inner = F.gelu(linear(f"blocks.{i}.mlp.fc1", changed(h, shift_2, scale_2)), approximate="tanh")
        h = h + gate_2[:, None] * linear(f"blocks.{i}.mlp.fc2", inner)
    h = linear("final_layer.linear", changed(h, *linear("final_layer.adaLN_modulation.1", told).chunk(2, 1)))
    h = h.reshape(len(x), rows, columns, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), -1, rows * patch, columns * patch)


@pytest.mark.parametrize(("settings", "given", "heads"), [
    ({}, {}, 1), ({"patch": 1, "tokens": (8, 8), "channels": 3, "outputs": 3}, {"model": {"heads": 4}}, 4),
    ({"tokens": (2, 4)}, {"shape": [4, 4, 8]}, 1)], ids=str)
def test_outputs_equal_the_published_formulas(settings, given, heads, tmp_path):
    state, path = state_of(**settings), tmp_path / "model.pt"
    torch.save(state, path)
    denoiser = load_denoiser(path, config=given)
    sides = given.get("shape", [0, 8, 8])[1:]
    x = torch.randn(3, settings.get("channels", 4), *sides, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(state, x.double(), INDICES, LABELS, heads)
        assert difference(denoiser.network(x, INDICES.float(), {"label": LABELS}), expected.float()) < 1e-5
    assert denoiser.learned_variance == (settings.get("outputs", 8) == 8)


def test_what_a_file_does_not_tell_is_assumed_and_said(tmp_path):
    path = tmp_path / "DiT-XL-2-256x256.pt"
    torch.save(state_of(width=384, layers=1), path)
    checkpoint = read_checkpoint(path)
    said = ("6 heads", "5 classes and a last one of no label", "linear", "latents of 4")
    assert all(part in checkpoint.note for part in said)
    assert checkpoint.config["levels"] is None and checkpoint.config["training"]["label_dropout"] == 0.1
    whole = read_checkpoint(path, {"model": {"classes": 6}})      # labels were never dropped
    assert not whole.averaged["label.weight"][-1].any() and whole.config["training"]["label_dropout"] == 0


def test_a_checkpoint_of_their_training_has_averaged_and_raw_weights(tmp_path):
    path, raw = tmp_path / "0050000.pt", state_of()
    ema = {key: value if key == "pos_embed" else 2 * value for key, value in raw.items()}
    torch.save({"model": raw, "ema": ema, "opt": {"state": {}, "param_groups": []},
                "args": argparse.Namespace(model="DiT-S/2", image_size=64)}, path)
    checkpoint = read_checkpoint(path)
    for weights, factor in ((checkpoint.averaged, 2), (checkpoint.raw, 1)):
        assert torch.equal(weights["blocks.1.qkv.weight"], factor * raw["blocks.1.attn.qkv.weight"])


@pytest.mark.parametrize(("change", "match"), [
    (lambda state: state.update(pos_embed=state["pos_embed"].roll(1, 1)), "not the fixed sines and cosines of 4 x 4"),
    (lambda state: state.pop("final_layer.linear.weight"), "it lacks final_layer.linear.weight"),
    (lambda state: state.pop("blocks.1.mlp.fc2.bias"), "1 missing .blocks.1.mlp.fc2.bias"),
    (lambda state: state.update(extra=torch.zeros(1)), "1 extra .extra"),
    (lambda state: state.update({"final_layer.linear.weight": torch.zeros(20, 32)}), "takes 4 channels and gives 5")],
    ids=["positions", "no last layer", "a bias", "extra", "outputs"])
def test_files_that_do_not_fit_are_refused_in_one_line(change, match, tmp_path):
    state, path = state_of(), tmp_path / "model.pt"
    change(state)
    torch.save(state, path)
    with pytest.raises(ValueError, match=match) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_files_that_run_code_or_are_cut_short_are_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "model.pt"
    torch.save(state_of() | {"z": Harm()}, path)
    with pytest.raises(ValueError, match="refused, and nothing of it was run"):
        read_checkpoint(path)
    assert not (tmp_path / "harm").exists()
    torch.save(state_of(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="truncated, altered"):
        read_checkpoint(path)


def test_each_program_reads_its_own_pt_files(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(state_of(), path)
    assert find(path)[0] is dit
    torch.save({"input_blocks.0.0.weight": torch.zeros(1)}, path)
    assert find(path)[0] is openai
    torch.save(state_of(), path, _use_new_zipfile_serialization=False)
    assert find(path)[0] is dit and read_checkpoint(path).config["model"]["network"] == "dit"
