"""What samples are compared with: the flags of the data, the feature network and the intervals, and what they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scorefield.cli.examples import own_data
from scorefield.cli.flags import Flag
from scorefield.numerics.errors import renamed

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.evaluation.metrics import Reference

BOOTSTRAP = 1000      # replicates
FLAGS = (
    Flag("features", str, None, "the feature network: inception, digits, fashion_mnist, or a TorchScript file; by default "
                                "the project's own, where there is one for the data"),
    Flag("inception_weights", str, None, "a file with the Inception weights of the literature; by default downloaded"),
    Flag("reference_samples", int, None, "compare with so many training examples; by default with all"),
    Flag("bootstrap", int, BOOTSTRAP, "replicates of the 95 % intervals; 0: no intervals"),
)


def reference_of(command: Command, labels: Sequence[int] | None = None, classes: int | None = None) -> Reference:
    """The run's data, or their examples of the classes that samples have; ArgumentError unless the network takes them.

    labels  of the samples, among so many classes of the model
    """
    from scorefield.evaluation.classes import compared_with, uneven
    from scorefield.evaluation.evaluate import require_features, statistics_folder
    from scorefield.evaluation.metrics import Reference, features_of
    from scorefield.numerics.processes import launched

    values, dataset = command.asked.values, own_data(command)
    with renamed(names={"weights": "inception_weights"}):
        network = features_of(values["features"], dataset, values["inception_weights"])
    dataset = compared_with(dataset, labels, classes)
    if labels is not None and (note := uneven(dataset, labels)) and launched().first:
        print(note)
    require_features(network, dataset, command.device)
    return Reference(dataset, command.codec_for(dataset), network, statistics_folder(),
                     values["reference_samples"], command.device)
