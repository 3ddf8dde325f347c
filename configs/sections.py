"""The sections of a config, as objects that refuse a field that the named class does not have.

    config.sde = sde("ve", sigma_max=80.0)

is the section of the VE SDE: exactly the arguments of VESDE, with its defaults except for sigma_max.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from scorefield.configs.training import Training
from scorefield.data import DATASETS
from scorefield.data.degradations import make_degradation
from scorefield.models.build import MODEL_SECTION, SDE_SECTION
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.options import option
from scorefield.numerics.sections import Section, arguments
from scorefield.numerics.text import base_type, nearest
from scorefield.training.objectives import OBJECTIVES
from scorefield.training.optimizers import OPTIMIZERS
from scorefield.training.schedules import SCHEDULES

MOST_OF_A_SIZE, MOST_MODULES = 10**9, 1000


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How integer levels become real numbers, and what is made of pictures (data/degradations.py)."""

    low: float = option(-1.0, "what level 0 is scaled to")
    high: float = option(1.0, "what the highest level is scaled to")
    dequantize: bool = option(False, "train on (k + u)/L with u uniform, instead of k/(L - 1)")
    reduce: int = option(1, "how many times smaller pictures are made, by the mean of blocks; 1: as they are")
    degradation: str = option("", "what makes the condition low_res of a picture, such as downsample:factor=2; empty: none")
    low_res_noise: float = option(0.0, "largest standard deviation of noise that training adds to low_res; 0: none")
    autoencoder: str = option("", "a run of an autoencoder, whose latents the model learns; empty: the pictures themselves")

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ArgumentError(f"low must be below high, got {self.low} and {self.high}", "low", "high")
        if self.reduce < 1:
            raise ArgumentError(f"reduce must be at least 1, got {self.reduce}", "reduce")
        if not 0 <= self.low_res_noise < 1:
            raise ArgumentError(f"low_res_noise must lie in [0, 1), got {self.low_res_noise}", "low_res_noise")
        if self.low_res_noise and not self.degradation:
            raise ArgumentError("low_res_noise is the noise of low_res, which a degradation makes; give one",
                                "low_res_noise", "degradation")
        if self.degradation:
            make_degradation(self.degradation)


DATA_SECTION = Section("data", "dataset", DATASETS, taker=lambda source: source.load,
                       beside=lambda source: None if source.levels is None else Pixels)
TRAINING_SECTION = Section("training", "objective", OBJECTIVES, beside=lambda objective: Training,
                           without=("sde", "data_std", "codec", "variance_output", "teacher_model", "updates", "latent",
                                    "perceptual_model", "ends"),
                           choices={"optimizer": OPTIMIZERS, "decay": SCHEDULES})
SECTIONS = {section.name: section for section in (DATA_SECTION, SDE_SECTION, MODEL_SECTION, TRAINING_SECTION)}


def section(name: str, word: str, **settings: Any) -> ConfigDict:
    """The section `name` for the class `word` with these settings; ArgumentError for a setting that it does not take."""
    kind = SECTIONS[name]
    fields, result = kind.fields(word, settings), ConfigDict({kind.word: word})
    for field, value in kind.complete({kind.word: word, **settings}).items():
        if field != kind.word:
            result[field] = placeholder(base_type(fields[field].annotation)[0]) if value is None else value
    return result


def data(dataset: str, **settings: Any) -> ConfigDict:
    """The section `data`: `config.data = data("swiss_roll", size=5000)`. A key of data.DATASETS and settings of that set."""
    return section("data", dataset, **settings)


def sde(name: str, **settings: Any) -> ConfigDict:
    """The section `sde`: `config.sde = sde("ve", sigma_max=80.0)`. A key of sde_lib.SDES and arguments of that class."""
    return section("sde", name, **settings)


def model(network: str, **settings: Any) -> ConfigDict:
    """The section `model`: `config.model = model("mlp", width=256)`. A key of models.NETWORKS, arguments of that class and
    of Denoiser.
    """
    return section("model", network, **settings)


def training(objective: str = "score_matching", **settings: Any) -> ConfigDict:
    """The section `training`: a key of training.OBJECTIVES, arguments of that class, fields of Training, and arguments of
    the classes that its fields `optimizer` and `decay` name.
    """
    return section("training", objective, **settings)


def renew(config: ConfigDict, name: str, word: str) -> None:
    """Replace the section `name` of a config by the section of another class, with its defaults.

    Fields that do not belong to the old class itself, such as the range of the data, keep their values if the new section
    has them.
    """
    kind, before = SECTIONS[name], config[name]
    kept = kind.beside_fields(before[kind.word]).keys() & kind.beside_fields(word).keys()
    chosen = [f for _, entry in kind.chosen(before[kind.word], before).values() for f in arguments(entry)]
    config[name] = section(name, word, **{field: before[field] for field in [*kept, *chosen]})


def rechoose(config: ConfigDict, name: str, choice: str, word: str) -> None:
    """Name another class by a field of the section `name`, such as training.optimizer: its fields, with their defaults, take
    the place of those of the class before.
    """
    kind, before = SECTIONS[name], config[name]
    old = arguments(kind.chosen(before[kind.word], before)[choice][1])
    config[name] = section(name, before[kind.word], **{
        field: value for field, value in before.items() if field not in (kind.word, choice, *old)}, **{choice: word})


def require_sections(config: Mapping[str, Any]) -> None:
    """Raise ArgumentError for a field that does not exist or is missing, and for a number out of range."""
    for name, kind in SECTIONS.items():
        fields = config[name]
        whole = kind.complete(fields)
        if missing := whole.keys() - set(fields):
            chosen = [f"{choice}={fields[choice]!r}" for choice in kind.choices if choice in fields]
            words = [repr(fields[kind.word]), *chosen]
            raise ArgumentError(f"the section {name!r} lacks {', '.join(sorted(missing))}; choose a class with "
                                f"config.{name} = {name}({', '.join(words)})", f"{name}.{kind.word}")
        if name != "training":
            _require_sizes(name, whole)
        check = kind.beside(kind.entry(fields[kind.word]))
        if check in (Pixels, Training):
            with renamed(name):
                check(**{field: whole[field] for field in kind.beside_fields(fields[kind.word])})
                for _, taker in kind.chosen(fields[kind.word], whole).values():
                    taker(**{field: whole[field] for field in arguments(taker)})


def _require_sizes(section: str, fields: Mapping[str, Any]) -> None:
    """ArgumentError for a whole number that no size can be: building with it would hang, or overflow."""
    for name, value in fields.items():
        most = MOST_MODULES if name in ("layers", "num_blocks") else MOST_OF_A_SIZE
        numbers = value if isinstance(value, tuple | list) else (value,)
        if any(type(number) is int and abs(number) > most for number in numbers) or len(numbers) > MOST_MODULES:
            raise ArgumentError(f"{section}.{name} must be at most {most}, got {value}", f"{section}.{name}")


def annotation(config: Mapping[str, Any], field: str) -> Any:
    """The declared type of a field such as "training.batch_size"; ArgumentError if the config has no such field."""
    section_name, _, name = field.partition(".")
    if field in SECTIONS:
        raise ArgumentError(f"{field!r} is a section, not a field; it has {', '.join(config[field])}", field)
    kind = SECTIONS.get(section_name)
    if kind is not None and name == kind.word:
        return str
    word = config[section_name][kind.word] if kind is not None else ""
    fields = kind.fields(word, config[section_name]) if kind is not None else {}
    if kind is None or name not in fields:
        declared(field)      # raises where no class of the section has it
        raise ArgumentError(kind.refusal(name, config[section_name]) if kind is not None else "", field)
    return fields[name].annotation


def declared(field: str) -> Any:
    """The declared type of a field such as "model.fir" of any class of its section; ArgumentError if no class has it."""
    name, _, word = field.partition(".")
    kind = SECTIONS.get(name)
    if kind is not None and word == kind.word:
        return str
    known = {f"{k.name}.{n}": f.annotation for k in SECTIONS.values() for n, f in k.every_field().items()}
    if field not in known:
        words = [*(f"{k.name}.{k.word}" for k in SECTIONS.values()), *known]
        raise ArgumentError(f"config has no field {field!r}{nearest(field, words)}", field)
    return known[field]
