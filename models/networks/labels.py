"""Networks that may take a label: the embedding of the label is added to that of time, before the blocks see it.

Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3.1, as diffusers' UNet2DModel does it.
"""

from torch import Tensor, nn

from scorefield.models.conditions import LABEL, Condition
from scorefield.models.layers import timestep_embedding
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


class LabelledNetwork(nn.Module):
    """A network with the attributes `classes` and `conditions`, and the embedding of the label in `label`, or None.

    A subclass calls `_take_labels` last in its constructor, so that the weights of a network without labels stay as they
    are, and `_with_label` on the embedding of time.
    """

    classes: int | None
    conditions: tuple[str, ...]
    label: nn.Module | None
    last_layers: tuple[str, ...] = ()      # the layers that the output is made of, by their names

    def _take_labels(self, classes: int | None, width: int, kind: str = "table", waves: int = 0,
                     freq_shift: int = 1) -> None:
        """Take labels from 0 to `classes`, the last of which means "no label"; none if `classes` is None.

        width              of the embedding of time
        kind               "table": a row for each label, drawn from N(0, 1) (state: label.weight, (classes + 1, width));
                           "timestep": `Waves`, of `waves` and `freq_shift`

        Raises ArgumentError for fewer than one class or an unknown kind.
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

    def _with_label(self, embedding: Tensor, condition: Condition | None) -> Tensor:
        """The embedding of time (batch, width) plus that of the condition's label, if the network takes one.

        Raises ArgumentError if a condition is missing, and for one that the network does not take.
        """
        self._require(condition)
        return embedding if self.label is None or condition is None else embedding + self.label(condition[LABEL])

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
