"""Data sets and the maps between integer levels and the reals. Knows nothing of the other packages."""

from data.datasets import DATASETS, Dataset, load_dataset
from data.points import mixture_parameters
from data.transforms import batch_indices, dequantize, quantize, random_flip, to_unit

__all__ = [
    "DATASETS",
    "Dataset",
    "batch_indices",
    "dequantize",
    "load_dataset",
    "mixture_parameters",
    "quantize",
    "random_flip",
    "to_unit",
]
