"""openai's .pt files: outputs equal to those of a reference that applies the published formulas to a file's own tensors.

The reference knows names and formulas alone: it walks input_blocks, middle_block and output_blocks of a state dict, and
applies to each part what its keys say. It shares nothing with the network that is compared.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from scorefield.checkpoints import load_denoiser, read_checkpoint
from scorefield.checkpoints.formats import openai
from scorefield.checkpoints.load import find
from scorefield.likelihood import chain_elbo
from scorefield.models.denoiser import TIME_INPUTS
from scorefield.samplers import make_sampler, prior_sample

WIDTH = 32


def state_of(multipliers=(1, 2), blocks=1, attended=(1,), outputs=6, channels=3, scale_shift=True, residual=False,  # noqa: C901
             classes=None, axes=2, std=0.15):
    """A state dict of a UNetModel of random weights."""
    generator, state, time = torch.Generator().manual_seed(0), {}, 4 * WIDTH

    def layer(name, *shape):
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * std
        state[f"{name}.bias"] = torch.randn(shape[:1], generator=generator) * std

    def norm(name, c):
        state[f"{name}.weight"] = 1 + torch.randn(c, generator=generator) * std
        state[f"{name}.bias"] = torch.randn(c, generator=generator) * std

    def block(name, c, to):
        norm(f"{name}.in_layers.0", c)
        layer(f"{name}.in_layers.2", to, c, *[3] * axes)
        layer(f"{name}.emb_layers.1", to * (1 + scale_shift), time)
        norm(f"{name}.out_layers.0", to)
        layer(f"{name}.out_layers.3", to, to, *[3] * axes)
        if c != to:
            layer(f"{name}.skip_connection", to, c, *[1] * axes)

    def attention(name, c):
        norm(f"{name}.norm", c)
        layer(f"{name}.qkv", 3 * c, c, 1)
        layer(f"{name}.proj_out", c, c, 1)

    layer("time_embed.0", time, WIDTH)
    layer("time_embed.2", time, time)
    if classes:
        state["label_emb.weight"] = torch.randn(classes, time, generator=generator)
    layer("input_blocks.0.0", WIDTH, channels, *[3] * axes)
    c, skips, n = WIDTH, [WIDTH], 1
    for level, m in enumerate(multipliers):
        for _ in range(blocks):
            block(f"input_blocks.{n}.0", c, c := m * WIDTH)
            if level in attended:
                attention(f"input_blocks.{n}.1", c)
            skips.append(c)
            n += 1
        if level < len(multipliers) - 1:
            if residual:
                block(f"input_blocks.{n}.0", c, c)
            else:
                layer(f"input_blocks.{n}.0.op", c, c, *[3] * axes)
            skips.append(c)
            n += 1
    block("middle_block.0", c, c)
    attention("middle_block.1", c)
    block("middle_block.2", c, c)
    n = 0
    for level, m in reversed(list(enumerate(multipliers))):
        for j in range(blocks + 1):
            block(f"output_blocks.{n}.0", c + skips.pop(), c := m * WIDTH)
            if level in attended:
                attention(f"output_blocks.{n}.1", c)
            if level and j == blocks:
                name = f"output_blocks.{n}.{1 + (level in attended)}"
                block(name, c, c) if residual else layer(f"{name}.conv", c, c, *[3] * axes)
            n += 1
    norm("out.0", c)
    layer("out.2", outputs, c, *[3] * axes)
    return state


def reference(state, x, timesteps, label=None, heads=4, order="heads"):  # noqa: C901
    """The output of a UNetModel (Dhariwal and Nichol 2021, section 3 and appendix) with these tensors, in their dtype."""
    axes = x.ndim - 2
    conv, pool = (F.conv1d, F.avg_pool1d) if axes == 1 else (F.conv2d, F.avg_pool2d)

    def weights(name):
        return state[f"{name}.weight"].to(x), state[f"{name}.bias"].to(x)

    def norm(name, h):
        return F.group_norm(h, 32, *weights(name), eps=1e-5)

    def block(name, h, change=lambda h: h):
        inner = conv(change(F.silu(norm(f"{name}.in_layers.0", h))), *weights(f"{name}.in_layers.2"), padding=1)
        of_time = F.linear(F.silu(embedding), *weights(f"{name}.emb_layers.1"))[(..., *[None] * axes)]
        if of_time.shape[1] == 2 * inner.shape[1]:
            scale, shift = of_time.chunk(2, 1)
            inner = norm(f"{name}.out_layers.0", inner) * (1 + scale) + shift
        else:
            inner = norm(f"{name}.out_layers.0", inner + of_time)
        inner = conv(F.silu(inner), *weights(f"{name}.out_layers.3"), padding=1)
        h = change(h)
        return inner + (conv(h, *weights(f"{name}.skip_connection")) if f"{name}.skip_connection.weight" in state else h)

    def attention(name, h):
        flat = h.flatten(2)
        rows = F.conv1d(norm(f"{name}.norm", flat), *weights(f"{name}.qkv"))
        size, found = h.shape[1] // heads, []
        for head in range(heads):
            if order == "heads":      # each head's q, k and v one after the other
                q, k, v = rows[:, 3 * size * head:3 * size * (head + 1)].split(size, 1)
            else:
                q, k, v = (part[:, size * head:size * (head + 1)] for part in rows.chunk(3, 1))
            found.append(v @ torch.softmax(q.mT @ k / math.sqrt(size), -1).mT)
        return (flat + F.conv1d(torch.cat(found, 1), *weights(f"{name}.proj_out"))).reshape(h.shape)

    def double(h):
        return F.interpolate(h, scale_factor=2, mode="nearest")

    def has(key):
        return f"{key}.weight" in state

    angles = timesteps.to(x)[:, None] * torch.exp(-math.log(10_000) / (WIDTH // 2) * torch.arange(WIDTH // 2).to(x))
    waves = torch.cat([angles.cos(), angles.sin()], 1)
    embedding = F.linear(F.silu(F.linear(waves, *weights("time_embed.0"))), *weights("time_embed.2"))
    if label is not None:
        embedding = embedding + state["label_emb.weight"].to(x)[label]
    h = conv(x, *weights("input_blocks.0.0"), padding=1)
    skips, n = [h], 1
    ups = sum(has(f"output_blocks.{i}.{j}.{part}") for i in range(99) for j in (1, 2) for part in ("conv", "in_layers.0"))
    per_level = len({key.split(".")[1] for key in state if key.startswith("output_blocks")}) // (ups + 1)
    while any(key.startswith(f"input_blocks.{n}.") for key in state):
        name = f"input_blocks.{n}.0"
        if has(f"{name}.op"):
            h = conv(h, *weights(f"{name}.op"), stride=2, padding=1)
        else:
            h = block(name, h, (lambda h: pool(h, 2)) if n % per_level == 0 else lambda h: h)
        h = attention(f"input_blocks.{n}.1", h) if has(f"input_blocks.{n}.1.qkv") else h
        skips.append(h)
        n += 1
    h = block("middle_block.2", attention("middle_block.1", block("middle_block.0", h)))
    n = 0
    while skips:
        h = block(f"output_blocks.{n}.0", torch.cat([h, skips.pop()], 1))
        for j in (1, 2):
            name = f"output_blocks.{n}.{j}"
            if has(f"{name}.qkv"):
                h = attention(name, h)
            elif has(f"{name}.conv"):
                h = conv(double(h), *weights(f"{name}.conv"), padding=1)
            elif has(f"{name}.in_layers.0"):
                h = block(name, h, double)
        n += 1
    return conv(F.silu(norm("out.0", h)), *weights("out.2"), padding=1)


def saved(state, path):
    torch.save(state, path)
    return path


SIZE = {"data": {"image_size": 8}}
CASES = {
    "learned": ({}, {}, {}),
    "fixed": ({"outputs": 3, "scale_shift": False, "multipliers": (1, 2, 2), "attended": (0, 2), "blocks": 2}, {}, {}),
    "residual": ({"residual": True, "blocks": 2}, {}, {}),
    "residual without attention": ({"residual": True, "attended": ()}, {}, {}),
    "new order": ({"multipliers": (1, 2, 4), "attended": (0, 1, 2)}, {"attention_order": "qkv"}, {"order": "qkv"}),
    "two heads": ({}, {"attention_heads": 2}, {"heads": 2}),
    "head channels": ({"attended": ()}, {"attention_head_dim": 16}, {"heads": 4}),
    "labels": ({"classes": 5}, {}, {}),
    "one channel": ({"channels": 1, "outputs": 2}, {}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_published_network(name, tmp_path):
    made, said, told = CASES[name]
    state = state_of(**made)
    model = load_denoiser(saved(state, tmp_path / "model.pt"), config=SIZE | {"model": said})
    x = torch.randn(2, state["input_blocks.0.0.weight"].shape[1], 8, 8, generator=torch.Generator().manual_seed(1))
    time, label = torch.tensor([3.0, 714.0]), torch.tensor([4, 1]) if made.get("classes") else None
    with torch.no_grad():
        ours = model.network(x, time, *([{"label": label}] if label is not None else []))
        theirs = reference({key: value.double() for key, value in state.items()}, x.double(), time, label, **told)
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())
    assert model.learned_variance == (made.get("outputs") != 3)


def test_series_are_read_too(tmp_path):
    state = state_of(axes=1, channels=2, outputs=4)
    model = load_denoiser(saved(state, tmp_path / "model.pt"), config={"shape": [2, 16]})
    x, time = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 714.0])
    with torch.no_grad():
        theirs = reference({key: value.double() for key, value in state.items()}, x.double(), time)
        assert float((model.network(x, time) - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


def test_the_variance_is_theirs_and_serves_strided_sampling_and_the_bound(tmp_path):
    """The second half r of the output means (r + 1) / 2 log beta + (1 - r) / 2 log beta_tilde."""
    state = state_of()
    model = load_denoiser(saved(state, tmp_path / "ema_0.9999_000100.pt"), config=SIZE)
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), 0.5
    with torch.no_grad():
        eps, share = model.with_share(x, t, "eps")
        theirs = reference(state, x, torch.full((2,), 499.0))
    torch.testing.assert_close(torch.cat([eps, 2 * share - 1], 1), theirs, rtol=1e-4, atol=1e-4)
    x_T, k = prior_sample(model.sde, (3, 8, 8), range(2)), torch.zeros(1, 3, 8, 8, dtype=torch.int64)
    sample = make_sampler("ancestral", steps=5, variance="learned")(model, x_T, range(2))
    bound = chain_elbo(model, k, 256, steps=5, variance="learned", seeds=[0])
    assert sample.x.isfinite().all() and bound.value.isfinite().all()


def test_what_the_file_does_not_tell_has_their_defaults_and_is_said(tmp_path):
    path = saved(state_of((1, 2, 2, 2), attended=(1,)), tmp_path / "model.pt")
    checkpoint = read_checkpoint(path)
    config = checkpoint.config
    assert find(path)[0] is openai
    assert config["sde"] == {"name": "ddpm", "schedule": "linear", "steps": 1000} and config["shape"] == [3, 32, 32]
    assert config["model"]["attention_heads"] == 4 and config["model"]["attention_order"] == "heads"
    assert config["model"]["attention_resolutions"] == (16,) and config["model"]["time_input"] == "index"
    assert config["training"] == {"objective": "learned_variance"}
    assert checkpoint.note == ("assumed, since the file does not tell: 4 heads of attention, qkv in the order of heads, the "
                               "linear schedule, pictures of 32 pixels a side")
    said = {"sde": {"name": "ddpm", "schedule": "cosine", "steps": 4000}, "data": {"image_size": 32},
            "model": {"attention_heads": 4, "attention_order": "heads"}}
    whole = read_checkpoint(path, said)
    assert whole.note == "" and whole.config["model"]["time_input"] == "index1000"
    sde = whole.denoiser().sde
    assert float(TIME_INPUTS["index1000"](sde, torch.tensor(1.0).double())) == pytest.approx(3999 / 4)
    assert float(sde.alpha(1 / 4000) ** 2) == pytest.approx(math.cos(math.pi / 2 * (1 / 4000 + 0.008) / 1.008) ** 2
                                                           / math.cos(math.pi / 2 * 0.008 / 1.008) ** 2)


def test_labels_have_no_row_of_none_and_weights_of_16_bits_are_read(tmp_path):
    state = {key: value.half() if key.startswith("middle") else value for key, value in state_of(classes=5).items()}
    checkpoint = read_checkpoint(saved(state, tmp_path / "model.pt"), SIZE)
    weight = checkpoint.averaged["label.weight"]
    assert torch.equal(weight[:5], state["label_emb.weight"]) and not weight[5].any()
    assert "float16 are read as float32" in checkpoint.note and checkpoint.config["training"]["label_dropout"] == 0
    assert not checkpoint.denoiser().takes.label_dropout


@pytest.mark.parametrize("change, message", [
    (lambda state: state.pop("out.2.bias"), r"1 missing \(out.2.bias\)"),
    (lambda state: state.update({"out.3.bias": torch.zeros(3)}), r"1 extra \(out.3.bias\)"),
    (lambda state: state.pop("input_blocks.0.0.weight"), "is not a UNetModel"),
    (lambda state: state.update({"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}), "super-resolution"),
    (lambda state: state.update({"input_blocks.0.0.weight": torch.zeros(16, 3, 3, 3)}), "only multiples"),
    (lambda state: state.pop("input_blocks.1.0.out_layers.3.weight"), "in an order"),
])
def test_another_network_is_refused_in_one_line(change, message, tmp_path):
    state = state_of()
    change(state)
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(saved(state, tmp_path / "model.pt"), SIZE)
    assert "\n" not in str(error.value)


def test_settings_that_the_file_tells_cannot_be_changed(tmp_path):
    path = saved(state_of(), tmp_path / "model.pt")
    for config, message in (({"model": {"scale_shift": False}}, "was trained with model.scale_shift=True"),
                            ({"model": {"learned_variance": False}}, "was trained with model.learned_variance=True"),
                            ({"model": {"attention_heads": 5}}, "cannot have 5 heads")):
        with pytest.raises(ValueError, match=message):
            read_checkpoint(path, SIZE | config)
    with pytest.raises(ValueError, match="does not store the size"):
        read_checkpoint(path)
