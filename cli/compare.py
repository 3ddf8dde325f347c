"""Mode compare: every sampler at every budget on one checkpoint, and a page that shows what they make of the same noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scorefield.cli.drawing import PRECISION
from scorefield.cli.examples import own_data
from scorefield.cli.flags import BATCH_SIZE, CHECKPOINT, EMA, SEED, Flag
from scorefield.cli.guide import FLAGS as GUIDANCE
from scorefield.numerics.errors import ArgumentError, renamed

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.cli.guide import Guide
    from scorefield.evaluation.comparison.compare import Comparison
    from scorefield.evaluation.metrics import Reference

SUMMARY = "writes compare/index.html, samplers side by side with a recommendation, and the files behind the page"
FLAGS = (
    CHECKPOINT,
    Flag("samplers", str, "auto,unipc,ddim,euler_maruyama", "which samplers, each with options of its own after colons, "
                                                            "such as ddim:eta=1"),
    Flag("budgets", str, "5,10,20,50", "evaluations of the network that a sample may take; each sampler takes the most "
                                       "steps that keep to it"),
    Flag("num_samples", int, 1000, "how many samples of each pair of a sampler and a budget"),
    Flag("metrics", str, None, "which metrics, such as fid,kid, of which the first decides; by default those that "
                               "fit the data"),
    Flag("features", str, None, "the feature network: inception, digits, fashion_mnist, or a TorchScript file; by default "
                                "the project's own, where there is one for the data"),
    Flag("inception_weights", str, None, "a file with the Inception weights of the literature; by default downloaded"),
    Flag("reference_samples", int, None, "compare with so many training examples; by default with all"),
    Flag("bootstrap", int, 1000, "replicates of the 95 % intervals; 0: no intervals"),
    Flag("likelihood_examples", int, 64, "held-out and training examples in the histogram of likelihoods; 0: none"),
    PRECISION,
    *GUIDANCE,
    SEED, EMA, BATCH_SIZE,
)


def run(command: Command) -> None:
    """Compare samplers and write the page and the files behind it to compare/ in the run's folder."""
    from scorefield.cli.guide import guide_of
    from scorefield.evaluation.comparison.compare import compare
    from scorefield.numerics.devices import prepare_sampling

    values = command.asked.values
    samplers, budgets, metrics = _words("samplers", values), _budgets(values), _words("metrics", values)
    model = command.denoiser()
    prepare_sampling(model.network, values["precision"], command.device)
    guide = guide_of(command, model)
    reference = _reference(command, guide)
    command.write_imported()
    folder = command.run / f"compare{guide.suffix}{_changed(command)}"
    with renamed(names={"n": "num_samples", "likelihood": "likelihood_examples"}):
        comparison = compare(
            guide.of(model, command.device) if guide.described else model, samplers=samplers, budgets=budgets,
            metrics=metrics or None, n=values["num_samples"], seed=values["seed"], batch_size=values["batch_size"],
            device=command.device, reference=reference, bootstrap=values["bootstrap"],
            likelihood=values["likelihood_examples"], title=f"Samplers on {command.name or command.run.name}",
            facts=_facts(command, guide))
    path = comparison.write(folder)
    for out in comparison.left_out:
        print(f"left out: {out.name}{'' if out.budget is None else f' with {out.budget}'}: {out.reason}")
    print(_told(comparison))
    print(f"wrote {path} and the files behind it; {comparison.sampling_seconds:.1f} s of sampling, "
          f"{comparison.other_seconds:.1f} s of all else")


def _words(name: str, values: Any) -> list[str]:
    """The words of a flag that holds several."""
    text = values[name]
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if text is not None and not all(words):
        raise ArgumentError(f"{name} must be words with commas between them, got {text!r}", name)
    return words


def _budgets(values: Any) -> list[int]:
    words = _words("budgets", values)
    if not all(word.isdecimal() and word.isascii() and 1 <= int(word) <= 10**6 for word in words):
        raise ArgumentError(f"budgets must be whole numbers of evaluations such as 5,10,20, got {values['budgets']!r}",
                            "budgets")
    return [int(word) for word in words]


def _reference(command: Command, guide: Guide) -> Reference:
    """The run's data, or their examples of the classes that are asked for."""
    from scorefield.data import codec_of
    from scorefield.evaluation.comparison.classes import of_classes
    from scorefield.evaluation.evaluate import statistics_folder
    from scorefield.evaluation.metrics import Reference, features_of

    values, dataset = command.asked.values, own_data(command)
    assert command.stored is not None
    with renamed(names={"weights": "inception_weights"}):
        network = features_of(values["features"], dataset, values["inception_weights"])
    if guide.labels is not None:
        dataset = of_classes(dataset, guide.labels)
    return Reference(dataset, codec_of(command.config.data, command.stored), network, statistics_folder(),
                     values["reference_samples"], command.device)


def _changed(command: Command) -> str:
    """What the folder's name says of settings that make other samples."""
    values, precision = command.asked.values, _precision(command)
    words = [*([f"seed{values['seed']}"] if values["seed"] else []), *([] if values["ema"] else ["raw"]),
             *([] if precision == "fp32" else [precision])]
    return "".join(f"_{word}" for word in words)


def _precision(command: Command) -> str:
    """fp32 or bf16; what auto chose."""
    from scorefield.numerics.devices import autocast_dtype

    return "fp32" if autocast_dtype(command.asked.values["precision"], command.device) is None else "bf16"


def _facts(command: Command, guide: Guide) -> dict[str, str]:
    """What the page says of the model."""
    from scorefield.checkpoints.formats.run import newest_checkpoint

    newest, values = newest_checkpoint(command.run), command.asked.values
    facts = {"run": f"{command.run}, {newest.stem if newest else ''}{'' if values['ema'] else ', raw weights'}, "
                    f"{_precision(command)}"}
    if guide.described:
        facts["guidance"] = ", ".join(
            f"{name} {'-'.join(map(str, value)) if isinstance(value, list | tuple) else value}"
            for name, value in guide.described.items())
    return facts


def _told(comparison: Comparison) -> str:
    return "\n".join(comparison.recommendation.sentences)
