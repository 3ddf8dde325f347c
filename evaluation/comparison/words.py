"""What the page and the recommendation of a comparison call things: samples of a model, or restorations of measurements."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """The words of one kind of comparison.

    rows     what the rows are
    counted  what the intervals are over, in the plural
    made     what a row makes, in the plural
    unit     what seconds and evaluations are of, with an article
    flow     whether rows may have a distance to the exact flow
    """

    kicker: str = "Samplers compared"
    title: str = "The same noise, by each sampler"
    text: str = ("Every picture starts from the same {shown}, so each place shows what a sampler makes of the same noise. "
                 "Move the slider to change the number of evaluations, and choose a sampler to enlarge its picture.")
    choice: str = "Sampler"
    rows: str = "pairs of a sampler and a budget"
    counted: str = "samples"
    made: str = "samples"
    unit: str = "a sample"
    how: str = "of each from the same noise"
    budget: str = ("the most evaluations of the network that a sampler may take for a sample. It takes as many steps as "
                   "keep to it; the column Evaluations says what it took.")
    recommendation: str = ("the row with the fewest evaluations among those whose value lies within the interval of the "
                           "best row, and whose interval reaches the floor, if there are such rows.")
    flow: bool = True


SAMPLES = Words()
RESTORATIONS = Words(
    "Restorations compared", "The same measurements, by each method and sampler",
    "Each row of a picture is a measurement: the truth, the restoration without a model where there is one, the mean, then "
    "answers. Move the slider to change the number of evaluations, and choose a method to enlarge its picture.",
    "Method and sampler", "rows of a method, a sampler and a budget", "measurements", "answers", "a measurement",
    "by the same seeds",
    "the most evaluations of the network for a measurement, those of all its answers or particles together. A sampler takes "
    "as many steps as keep to it. The column Evaluations says what it took: twisted_smc takes more where particles are "
    "resampled and seen again.",
    "the row with the fewest evaluations among those whose value lies within the interval of the best row.", False)
