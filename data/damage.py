"""Errors of a user's files: one line that names the file and the argument, whatever the parser of the file raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scorefield.numerics.errors import ArgumentError


@contextmanager
def named_argument(argument: str) -> Iterator[None]:
    """In this context, a ValueError that names no argument becomes an ArgumentError that names this one."""
    try:
        yield
    except ArgumentError:
        raise
    except ValueError as error:
        raise ArgumentError(str(error), argument) from error


@contextmanager
def damage_named(file: Path, argument: str = "data.path") -> Iterator[None]:
    """In this context, every error but the system's own becomes an ArgumentError: `file` is damaged or not usable."""
    try:
        yield
    except Exception as error:  # the parsers of damaged input raise errors of every type
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own error, such as no permission
        raise ArgumentError(f"{argument}: {file} is damaged or not usable ({one_line(error)})", argument) from error


def one_line(error: Exception) -> str:
    """The type and the text of an error."""
    return " ".join(f"{type(error).__name__}: {error}".split())
