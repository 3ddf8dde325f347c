"""Data sets and the maps between integer levels and the reals. Knows nothing of the other packages."""

from scorefield.data.datasets import DATASETS, Dataset, levels_of, load_dataset, load_images, reader_of
from scorefield.data.points import mixture_parameters
from scorefield.data.transforms import batch_indices, dequantize, quantize, random_flip, require_within, to_unit

__all__ = [
    "DATASETS",
    "Dataset",
    "batch_indices",
    "dequantize",
    "levels_of",
    "load_dataset",
    "load_images",
    "mixture_parameters",
    "quantize",
    "random_flip",
    "reader_of",
    "require_within",
    "to_unit",
]
