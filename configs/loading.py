"""Read a config file, override its fields from the command line, and check the result."""

import difflib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scorefield.configs.sections import SECTIONS, annotation, rechoose, renew, require_sections, section
from scorefield.numerics.errors import ArgumentError, MissingFileError
from scorefield.numerics.text import parse

HERE = Path(__file__).parent
_NO_CONFIGS = ("__init__", "default", "loading", "sections", "training")


def config_names() -> list[str]:
    """The names of the experiments in this folder."""
    return sorted(f.stem for f in HERE.glob("*.py") if f.stem not in _NO_CONFIGS)


def load_config(path: str) -> ConfigDict:
    """The config that get_config() of a Python file returns; FileNotFoundError or ValueError if there is none.

    A path such as configs/vp_digits.py means the file in this folder if the current folder has no such file.
    """
    file = Path(path)
    if not file.is_file() and file.parent == Path("configs"):
        file = HERE / file.name
    if not file.is_file():
        near = difflib.get_close_matches(file.stem, config_names(), n=1)
        hint = f"; did you mean 'configs/{near[0]}.py'?" if near else "."
        raise MissingFileError(f"no config file {path!r}{hint} There are configs/{{{','.join(config_names())}}}.py",
                               "config")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ArgumentError(f"{path!r} is not a Python file", "config")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
        require_sections(config)
        return config
    except (SyntaxError, ImportError, LookupError, TypeError, AttributeError, ArgumentError) as error:
        raise ArgumentError(f"config file {path!r} is not usable: {error}", "config") from error


def apply(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> None:
    """Set fields such as "training.batch_size" from text, in their declared types; ArgumentError for an unknown field or a
    text that is not a value of its type.

    Fields that name a class are set first, since they decide which other fields exist.
    """
    words = {f"{kind.name}.{kind.word}" for kind in SECTIONS.values()}
    choices = {f"{kind.name}.{choice}" for kind in SECTIONS.values() for choice in kind.choices}
    for field, text in sorted(overrides, key=lambda pair: 0 if pair[0] in words else 1 if pair[0] in choices else 2):
        kind = annotation(config, field)
        name, _, word = field.partition(".")
        if field in words:
            if text != config[name][word]:
                renew(config, name, text)
            continue
        if field in choices:
            if text != config[name][word]:
                rechoose(config, name, word, text)
            continue
        try:
            value = parse(text, kind)
        except ValueError as error:
            raise ArgumentError(f"{field} {error}", field) from None
        config[name][word] = value


def all_fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of nested sections by their dotted names."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        fields |= all_fields(value, f"{prefix}{name}.") if isinstance(value, Mapping | ConfigDict) else {
            prefix + name: list(value) if isinstance(value, tuple) else value}
    return fields


def from_stored(stored: Mapping[str, Any], place: str | Path) -> ConfigDict:
    """The config of a run from the nested mapping that it stores, with defaults for fields that later versions added.

    place  where the mapping comes from, for messages
    """
    config = ConfigDict()
    try:
        current = _current(stored)
        for name, kind in SECTIONS.items():
            fields = dict(current[name])
            config[name] = section(name, fields.pop(kind.word), **fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the config of {place} is damaged or from another version: {error}") from None
    return config


def _current(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored config with the fields of this version. Before version 0.2 it had all fields of all data sets."""
    if "objective" in stored["training"]:
        return stored
    training, data = dict(stored["training"]), stored["data"]
    memory_format = {None: "auto", True: "channels_last", False: "contiguous"}[training.pop("channels_last", None)]
    known = {"dataset", *SECTIONS["data"].fields(data["dataset"])}
    return {**stored, "data": {field: value for field, value in data.items() if field in known},
            "training": training | {"objective": "score_matching", "memory_format": memory_format}}
