"""Networks that may take a label: the embedding of the label is added to that of time, before the blocks see it.

Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3.1, as diffusers' UNet2DModel does it.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.models.conditions import GUIDANCE, LABEL, Condition
from scorefield.models.layers import timestep_embedding, zero_init
from scorefield.numerics.errors import ArgumentError

CLASS_EMBEDDINGS = ("table", "timestep")


class Waves(nn.Sequential):
    """A number (batch,): its sinusoidal embedding of `waves` values, then Linear, SiLU, Linear, as time has them."""

    def __init__(self, waves: int, width: int, freq_shift: int):
        super().__init__(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))
        self.waves, self.freq_shift = waves, freq_shift

    def forward(self, number: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        return super().forward(timestep_embedding(number, self.waves, self.freq_shift).to(dtype))


class ScaleWaves(nn.Module):
    """A scale of guidance: its sinusoidal embedding of `waves` values, then Linear, SiLU, Linear, the last at zero, so that
    a student begins as its teacher without guidance (Meng et al. 2023, "On Distillation of Guided Diffusion Models").

    ends  of the scales, which are told as numbers from 0 to 100
    """

    def __init__(self, ends: tuple[float, float], waves: int, width: int):
        super().__init__()
        self.ends, self.waves = ends, waves
        self.first, self.last = nn.Linear(waves, width), zero_init(nn.Linear(width, width))

    def forward(self, scale: Tensor) -> Tensor:
        low, high = self.ends
        place = 100 * (scale.float() - low) / (high - low)
        return self.last(F.silu(self.first(timestep_embedding(place, self.waves).to(self.first.weight.dtype))))


class LabelledNetwork(nn.Module):
    """A network with the attributes `classes` and `conditions`, and the embedding of the label in `label`, or None.

    One that takes the scale of guidance, too, has its ends in `guidance`, and its embedding in `scale_embedding`.

    A subclass calls `_take_labels` last in its constructor, so that the weights of a network without labels stay as they
    are, and `_with_label` on the embedding of time.
    """

    classes: int | None
    conditions: tuple[str, ...]
    label: nn.Module | None
    guidance: tuple[float, float] | None
    scale_embedding: nn.Module | None
    last_layers: tuple[str, ...] = ()      # the layers that the output is made of, by their names

    def _take_labels(self, classes: int | None, width: int, kind: str = "table", waves: int = 0,
                     freq_shift: int = 1, guidance: Sequence[float] | None = None) -> None:
        """Take labels from 0 to `classes`, the last of which means "no label"; none if `classes` is None.

        width              of the embedding of time
        kind               "table": a row for each label, drawn from N(0, 1) (state: label.weight, (classes + 1, width));
                           "timestep": `Waves`, of `waves` and `freq_shift`
        guidance           ends of the scales of guidance that it takes beside the label, LOW, HIGH; None: it takes none

        Raises ArgumentError for fewer than one class, an unknown kind, and scales that are none or lack a label.
        """
        if classes is not None and classes < 1:
            raise ArgumentError(f"classes must be at least 1, or None for no labels, got {classes}", "classes")
        if kind not in CLASS_EMBEDDINGS:
            raise ArgumentError(f"unknown class_embedding {kind!r}; choose from {', '.join(CLASS_EMBEDDINGS)}",
                                "class_embedding")
        if classes is None and kind != "table":
            raise ArgumentError(f"class_embedding {kind!r} needs the number of classes, but classes is None",
                                "class_embedding", "classes")
        self.classes, self.conditions, self.label = classes, () if classes is None else (LABEL,), None
        if classes is not None:
            table = kind == "table"
            self.label = nn.Embedding(classes + 1, width) if table else Waves(waves, width, freq_shift)
        self.guidance, self.scale_embedding = None, None
        if guidance is not None:
            if len(guidance) != 2 or not guidance[0] < guidance[1]:
                raise ArgumentError(f"guidance must be the lowest and the highest scale, such as 0,4; got {tuple(guidance)}",
                                    "guidance")
            if classes is None:
                raise ArgumentError("guidance needs labels to guide to; give classes, too", "guidance", "classes")
            self.guidance = float(guidance[0]), float(guidance[1])
            self.conditions, self.scale_embedding = (LABEL, GUIDANCE), ScaleWaves(self.guidance, waves or 128, width)

    def _with_label(self, embedding: Tensor, condition: Condition | None) -> Tensor:
        """The embedding of time (batch, width) plus that of the condition's label, if the network takes one.

        Raises ArgumentError if a condition is missing, and for one that the network does not take.
        """
        self._require(condition)
        if self.label is None or condition is None:
            return embedding
        embedding = embedding + self.label(condition[LABEL])
        return embedding if self.scale_embedding is None else embedding + self.scale_embedding(condition[GUIDANCE])

    def _require(self, condition: Condition | None) -> None:
        """ArgumentError unless the condition has just what the network takes."""
        given, kind = condition or {}, type(self).__name__
        for name in self.conditions:
            if name not in given:
                of_label = f"{{'label': integers (batch,)}}; the integer {self.classes} means no label"
                what = of_label if name == LABEL else name
                raise ArgumentError(f"this {kind} needs the condition {what}", "condition")
        for name in given:
            if name not in self.conditions:
                takes = f"takes {', '.join(self.conditions)}" if self.conditions else "takes no condition"
                raise ArgumentError(f"this {kind} {takes}, got {', '.join(given)}; make it with "
                                    f"{'the number of classes' if name == LABEL else name}", "condition")
