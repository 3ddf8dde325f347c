"""Data sets, and the codecs between stored data and the real numbers that a model sees. Imports only numerics."""

from scorefield.data.codec import Codec, DequantizedPixels, Pixels, Points, make_codec
from scorefield.data.dataset import Condition, Dataset, Examples, Split, as_dataset, from_arrays
from scorefield.data.datasets import (
    DATASETS,
    Source,
    codec_of,
    in_units_of,
    levels_of,
    load_dataset,
    source_of,
    standard_of,
)
from scorefield.data.images import load_images
from scorefield.data.points import mixture_parameters
from scorefield.data.transforms import batch_indices, dequantize, quantize, random_flip, require_within, to_unit

__all__ = [
    "DATASETS",
    "Codec",
    "Condition",
    "Dataset",
    "DequantizedPixels",
    "Examples",
    "Pixels",
    "Points",
    "Source",
    "Split",
    "as_dataset",
    "batch_indices",
    "codec_of",
    "dequantize",
    "from_arrays",
    "levels_of",
    "load_dataset",
    "load_images",
    "make_codec",
    "mixture_parameters",
    "quantize",
    "random_flip",
    "require_within",
    "source_of",
    "to_unit",
]
