"""Reading a config file, overriding its fields from the command line, and checking the outcome."""

import ast
import difflib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scorefield.configs.default import get_config

HERE = Path(__file__).parent


def config_names() -> list[str]:
    """The experiments beside this file."""
    return sorted(f.stem for f in HERE.glob("*.py") if f.stem not in ("__init__", "default", "loading"))


def nearest(word: str, words: Iterable[str]) -> str:
    """"; did you mean 'x'?" for the nearest of `words`, or nothing."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def load_config(path: str) -> ConfigDict:
    """The config that get_config() of a Python file returns; FileNotFoundError or ValueError where there is none.

    A path such as configs/vp_digits.py means the file beside this one where the current folder has none.
    """
    file = Path(path)
    if not file.is_file() and file.parent == Path("configs"):
        file = HERE / file.name
    if not file.is_file():
        near = difflib.get_close_matches(file.stem, config_names(), n=1)
        hint = f"; did you mean 'configs/{near[0]}.py'?" if near else "."
        raise FileNotFoundError(f"no config file {path!r}{hint} There are configs/{{{','.join(config_names())}}}.py "
                                "(--config)")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path!r} is not a Python file (--config)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config()
    except (SyntaxError, ImportError, AttributeError) as error:
        raise ValueError(f"config file {path!r} is not usable: {error} (--config)") from error


def override(config: ConfigDict, field: str, text: str) -> None:
    """Set a field such as "training.batch_size" from the command line's text, in the field's own type."""
    *sections, name = field.split(".")
    section = config
    for part in [*sections, name]:
        if not isinstance(section, ConfigDict) or part not in section:
            words = all_fields(config)
            raise ValueError(f"config has no field {field!r}{nearest(field, words)} (--config.{field})")
        parent, section = section, section[part]
    if isinstance(section, ConfigDict):
        raise ValueError(f"{field!r} is a section, not a field; it has {', '.join(section)} (--config.{field})")
    kind = parent.get_type(name)
    try:
        parent[name] = None if text == "None" and all_fields(get_config())[field] is None else _parse(text, kind)
    except (ValueError, TypeError, SyntaxError, OverflowError):
        raise ValueError(f"--config.{field} must be of type {kind.__name__} and finite, got {text!r}") from None


_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def _parse(text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ValueError
        return _BOOLS[text.lower()]
    value = ast.literal_eval(text)
    if kind is tuple:
        value = value if isinstance(value, tuple | list) else (value,)
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < float("inf") for v in value):
            raise ValueError
        return tuple(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and value != int(value)):
        raise ValueError
    return kind(value)


def all_fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of nested sections by their dotted names."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        fields |= all_fields(value, f"{prefix}{name}.") if isinstance(value, Mapping | ConfigDict) else {
            prefix + name: list(value) if isinstance(value, tuple) else value}
    return fields


_ABOVE_ZERO = ("batch_size", "learning_rate", "adam_eps", "grad_clip", "log_every", "checkpoint_every", "keep",
               "sample_steps", "steps")
_NOT_NEGATIVE = ("warmup", "eval_every", "sample_every", "seed")
_FRACTIONS = ("beta1", "beta2", "ema_decay")


def validate(config: ConfigDict) -> None:
    """ValueError for a number out of range; words and shapes are checked by what they are the names of."""
    training = config.training

    def check(names: Iterable[str], allowed: Any, text: str) -> None:
        for name in names:
            if not allowed(training[name]):
                raise ValueError(f"--config.training.{name} must {text}, got {training[name]}")

    check(_ABOVE_ZERO, lambda v: 0 < v < float("inf"), "be above 0")
    check(_NOT_NEGATIVE, lambda v: v >= 0, "not be negative")
    check(_FRACTIONS, lambda v: 0 <= v < 1, "lie in [0, 1)")
    check(("decay",), lambda v: v in ("constant", "cosine"), "be constant or cosine")
    for name in ("multipliers", "attention_resolutions"):
        if not all(isinstance(number, int) for number in config.model[name] or ()):
            raise ValueError(f"--config.model.{name} must be whole numbers, got {config.model[name]}")
    if not config.data.low < config.data.high:
        raise ValueError(f"--config.data.low must be below --config.data.high, got {config.data.low} and "
                         f"{config.data.high}")
