"""Mode fit_variance: the variance of x_0 given x_t, from the model's errors on training examples, kept in the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.examples import own_data
from scorefield.cli.flags import AVERAGE, BATCH_SIZE, CHECKPOINT, EMA, SEED, STRICT, Flag
from scorefield.numerics.errors import ArgumentError, renamed

if TYPE_CHECKING:
    from scorefield.cli.command import Command
    from scorefield.evaluation.fitted import Fit
    from scorefield.models import Denoiser

SUMMARY = "fits what --variance analytic needs, and writes it to variance/ in the run's folder"
FLAGS = (
    CHECKPOINT,
    Flag("num_examples", int, 1000, "how many training examples"),
    Flag("num_times", int, 100, "at how many times, equally spaced in log-SNR"),
    Flag("covariance", str, "diagonal", "a variance of each element, or isotropic, one of all", ("diagonal", "isotropic")),
    Flag("estimate", str, "residual", "from the model's errors, or from its score alone", ("residual", "score")),
    Flag("label", str, None, "true: give the model each example's label, for samples and bounds with labels", ("true",)),
    SEED, EMA, AVERAGE, BATCH_SIZE, STRICT,
)


def run(command: Command) -> None:
    """Write variance/STEP.npz. If the moments are there already, only what is made of them changes."""
    from scorefield.data.codec import Pixels
    from scorefield.evaluation import fit_moments, fitted
    from scorefield.numerics.devices import prepare_sampling

    values = command.asked.values
    labelled = values["label"] is not None
    command.write_imported()
    checkpoint, model = command.newest, command.denoiser()
    if labelled and not model.takes.classes:
        raise ArgumentError("the model takes no label: it was trained without classes (model.classes)", "label")
    path, of = place_of(command, checkpoint, labelled)
    dataset, codec = own_data(command), command.codec
    settings = {"n": min(values["num_examples"], len(dataset.train)), "points": values["num_times"], "seed": values["seed"],
                "batch_size": values["batch_size"]}
    fit = _there(path, of, settings)
    before = fit is not None
    if fit is None:
        prepare_sampling(model.network, "fp32", command.device)
        with renamed(names={"points": "num_times", "num_samples": "num_examples"}):
            moments = fit_moments(model, dataset, codec, settings["n"], settings["points"], settings["seed"],
                                  values["batch_size"], command.device, labelled, progress=True)
        span = codec.high - codec.low if isinstance(codec, Pixels) else None
        fit = fitted.Fit(moments, span=span, of=of, settings=settings)
    fit = fit.using(values["covariance"], values["estimate"])
    fitted.write(path, fit)
    print(f"{'took the moments that were there' if before else 'fitted'}: {settings['n']} training examples"
          f"{' with their labels' * labelled} at {settings['points']} times; {fit.covariance} variance from the "
          f"{fit.estimate}; wrote {path}")


def fit_for(command: Command, settings: Mapping[str, Any], model: Denoiser, labelled: bool,
            checkpoint: Path | None = None) -> Fit | None:
    """The fitted variance that settings of a sampler or an estimator need: one that the model has not learned itself.

    checkpoint  whose model it is; None: the run's newest

    None if they need none; an error of one line if there is none of this checkpoint.
    """
    from scorefield.evaluation import fitted

    optimal = settings.get("grid") == "optimal"
    if not optimal and (settings.get("variance") != "analytic" or model.learned_variance):
        return None
    name, value = ("grid", "optimal") if optimal else ("variance", "analytic")
    if not (command.run / "config.json").exists():
        raise ArgumentError("the variance of a checkpoint is fitted in its run; first give the command with mode "
                            "fit_variance", name)
    path, of = place_of(command, command.newest if checkpoint is None else checkpoint, labelled)
    try:
        return fitted.read(path, of)
    except FileNotFoundError as error:
        raise ArgumentError(f"{name} {value}: {error}", name) from None


def _there(path: Path, of: dict[str, Any], settings: dict[str, Any]) -> Fit | None:
    """The fit that is there, if its moments are those asked for."""
    from scorefield.evaluation import fitted

    try:
        fit = fitted.read(path, of)
    except (OSError, ValueError):
        return None
    return fit if fit.settings == settings else None


def place_of(command: Command, checkpoint: Path, labelled: bool) -> tuple[Path, dict[str, Any]]:
    """The file of the fit of a checkpoint of the command's run, and what it must belong to."""
    from scorefield.evaluation import fitted

    assert command.stored is not None
    average = command.asked.values["ema"]
    return (fitted.path_of(command.run, checkpoint, average, labelled),
            fitted.belongs_to(checkpoint, command.stored, average, labelled))
