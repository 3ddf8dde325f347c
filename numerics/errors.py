"""Errors that say which argument is wrong, so that a caller who set it in another way can say which way."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class ArgumentError(ValueError):
    """A value that a function or class does not take: `raise ArgumentError("order must be 1 or 2, got 4", "order")`.

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
    """Within, arguments at fault are renamed: by `names` where they stand there, else by `section` and a dot before them.

    So an error of VPSDE(beta_min=-1) is one of sde.beta_min where a config's section `sde` was its source.
    """
    try:
        yield
    except (ArgumentError, MissingFileError) as error:
        known = names or {}
        error.arguments = tuple(known.get(name, f"{section}.{name}" if section and "." not in name else name)
                                for name in error.arguments)
        raise
