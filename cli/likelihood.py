"""Mode likelihood: bits/dim of a data set or of a user's own examples."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.direction import SCORED, way_of
from scorefield.cli.direction import suffix_of as suffix_of_way
from scorefield.cli.examples import examples_at, own_data
from scorefield.cli.fit_variance import fit_for
from scorefield.cli.flags import AVERAGE, BATCH_SIZE, CHECKPOINT, COMPILE, EMA, SEED, STRICT, Flag, flags_of
from scorefield.cli.guide import FLAGS as GUIDANCE
from scorefield.cli.labels import class_of
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.stopping import keeping

if TYPE_CHECKING:
    import torch

    from scorefield.cli.command import Command
    from scorefield.data import Dataset
    from scorefield.evaluation.likelihood import Evaluation
    from scorefield.evaluation.score import Score
    from scorefield.evaluation.truncation import Truncation
    from scorefield.models import Denoiser, Dequantizer, ScoreModel

SPLITS = ("train", "test")
BEST = "best"      # as t_min: the one that training examples choose
SUMMARY = "writes likelihood/summary.json, .csv and .png: bits/dim, standard error, evaluations"
FLAGS = (
    CHECKPOINT,
    Flag("estimator", str, "ode", "what computes the likelihood", ("ode", "elbo", "chain_elbo")),
    Flag("draws", int, 1, "number of dequantisations of each example"),
    Flag("dequantizer", str, "own", "what draws the noise within levels: own (the run's flow, or uniform without one), "
         "uniform, or another run with a flow"),
    Flag("float64", bool, False, "keep the state of the likelihood in float64"),
    SCORED,
    Flag("split", str, "test", "which examples to score", SPLITS),
    Flag("num_images", int, None, "score only the first num_images examples"),
    Flag("images", str, None, "examples to score instead of the run's own: a folder of pictures, or an .npy, .npz or .csv"),
    Flag("compare", str, None, "a second set to score: train, test, a folder of pictures, or an .npy, .npz or .csv"),
    Flag("label", str, None, "score given a label: true is each example's own, a number or a name one for all"),
    Flag("classify", bool, False, "score every label, and say which makes an example likeliest: accuracy, calibration"),
    COMPILE, SEED, EMA, AVERAGE, BATCH_SIZE, STRICT,
)
# Flags of mode sample that have no place here, and why.
NO_DENSITY = "a guided or thresholded model is the score of no known density, so it has no likelihood; leave it out"
REFUSED = dict.fromkeys((flag.name for flag in GUIDANCE if flag.name != "label"), NO_DENSITY)
REFUSED |= dict.fromkeys(("low_res", "low_res_noise"), "each example is scored given its own low_res; leave it out")
RENAMED = {"draws": "bound_draws"}      # options of estimators that have the same name as a flag above


def options() -> Mapping[str, Mapping[str, Flag]]:
    """The options of each estimator, by flag name."""
    from scorefield.likelihood import ESTIMATORS

    return {name: {RENAMED.get(option, option): dataclasses.replace(flag, name=RENAMED.get(option, option))
                   for option, flag in flags_of(estimator).items()} for name, estimator in ESTIMATORS.items()}


def settings_of(command: Command) -> dict[str, Any]:
    """The given options of the chosen estimator; ArgumentError for options of other estimators."""
    from scorefield.likelihood import ESTIMATORS

    values, every = command.asked.values, options()
    own = every[values["estimator"]]
    for name in command.asked.texts:
        if name not in own:
            takers = " and ".join(estimator for estimator, others in every.items() if name in others)
            raise ArgumentError(f"the estimator {values['estimator']!r} takes no {name}; it belongs to {takers}", name,
                                "estimator")
    if values["images"] is not None and "split" in command.asked.given:
        raise ArgumentError("images are scored instead of a split; leave out split, or give that split as compare",
                            "images", "split", "compare")
    if values["images"] in ("", *SPLITS) or values["compare"] == "":
        raise ArgumentError(f"images={values['images']!r} must be a folder of pictures or an .npz; compare must be one of "
                            f"these, or {' or '.join(SPLITS)}", "images", "compare")
    if values["classify"] and (values["label"] is not None or values["compare"]):
        raise ArgumentError("classify scores every label of one set; leave out label and compare", "classify", "label",
                            "compare")
    if values["float64"] and command.device.type == "mps":
        raise ArgumentError("device 'mps' has no float64; leave out float64 or choose another device", "float64", "device")
    given = dataclasses.replace(command.asked, texts=_numbers(command.asked.texts)).settings(own)
    back = {flag: name for name, flag in RENAMED.items()}
    with renamed(names=RENAMED):
        estimator = ESTIMATORS[values["estimator"]](**{back.get(name, name): value for name, value in given.items()})
    return {RENAMED.get(name, name): value for name, value in vars(estimator).items() if value is not None}


def _numbers(texts: Mapping[str, str | bool]) -> dict[str, str | bool]:
    """The given options without a t_min that is to be chosen."""
    return {name: text for name, text in texts.items() if (name, text) != ("t_min", BEST)}


def run(command: Command) -> None:
    """Bits/dim of a split or of a user's images: likelihood/summary.json, .csv and .png in the run's folder.

    Finished batches stay in likelihood/partial until all are done. So a killed evaluation continues where it stopped, and
    the processes of torchrun share their results there.
    """
    from scorefield.cli.classification import write_classification
    from scorefield.evaluation.likelihood import OWN, Evaluation
    from scorefield.numerics.devices import require_compiler, samples_in_channels_last, set_memory_format
    from scorefield.numerics.files import json_digest
    from scorefield.numerics.processes import launched, meet

    values, settings = command.asked.values, settings_of(command)
    exact = settings.get("divergence") == "exact"
    if values["compile"] and exact:
        raise ArgumentError("the exact divergence takes batches of gradients at once, which a compiled network cannot give; "
                            "choose divergence=hutchinson, or leave compile out", "divergence", "compile")
    if values["compile"]:
        require_compiler(command.device)
    command.write_imported()
    checkpoint, denoiser, way = command.newest, command.denoiser(), way_of(command)
    if way is not None:
        denoiser = flow_of(denoiser, values["estimator"], settings.get("method"))
    if samples_in_channels_last(command.device) and not exact:      # its products cannot be batched in channels_last on CPUs
        set_memory_format(denoiser, "channels_last")
    if values["compile"]:
        denoiser.network.compile()
    dequantizer, flow_file = _dequantizer(command)
    labels = _labels(command, denoiser)
    chosen = _truncation(command, denoiser, settings, labels, dequantizer)
    settings |= {} if chosen is None else {"t_min": chosen.t_min}
    identity = _identity(command, settings, checkpoint) + ([flow_file] if flow_file else []) + ([way] if way else [])
    model: ScoreModel = denoiser
    if fit := fit_for(command, settings, denoiser, values["label"] is not None or values["classify"]):
        identity, model = [identity, fit.digest], fit.model(denoiser)
    world = launched()
    sources = [values["images"] or values["split"], *([values["compare"]] if values["compare"] else [])]
    evaluations, names = [], []
    for source, label in [(source, label) for source in sources for label in labels]:
        dataset, files = _scored_data(command, source)
        identified = [identity, _place(source), *([label] if label is not None else [])]
        key = json_digest(identified)[:16]
        evaluations.append(Evaluation(
            model, dataset, command.codec_for(dataset), split="train" if source == "train" else "test",
            n=values["num_images"], seed=values["seed"],
            batch_size=values["batch_size"], device=command.device, draws=values["draws"], estimator=values["estimator"],
            float64=values["float64"], folder=command.run / "likelihood" / "partial" / key, world=world, label=label,
            dequantizer=dequantizer, **settings))
        names.append(files)
    truth = _truth(command, evaluations[0], len(labels)) if values["classify"] else None
    meet(world, [e.folder for e in evaluations if e.folder], command.device)
    for e in evaluations:
        with keeping(e.kept):
            if world.first and e.resumed:
                print(f"continuing: {e.resumed} of {len(e.units)} batches are done already", flush=True)
            e.run()
    if world.first:
        note = _note(denoiser.sde.steps, values["estimator"], settings.get("t_min"))
        described = {
            "estimator": values["estimator"], "levels": evaluations[0].dataset.levels, "settings": settings,
            "float64": values["float64"], "batch_size": values["batch_size"], "seed": values["seed"], "ema": values["ema"],
            "checkpoint": str(checkpoint), "processes": world.size, **({"note": note} if note else {}),
            **({"direction": way} if way else {}),
            **({} if chosen is None else {"t_min_by_train": {f"{t:g}": bits for t, bits in chosen.bits.items()}}),
            **({} if evaluations[0].dequantizer is None else {"dequantizer": values["dequantizer"]}),
        }
        suffix = suffix_of_way(command) + _suffix(command, settings if chosen is None else {**settings, "t_min": BEST})
        own, scores = "images" if values["images"] else "split", [e.result() for e in evaluations]
        if truth is not None:
            write_classification(scores, *truth, {own: sources[0], **described}, command.run / "likelihood", suffix)
        else:
            label = None if labels[0] is None else values["label"] if labels[0] == OWN else f"{labels[0]}"
            _write_scores(scores, sources, names, described | ({} if label is None else {"label": label}),
                          command.run / "likelihood", own, suffix)
        for e in evaluations:
            e.clear()


def flow_of(bridge: Any, estimator: str, method: str | None) -> Any:
    """The probability flow of a bridge; ArgumentError for an estimator that it has not, or a start of unknown density."""
    if estimator != "ode":
        raise ArgumentError(f"a bridge has a probability flow, and no {estimator}; choose estimator ode", "estimator")
    if method == "exponential":
        raise ArgumentError("method exponential is not for the flow of a bridge; choose an adaptive method, such as dopri5",
                            "method")
    bridge.sde.prior.require_density()
    return bridge.probability_flow()


def _dequantizer(command: Command) -> tuple[Dequantizer | str, str]:
    """What the flag says, and what tells it from others: "", the word, or a checksum of another run's checkpoint."""
    from scorefield.checkpoints.load import read_checkpoint
    from scorefield.models.networks.dequantizer import dequantizer_of
    from scorefield.numerics.files import sha256_of

    word = command.asked.values["dequantizer"]
    if word in ("own", "uniform"):
        return word, "" if word == "own" else word
    with renamed(names={"config": "dequantizer"}):
        found = read_checkpoint(word, strict=command.asked.values["strict"])
    flow = dequantizer_of(found.denoiser(command.asked.values["ema"]).to(command.device))
    if flow is None:
        raise ArgumentError(f"{word} has no dequantizer; train one with training.objective=dequantization, or give own or "
                            "uniform", "dequantizer")
    return flow, word if found.file is None else sha256_of(found.file)


def _truncation(command: Command, model: Denoiser, settings: dict[str, Any], labels: list[str | int | None],
                dequantizer: Dequantizer | str) -> Truncation | None:
    """The t_min that the run's training examples choose, which is printed; None unless that is asked for."""
    from scorefield.evaluation.likelihood import OWN
    from scorefield.evaluation.truncation import best_t_min

    values = command.asked.values
    if command.asked.texts.get("t_min") != BEST:
        return None
    data = own_data(command, "t_min=best is chosen by the run's training examples; give a number")
    chosen = best_t_min(model, data, command.codec_for(data), label=OWN if values["classify"] else labels[0],
                        dequantizer=dequantizer, progress=False, device=command.device,
                        **{name: values[name] for name in ("seed", "batch_size", "estimator", "float64")}, **settings)
    table = ", ".join(f"{t:g}: {bits:.4f}" for t, bits in chosen.bits.items())
    command.say(f"t_min {chosen.t_min:g} is the best of (bits/dim of training examples) {table}")
    return chosen


def _labels(command: Command, model: Denoiser) -> list[str | int | None]:
    """The label of each evaluation: every class, the examples' own ("true"), one class, or None."""
    values, takes = command.asked.values, model.takes
    assert command.stored is not None
    if not values["classify"] and values["label"] in (None, "true"):
        return [values["label"]]
    if takes.classes is None:
        raise ArgumentError("the model takes no label: it was trained without classes (model.classes)",
                            "classify" if values["classify"] else "label")
    if values["classify"]:
        return list(range(takes.classes))
    return [class_of(values["label"], takes.classes, command.stored.get("class_names") or ())]


def _truth(command: Command, evaluation: Evaluation, classes: int) -> tuple[torch.Tensor, torch.Tensor, Sequence[str]]:
    """The labels of the scored examples, the frequencies of the classes in the run's training examples, and their names;
    ArgumentError without labels.
    """
    from scorefield.evaluation.classify import frequencies, labels_of

    data, images = evaluation.dataset, command.asked.values["images"]
    label = labels_of(evaluation.examples, data.name, "images" if images else "data.dataset", data.unlabelled)
    own = own_data(command, "classify counts the classes among the run's examples") if images else data
    return label[:evaluation.total], frequencies(own, classes), data.class_names


def _note(steps: int | None, estimator: str, t_min: float | None) -> str | None:
    if steps is None or estimator == "chain_elbo":
        return None
    start = f"1/{steps}" if t_min is None else f"{t_min:g}"
    return f"trained on a discrete chain of {steps} steps, scored with the chain's SDE, t from {start}"


def _identity(command: Command, settings: dict[str, Any], checkpoint: Path) -> list[Any]:
    """All that a score depends on, except for the data: each batch stores a checksum of those."""
    from scorefield.numerics.files import sha256_of

    values = command.asked.values
    results = {k: v for k, v in settings.items() if k != "max_evaluations"}      # a user may raise it and continue
    results |= {"compile": True} if values["compile"] else {}      # which rounds otherwise
    return [sha256_of(checkpoint), command.stored, command.config.data.get("dequantize", False), command.device.type,
            results, *(values[name] for name in ("estimator", "draws", "float64", "seed", "ema", "batch_size",
                                                    "num_images"))]


def _suffix(command: Command, settings: dict[str, Any]) -> str:
    """What files' names say of settings that are not the default and that results depend on."""
    from scorefield.evaluation.names import suffix_of, words_of_weights

    values, own = command.asked.values, options()[command.asked.values["estimator"]]
    changed = {name: value for name, value in settings.items() if name != "max_evaluations" and value != own[name].default}
    changed |= {flag.name: value for flag in FLAGS
                if flag.name in ("draws", "dequantizer", "float64", "num_images", "compile", "seed")
                and (value := values[flag.name]) != flag.default}
    return suffix_of(changed) + "".join(f"_{word}" for word in words_of_weights(values["ema"]))


def _scored_data(command: Command, source: str) -> tuple[Dataset, list[str] | None]:
    """A split's data set, or the images at a path with their file names; ArgumentError if they do not fit the network."""
    if source not in SPLITS:
        return examples_at(command, source, "images" if source == command.asked.values["images"] else "compare")
    return own_data(command, "or score your own pictures"), None


def _place(source: str) -> str:
    """The absolute path of images; a split's name stays."""
    return source if source in SPLITS else str(Path(os.path.expanduser(source)).resolve())


def _write_scores(scores: list[Score], sources: list[str], names: list[list[str] | None], described: dict[str, Any],
                  folder: Path, own: str, suffix: str) -> None:
    """Write the .csv, .png and .json of one or two scored sets, and print a line for each."""
    from scorefield.evaluation import plots
    from scorefield.evaluation.names import name_of_place, short, whole
    from scorefield.evaluation.score import auroc, write_csv
    from scorefield.numerics.files import write_json

    labels = [source if source in SPLITS else f"images_{name_of_place(source)}" for source in sources]
    estimator = described["estimator"]
    given = [f"label_{short(described['label'])}"] if "label" in described else []
    name = "_".join([estimator] * (estimator != "ode") + ["_vs_".join(labels), *given])
    stem = folder / whole(("summary" if name == "test" else name) + suffix)
    folder.mkdir(exist_ok=True)
    rows = [({"set": source} if len(scores) > 1 else {}) | row
            for score, source, files in zip(scores, sources, names, strict=True) for row in score.rows(files)]
    write_csv(Path(f"{stem}.csv"), rows)
    titles = [source if source in SPLITS else f"images {Path(_place(source)).stem}" for source in sources]
    titles = titles if len(set(titles)) == len(titles) else sources
    plots.save_png(Path(f"{stem}.png"), plots.histogram(
        {title: score.bits_per_dim for title, score in zip(titles, scores, strict=True)}, "bits/dim"))
    first, compared = scores[0], {}
    if len(scores) > 1:
        compared = {"compare": {"source": sources[1], **scores[1].summary()},
                    "auroc": auroc(first.bits_per_dim, scores[1].bits_per_dim)}
    write_json(Path(f"{stem}.json"), first.summary() | {own: sources[0]} | compared | described)
    for score, source in zip(scores, sources, strict=True):
        iw = score.bits_per_dim_iw
        tighter = "" if iw is None else f" ({float(iw.mean()):.4f} importance-weighted)"
        what = f"{source} examples" if source in SPLITS else f"examples of {source}"
        if "label" in described:
            what += " given their labels" if described["label"] == "true" else f" given label {described['label']}"
        print(f"{len(score.bits_per_dim)} {what}: {score.mean:.4f} +- {score.standard_error:.4f} bits/dim{tighter}, "
              f"{score.nfe:g} evaluations, {score.seconds:.1f} s")
    notes = [described["note"]] if "note" in described else []
    notes += [f"AUROC {compared['auroc']:.4f}"] if compared else []
    print("; ".join([*notes, f"wrote {stem}{{.csv,.png,.json}}"]))

