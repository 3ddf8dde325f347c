"""Mode compare: every sampler at every budget on one checkpoint, and a page that shows what they make of the same noise."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from scorefield.cli.drawing import PRECISION, precision_of, prepare
from scorefield.cli.fit_variance import fit_for
from scorefield.cli.flags import AVERAGE, BATCH_SIZE, CHECKPOINT, COMPILE, EMA, SEED, STRICT, Flag, words
from scorefield.cli.guide import FLAGS as GUIDANCE
from scorefield.cli.reference import FLAGS as REFERENCE
from scorefield.cli.reference import reference_of
from scorefield.cli.tuned import tuned_for
from scorefield.numerics.errors import ArgumentError, renamed

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.cli.guide import Guide

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
    *REFERENCE,
    Flag("likelihood_examples", int, 64, "held-out and training examples in the histogram of likelihoods; 0: none"),
    PRECISION, COMPILE,
    *GUIDANCE,
    SEED, EMA, AVERAGE, BATCH_SIZE, STRICT,
)
# Flags of mode sample that have no place here, and what has theirs.
REFUSED = {"steps": "mode compare takes budgets of evaluations in place of steps, such as budgets 5,10,20",
           "sampler": "mode compare takes several samplers: give samplers, such as samplers auto,ddim"}


def run(command: Command) -> None:
    """Compare samplers and write the page and the files behind it to compare/ in the run's folder."""
    from scorefield.cli.guide import guide_of
    from scorefield.evaluation.comparison.budgets import Asked
    from scorefield.evaluation.comparison.compare import compare
    from scorefield.evaluation.names import suffix_of_drawing
    from scorefield.samplers import FITTED

    values = command.asked.values
    samplers, budgets = words("samplers", values["samplers"]), _budgets(values["budgets"])
    metrics = None if values["metrics"] is None else words("metrics", values["metrics"])
    precision = precision_of(command)
    denoiser = command.denoiser()
    prepare(denoiser.network, command)
    guide = guide_of(command, denoiser)
    reference = reference_of(command, guide.labels, denoiser.takes.classes)
    command.write_imported()
    makers = {name: partial(tuned_for, command, guide, name) for name in FITTED}
    fits = [fit_for(command, Asked.parse(text, makers).options, denoiser, guide.labels is not None) for text in samplers]
    fit = next(filter(None, fits), None)
    model = denoiser if fit is None else fit.model(denoiser)
    folder = command.run / f"compare{guide.suffix}{suffix_of_drawing(values['seed'], values['ema'], precision)}"
    with renamed(names={"n": "num_samples", "likelihood": "likelihood_examples"}):
        comparison = compare(
            guide.of(model, command.device) if guide.described else model, samplers=samplers, budgets=budgets,
            metrics=metrics, n=values["num_samples"], seed=values["seed"], batch_size=values["batch_size"],
            device=command.device, reference=reference, bootstrap=values["bootstrap"],
            likelihood=values["likelihood_examples"], title=f"Samplers on {command.name or command.run.name}",
            facts=_facts(command, guide, precision), makers=makers)
    path = comparison.write(folder)
    for out in comparison.left_out:
        print(f"left out: {out.name}{'' if out.budget is None else f' with {out.budget}'}: {out.reason}")
    print("\n".join(comparison.recommendation.sentences))
    print(f"wrote {path} and the files behind it; {comparison.sampling_seconds:.1f} s of sampling, "
          f"{comparison.other_seconds:.1f} s of all else")


def _budgets(text: str) -> list[int]:
    numbers = words("budgets", text)
    if not all(number.isdecimal() and number.isascii() and 1 <= int(number) <= 10**6 for number in numbers):
        raise ArgumentError(f"budgets must be whole numbers of evaluations such as 5,10,20, got {text!r}", "budgets")
    return [int(number) for number in numbers]


def _facts(command: Command, guide: Guide, precision: str) -> dict[str, str]:
    """What the page says of the model."""
    from scorefield.evaluation.names import words_of_weights

    weights = "".join(f", {word} weights" for word in words_of_weights(command.asked.values["ema"]))
    facts = {"run": f"{command.run}, {command.newest.stem}{weights}, {precision}"}
    if path := command.config.data.get("path"):
        facts["path of the data"] = path
    if guide.described:
        facts["guidance"] = ", ".join(
            f"{name} {'-'.join(map(str, value)) if isinstance(value, list | tuple) else value}"
            for name, value in guide.described.items())
    return facts
