"""Settings that do nothing, or that harm a model without an error: a line for each, printed when training starts.

They are no errors, since published configs and checkpoints have some, and since a user may mean them. What can have no use
at all is refused elsewhere. The settings of the data are judged by a sample of the training examples, as the model sees
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from scorefield.configs.sections import SECTIONS
from scorefield.data.codec import Codec, Pixels, Points
from scorefield.data.dataset import Dataset
from scorefield.models.denoiser import Denoiser
from scorefield.models.layers import SelfAttention, resolution
from scorefield.numerics.processes import launched
from scorefield.sde_lib.sde import SDE

SAMPLE = 256      # training examples that are looked at
HIDDEN = 0.1      # share of the data's size in that of the noise: of the data at t_max, of the noise at t_min

# Fields that one value of another field makes meaningless: (field, what that is, whether it is so in this config).
IGNORED = (
    ("model.attention_head_dim", "there is no attention", lambda config, model: not _attends(model)),
    ("model.fourier_scale", "model.embedding is positional", lambda config, model: not _fourier(config)),
    ("model.freq_shift", "model.embedding is fourier", lambda config, model: _fourier(config)),
    ("model.last_label", "model.embedding is fourier", lambda config, model: _fourier(config)),
    ("model.combine", "model.progressive_input is not input_skip",
     lambda config, model: config["model"].get("progressive_input") != "input_skip"),
    ("model.downsample_padding", "there is one level", lambda config, model: len(config["model"]["multipliers"]) < 2),
    ("model.learned_variance", "training.objective is not learned_variance, so the variance keeps the geometric mean of beta"
     " and beta_tilde", lambda config, model: config["training"]["objective"] != "learned_variance"),
    ("training.label_dropout", "the model takes no labels (model.classes)", lambda config, model: not model.takes.classes),
    ("training.importance", "training.weighting is simple, in proportion to which times are drawn anyway",
     lambda config, model: config["training"].get("weighting") == "simple"),
    ("training.memory_format", "the network has no convolutions of pictures",
     lambda config, model: not any(p.ndim == 4 for p in model.parameters())),
    ("training.snapshots_precision", "no snapshots are taken (training.snapshots_every)",
     lambda config, model: not config["training"]["snapshots_every"]),
    ("training.sample_steps", "no previews are made (training.sample_every)",
     lambda config, model: not 0 < config["training"]["sample_every"] <= config["training"]["steps"]),
    ("training.metrics", "no figures of samples are made (training.metrics_every)",
     lambda config, model: _unmeasured(config)),
    ("training.metrics_samples", "no figures of samples are made (training.metrics_every)",
     lambda config, model: _unmeasured(config)),
    ("model.size", "model.width, model.layers and model.heads replace all of its numbers",
     lambda config, model: all(config["model"].get(name) for name in ("width", "layers", "heads"))),
    ("training.flow_steps", "training.coupling is not reflow",
     lambda config, model: config["training"].get("coupling") != "reflow"),
    ("training.perceptual_weight", "no features are to be kept (training.perceptual)",
     lambda config, model: not config["training"].get("perceptual")),
    ("training.discriminator_weight", "there is no discriminator (model.discriminator)",
     lambda config, model: not config["model"].get("discriminator")),
    ("training.discriminator_start", "there is no discriminator (model.discriminator)",
     lambda config, model: not config["model"].get("discriminator")),
    ("training.sharding", "there is one process, without torchrun", lambda config, model: launched().size == 1),
    ("training.sharded_saves", "there is one process, without torchrun", lambda config, model: launched().size == 1),
)


def doubts(config: Mapping[str, Any], dataset: Dataset, model: Any, codec: Codec) -> list[str]:
    """A line for each setting of `config` that does nothing for this model and these data, or may harm.

    model  the score model, or the classifier, that is to be trained
    """
    lines = list(_of_fields(config, model))
    lines += _of_attention(config, codec.event(dataset.shape), model)
    lines += _of_training(config["training"], dataset)
    lines += _of_labels(config, dataset, model)
    lines += _of_range(config, codec)
    if isinstance(model, Denoiser):
        lines += _of_data(_sample(dataset, codec), config, model, codec)
    return lines


def _of_fields(config: Mapping[str, Any], model: Any) -> Iterator[str]:
    for field, why, applies in IGNORED:
        section, _, name = field.partition(".")
        kind, value = SECTIONS[section], config[section].get(name)
        declared = kind.fields(config[section][kind.word], config[section]).get(name)
        if declared is not None and value != declared.default and applies(config, model):
            yield f"{field}={value} does nothing: {why}"


def _of_attention(config: Mapping[str, Any], shape: tuple[int, ...], model: Any) -> Iterator[str]:
    asked = config["model"].get("attention_resolutions")
    if not asked:
        return
    reached = [resolution(shape[1:], level) for level in range(len(config["model"]["multipliers"]))]
    if missed := [size for size in asked if size not in reached]:
        yield (f"model.attention_resolutions={tuple(asked)}: the network never has {' or '.join(map(str, missed))}, only "
               f"{', '.join(map(str, reached))}, so there is no attention there")


def _of_training(training: Mapping[str, Any], dataset: Dataset) -> Iterator[str]:
    steps, warmup, workers = training["steps"], training["warmup"], training["workers"]
    if workers > 0 and getattr(dataset.train, "in_memory", False):
        yield f"training.workers={workers} does nothing: the examples are in memory, where a batch takes no reading"
    if warmup >= steps:
        yield (f"training.warmup={warmup} is not over within training.steps={steps}: the learning rate only gets to "
               f"{training['learning_rate'] * steps / warmup:.3g} of {training['learning_rate']:g}")
    if training["decay"] == "cooldown" and (cooldown := training["cooldown"]) > steps - warmup > 0:
        yield (f"training.cooldown={cooldown} is longer than what training.warmup={warmup} leaves of training.steps={steps}"
               f": the learning rate falls over the last {steps - warmup} steps")
    if training["decay"] == "inverse_sqrt" and (reference := training["reference"]) >= steps:
        yield f"training.reference={reference} is not reached within training.steps={steps}: the learning rate never falls"


def _of_labels(config: Mapping[str, Any], dataset: Dataset, model: Any) -> Iterator[str]:
    if config["data"].get("label") and not config["model"].get("classes"):
        yield (f"data.label={config['data']['label']} names {dataset.classes} classes, and the model is told none; set "
               f"model.classes={dataset.classes}")


def _of_range(config: Mapping[str, Any], codec: Codec) -> Iterator[str]:
    data, centred = config["data"], config["model"].get("centred", True)
    ends = data.get("low", -1.0), data.get("high", 1.0)
    if isinstance(codec, Points):
        if ends != (-1.0, 1.0):
            yield f"data.low={ends[0]:g} and data.high={ends[1]:g} do nothing: the data are numbers without levels"
        ends = (-1.0, 1.0)
    if not centred and ends != (0.0, 1.0):
        yield ("model.centred=False is for data in [0, 1]: the network sees 2 x - 1, and these data are "
               + ("standardised" if isinstance(codec, Points) else f"in [{ends[0]:g}, {ends[1]:g}]"))


def _sample(dataset: Dataset, codec: Codec) -> Tensor:
    n = len(dataset.train)
    data = dataset.train[torch.arange(min(n, SAMPLE)) * n // min(n, SAMPLE)][0]      # a table may be sorted
    u = torch.rand(codec.noise_like(data).shape, generator=torch.Generator().manual_seed(0)) if codec.noisy else None
    return codec.encode(data, u).double()


def _of_data(x: Tensor, config: Mapping[str, Any], model: Denoiser, codec: Codec) -> Iterator[str]:
    """What is told by the size of the data as the model sees them, and the noise at both ends of time."""
    sde, size, std = model.sde, float(x.square().mean().sqrt()), float(x.std())
    seen = f"the data, as the model sees them, go from {float(x.min()):.4g} to {float(x.max()):.4g}"
    advice = "standardise them (data.standardise)" if isinstance(codec, Points) else "set data.low=-1 and data.high=1"
    last, first = (_relative(sde, t) for t in (sde.t_max, sde.t_min))
    if size * last[0] > HIDDEN * last[1]:
        yield (f"{seen}, which the noise of {sde} does not hide at its end: their size there is {size * last[0]:.3g}, "
               f"that of the noise {last[1]:.3g}; {advice}, or let the SDE add more noise")
    elif std * first[0] * HIDDEN < first[1]:
        yield (f"{seen}, which is little beside the least noise of {sde}, {first[1]:.2g}; {advice}")
    elif isinstance(codec, Points) and 0 <= float(x.min()) and float(x.max()) <= 1 and last[0] < 0.5:
        yield f"{seen}, as if scaled to [0, 1]; with {sde} data lie about 0, such as in [-1, 1]: {advice}"
    elif isinstance(codec, Pixels) and codec.low >= 0 and last[0] < 0.5:
        yield f"{seen}; with {sde} data lie about 0, such as in [-1, 1]: {advice}"
    told = model.input_std
    if told is not None and not 0.6 * std < told < 1.6 * size:
        yield f"model.input_std={told:g}, and the standard deviation of the data, as the model sees them, is {std:.3g}"


def _relative(sde: SDE, t: float) -> tuple[float, float]:
    return float(sde.alpha(t)), float(sde.sigma(t))


def _unmeasured(config: Mapping[str, Any]) -> bool:
    return not 0 < config["training"]["metrics_every"] <= config["training"]["steps"]


def _attends(model: Any) -> bool:
    return any(isinstance(module, SelfAttention) for module in model.modules())


def _fourier(config: Mapping[str, Any]) -> bool:
    return config["model"].get("embedding") == "fourier"
