"""Folders of diffusers' AutoencoderKL, both ways, beside diffusers itself."""

import json

import pytest
import torch

from scorefield.checkpoints import load_denoiser, read_checkpoint
from scorefield.checkpoints.formats import diffusers
from tests.helpers import randomised

diffusers_package = pytest.importorskip("diffusers")

BLOCKS = {"down_block_types": 3 * ("DownEncoderBlock2D",), "up_block_types": 3 * ("UpDecoderBlock2D",)}
KINDS = {
    "grey": dict(in_channels=1, out_channels=1, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4,
                 sample_size=12, scaling_factor=0.7, shift_factor=0.2, **BLOCKS),
    "plain": dict(block_out_channels=(8, 8, 24), layers_per_block=2, norm_num_groups=8, sample_size=8, latent_channels=3,
                  use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False, **BLOCKS),
}


def theirs(kind):
    torch.manual_seed(0)
    return randomised_slightly(diffusers_package.AutoencoderKL(**KINDS[kind])).eval()


def randomised_slightly(network):
    """Weights that let everything through, so small that the answers stay of size 1."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    randomised(network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.mul_(0.1).add_(state[name])
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_diffusers_gives_the_same_latents_and_pictures(kind, tmp_path):
    model = theirs(kind)
    model.save_pretrained(tmp_path / "vae")
    ours = load_denoiser(tmp_path / "vae").network
    size, channels = KINDS[kind]["sample_size"], KINDS[kind].get("in_channels", 3)
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mean, log_variance = ours.encode(x)
        posterior = model.encode(x).latent_dist
        torch.testing.assert_close(mean, posterior.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(log_variance, posterior.logvar, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(mean), model.decode(mean).sample, rtol=1e-5, atol=1e-5)
    assert (ours.scaling, ours.shift) == (KINDS[kind].get("scaling_factor", 0.18215), KINDS[kind].get("shift_factor"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_for_diffusers_is_what_was_read(kind, tmp_path):
    model = theirs(kind)
    model.save_pretrained(tmp_path / "vae")
    said = diffusers.write(read_checkpoint(tmp_path / "vae"), tmp_path / "again")
    again = diffusers_package.AutoencoderKL.from_pretrained(tmp_path / "again")
    assert said == ""
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    for field, value in KINDS[kind].items():
        assert again.config[field] == (list(value) if isinstance(value, tuple) else value)


def test_a_folder_with_other_blocks_is_refused_in_one_line(tmp_path):
    theirs("grey").save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    for field, value in (("down_block_types", 3 * ["AttnDownEncoderBlock2D"]), ("latents_mean", [0.0, 0.0, 0.0, 0.0]),
                         ("out_channels", 3), ("act_fn", "gelu"), ("new_field", 1)):
        (tmp_path / "config.json").write_text(json.dumps(fields | {field: value}))
        with pytest.raises(ValueError, match=rf"config.json: {field} = .* cannot be imported, only") as error:
            read_checkpoint(tmp_path)
        assert "\n" not in str(error.value)


def test_old_names_of_attention_are_read(tmp_path):
    from safetensors.torch import load_file, save_file

    theirs("grey").save_pretrained(tmp_path)
    file, x = tmp_path / "diffusion_pytorch_model.safetensors", torch.linspace(-1, 1, 144).reshape(1, 1, 12, 12)
    before = load_denoiser(tmp_path).network.encode(x)[0]
    old = {}
    for name, tensor in load_file(file).items():
        for new, word in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{word}.")
        old[name] = tensor
    save_file(old, file, {"format": "pt"})
    torch.testing.assert_close(load_denoiser(tmp_path).network.encode(x)[0], before, rtol=0, atol=0)
