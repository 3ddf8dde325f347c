"""Mode compare: every sampler at every budget on one checkpoint, and a page that shows what they make of the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.drawing import PRECISION, precision_of, prepare
from scorefield.cli.fit_variance import fit_for
from scorefield.cli.flags import AVERAGE, BATCH_SIZE, CHECKPOINT, COMPILE, EMA, SEED, STRICT, Flag, words
from scorefield.cli.guide import FLAGS as GUIDANCE
from scorefield.cli.low_res import rule_of
from scorefield.cli.measurements import FLAGS as MEASUREMENT
from scorefield.cli.measurements import LEARNED, check, given_of, guided_of, name_of
from scorefield.cli.reference import FLAGS as REFERENCE
from scorefield.cli.reference import reference_of
from scorefield.cli.tuned import tuned_for
from scorefield.numerics.errors import ArgumentError, renamed

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.cli.guide import Guide
    from scorefield.evaluation.comparison.compare import Comparison

SUMMARY = "writes compare/index.html: samplers, or with --measurement restorations, side by side, and which to use"
FLAGS = (
    CHECKPOINT,
    Flag("samplers", str, "auto,unipc,ddim,euler_maruyama", "which samplers, each with options of its own after colons, "
                                                            "such as ddim:eta=1; of restorations twisted_smc,ddim:eta=1"),
    Flag("budgets", str, "5,10,20,50", "evaluations of the network that a sample may take; each sampler takes the most "
                                       "steps that keep to it. Of restorations 400,1600,6400, for a measurement"),
    Flag("num_samples", int, 1000, "how many samples of each pair of a sampler and a budget"),
    Flag("metrics", str, None, "which metrics, such as fid,kid, of which the first decides; by default those that "
                               "fit the data"),
    *REFERENCE,
    *MEASUREMENT,
    Flag("methods", str, "tmpd,pigdm", "of restorations: how the measurement guides, each with options of its own after "
                                       "colons, such as pigdm:data_std=0.5"),
    Flag("samples", int, 8, "of restorations: answers for each measurement"),
    Flag("likelihood_examples", int, 64, "held-out and training examples in the histogram of likelihoods; 0: none"),
    PRECISION, COMPILE,
    *GUIDANCE,
    SEED, EMA, AVERAGE, BATCH_SIZE, STRICT,
)
# Flags of mode sample that have no place here, and what has theirs.
OF_RESTORATIONS = ("degraded", "noise", "num_images", "methods", "samples")
OF_SAMPLES = {"num_samples", "likelihood_examples", "guidance", "guidance_interval", "classifier", "classifier_scale",
              "quantile", "low_res", "low_res_noise", *(flag.name for flag in REFERENCE if flag.name != "bootstrap")}
REFUSED = {"steps": "mode compare takes budgets of evaluations in place of steps, such as budgets 5,10,20",
           "sampler": "mode compare takes several samplers: give samplers, such as samplers auto,ddim"}


def run(command: Command) -> None:
    """Compare samplers and write the page and the files behind it to compare/ in the run's folder."""
    if command.asked.values["measurement"] or command.asked.values["operator"]:
        _restorations(command)
        return
    from scorefield.cli.guide import guide_of
    from scorefield.evaluation.comparison.budgets import Asked
    from scorefield.evaluation.comparison.compare import compare
    from scorefield.evaluation.names import suffix_of_drawing
    from scorefield.samplers import FITTED

    values = command.asked.values
    for name in OF_RESTORATIONS:
        if name in command.asked.given:
            raise ArgumentError(f"{name} belongs to restorations; say what is to be restored with measurement, or leave out "
                                f"{name}", name, "measurement")
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
    _write(comparison, folder)


def _write(comparison: Comparison, folder: Path) -> None:
    """Write the page, and say what it recommends."""
    path = comparison.write(folder)
    for out in comparison.left_out:
        print(f"left out: {out.name}{'' if out.budget is None else f' with {out.budget}'}: {out.reason}")
    print("\n".join(comparison.recommendation.sentences))
    print(f"wrote {path} and the files behind it; {comparison.sampling_seconds:.1f} s of sampling, "
          f"{comparison.other_seconds:.1f} s of all else")


def _restorations(command: Command) -> None:
    """Compare restorations, and write the page and the files behind it to compare_restorations_NAME/ in the run's folder."""
    from scorefield.data.measured import unit_of
    from scorefield.evaluation.comparison import restorations
    from scorefield.evaluation.names import suffix_of, suffix_of_drawing

    values, given = command.asked.values, command.asked.given
    for name in sorted(given & OF_SAMPLES):
        raise ArgumentError(f"restorations are compared without {name}; leave out {name}, or leave out measurement", name)
    if values["threshold"] == "dynamic":
        raise ArgumentError("restorations keep x_0 within the range of the data, by threshold static; leave out threshold",
                            "threshold")
    if values["compile"]:
        raise ArgumentError("restorations take batches of gradients at once, which a compiled network cannot give; leave "
                            "out compile, or leave out measurement", "compile", "measurement")
    denoiser = command.denoiser()
    rule = rule_of(command) if "low_res" in denoiser.takes.names else None
    check(command, rule is not None)
    prepare(denoiser.network, command, batched=True)

    def chosen(name: str, usual: Sequence[Any]) -> list[str]:
        return words(name, values[name]) if name in given else [str(word) for word in usual]

    methods = [LEARNED] if rule is not None else chosen("methods", restorations.METHODS)
    budgets = _budgets(",".join(chosen("budgets", restorations.BUDGETS)))
    told = given_of(command, rule)
    if told.truth is None:
        raise ArgumentError("restorations are compared with the truth, and these pictures are degraded already; give whole "
                            "ones, or data", "measurement")
    operator = values["operator"] if rule is None else rule.text
    settings = {"noise": values["noise"], "label": values["label"], "num_images": values["num_images"]}
    folder = command.run / ("compare_restorations_" + name_of(values["measurement"], operator) + suffix_of(
        {name: value for name, value in settings.items() if value}) + suffix_of_drawing(
            values["seed"], values["ema"], precision_of(command)))
    command.write_imported()
    facts = {"operator": operator, "noise": f"{values['noise']:g}", "examples": values["measurement"]}
    with renamed(names={"noise_std": "noise", "y": "measurement", "method": "methods"}):
        comparison = restorations.compare_restorations(
            guided_of(command, denoiser, rule is not None), told.problem, told.truth, command.codec,
            chosen("samplers", restorations.SAMPLERS), methods, budgets,
            metrics=None if values["metrics"] is None else words("metrics", values["metrics"]), samples=values["samples"],
            seed=values["seed"], batch_size=values["batch_size"], device=command.device, bootstrap=values["bootstrap"],
            unit=lambda x: unit_of(x, command.codec.of_pictures), shape=command.shape,
            title=f"Restorations by {command.name or command.run.name}",
            facts=_run_of(command, precision_of(command)) | facts)
    _write(comparison, folder)


def _budgets(text: str) -> list[int]:
    numbers = words("budgets", text)
    if not all(number.isdecimal() and number.isascii() and 1 <= int(number) <= 10**6 for number in numbers):
        raise ArgumentError(f"budgets must be whole numbers of evaluations such as 5,10,20, got {text!r}", "budgets")
    return [int(number) for number in numbers]


def _run_of(command: Command, precision: str) -> dict[str, str]:
    """What the page says of the run."""
    from scorefield.evaluation.names import words_of_weights

    weights = "".join(f", {word} weights" for word in words_of_weights(command.asked.values["ema"]))
    return {"run": f"{command.run}, {command.newest.stem}{weights}, {precision}"}


def _facts(command: Command, guide: Guide, precision: str) -> dict[str, str]:
    """What the page says of the model."""
    facts = _run_of(command, precision)
    if path := command.config.data.get("path"):
        facts["path of the data"] = path
    if guide.described:
        facts["guidance"] = ", ".join(
            f"{name} {'-'.join(map(str, value)) if isinstance(value, list | tuple) else value}"
            for name, value in guide.described.items())
    return facts
