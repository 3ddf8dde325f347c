"""Training of score models and of what guides them."""

from typing import Any

_HOMES = {"Interrupted": "trainer", "Trainer": "trainer", "Objective": "objective", "TIME_SAMPLERS": "objective",
          "WEIGHTINGS": "objective"}


def __getattr__(name: str) -> Any:
    """Names are imported when they are asked for, so that configs may import the objectives without the trainer."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"scorefield.training.{_HOMES[name]}"), name)
