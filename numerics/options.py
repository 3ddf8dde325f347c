"""Settings of a dataclass, each with its default and a line of help in the field itself."""

import dataclasses
from typing import Any


def option(default: Any, help: str) -> Any:
    """A field of a dataclass: `steps: int = option(100, "steps of the grid")`.

    help  one line, for `--help` and for readers. A value is described by what it does, and None by what it stands for
    """
    return dataclasses.field(default=default, metadata={"help": help})
