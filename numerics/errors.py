"""Errors that name the wrong argument, so that the command line can name its flag or the field of the config."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class ArgumentError(ValueError):
    """A value that a function or class does not accept: `raise ArgumentError("order must be 1 or 2, got 4", "order")`.

    arguments  the names of the arguments at fault. The command line adds their flags to the message
    """

    def __init__(self, message: str, *arguments: str):
        super().__init__(message)
        self.arguments = arguments


class MissingFileError(FileNotFoundError):
    """A file or folder that does not exist. It names the arguments at fault as ArgumentError does."""

    def __init__(self, message: str, *arguments: str):
        super().__init__(message)
        self.arguments = arguments


@contextmanager
def renamed(section: str = "", names: Mapping[str, str] | None = None) -> Iterator[None]:
    """In this context, the arguments at fault get new names: from `names` if it has them, else with `section` and a dot
    before them.

    So an error of VPSDE(beta_min=-1) names sde.beta_min if the value came from a config's section `sde`.
    """
    try:
        yield
    except (ArgumentError, MissingFileError) as error:
        known = names or {}
        error.arguments = tuple(known.get(name, f"{section}.{name}" if section and "." not in name else name)
                                for name in error.arguments)
        raise
