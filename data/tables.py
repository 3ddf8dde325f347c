"""Read a table from a text file or a .parquet: numbers (N, D) in float64, the names of the columns, and the labels.

Text is UTF-8 (with a byte order mark or none) or UTF-16, with rows of equal length. Cells are separated by commas,
semicolons, tabs or spaces, whichever splits the first rows into the most columns. The first row has the names of the
columns if none of its cells is a number, or if a column has a name above and numbers below. A first row of numbers that look
like names is taken as numbers, and a note says so. Anything else that could be read in two ways is refused with a line that
names the row (counted from 1, without the names) and the column.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np

from scorefield.data.damage import damage_named
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.text import nearest

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", " ": "spaces"}
HEADERS = ("auto", "yes", "no")
_ROWS = 20_000      # that are held as text at a time
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+(,\d+)+\s*")
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers (N, D), float64 and finite; names of the columns, () where they have none; labels as text (N,), or None."""

    values: np.ndarray
    columns: tuple[str, ...]
    label: np.ndarray | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """Which columns of a table to take.

    columns   by their names or their numbers from 0, in this order; () for all but the labels
    label     the column of the labels; "" for none
    argument  that says the columns, for messages
    optional  a table without the column of the labels has no labels
    """

    columns: tuple[str, ...] = ()
    label: str = ""
    argument: str = "data.columns"
    optional: bool = False


def read_text(file: Path, wanted: Wanted = Wanted(), header: str = "auto", argument: str = "data.path") -> Table:
    """The table in a text file.

    header  "yes" or "no" says whether the first row has the names of the columns; "auto" finds out

    Raises ArgumentError of one line if this is no table of finite numbers.
    """
    text = _decoded(file.read_bytes(), file, argument)
    text = text[1:].lstrip(" ") if text.startswith("#") else text      # before the names, as numpy.savetxt writes them
    if not text.strip():
        raise ArgumentError(f"{argument}: {file} is empty", argument)
    try:
        return _table(text, file, wanted, header, argument)
    except csv.Error as error:
        raise ArgumentError(f"{argument}: {file} is no table ({error})", argument) from None


def _table(text: str, file: Path, wanted: Wanted, header: str, argument: str) -> Table:
    separator = _separator(text)
    first, second = (list(itertools.islice(_rows(text, separator), 2)) + [None])[:2]
    assert first is not None
    named = _is_header(first, second) if header == "auto" else header == "yes"
    names = [cell.strip() for cell in first] if named else [str(i) for i in range(len(first))]
    place = _Place(file, argument, names, named, separator)
    if named:
        place.check_names(second)
    chosen, of_label = place.chosen(wanted)
    values, labels = place.read(itertools.islice(_rows(text, separator), int(named), None), chosen, of_label)
    notes = []
    if separator != ",":
        notes.append(f"{file.name}: its cells are separated by {SEPARATORS[separator]}")
    if named and any(map(_is_number, first)):
        notes.append(f"{file.name}: its first row, {', '.join(first)[:60]}, has the names of the columns (data.header)")
    if header == "auto" and not named and _may_be_names([first[i] for i in chosen], values):
        notes.append(f"{file.name}: its first row, {', '.join(first)[:60]}, is taken as numbers; if it has the names of the "
                     "columns, set data.header=yes, or remove that row")
    own = tuple(names[i] for i in chosen) if named else ()
    return Table(values, own, labels, (*notes, *counting(values, own)))


def read_parquet(file: Path, wanted: Wanted = Wanted(), argument: str = "data.path") -> Table:
    """The table in a .parquet; see `read_text`. ArgumentError if pandas, or what it reads these with, is not installed."""
    try:
        pandas: Any = import_module("pandas")      # an extra: heavy, and only this format needs it
    except ImportError:
        raise ArgumentError(f"{argument}: {file} is a .parquet, which pandas reads (pip install pandas pyarrow); or save it "
                            "as .csv", argument) from None
    with damage_named(file, argument):
        frame = pandas.read_parquet(file)
    names = [str(name) for name in frame.columns]
    place = _Place(file, argument, names, True, ",")
    if len(frame) < 1:
        raise ArgumentError(f"{argument}: {file} has no rows", argument)
    place.check_names(None)
    chosen, of_label = place.chosen(wanted)
    values = np.empty((len(frame), len(chosen)))
    for j, i in enumerate(chosen):
        column = frame.iloc[:, i]
        if column.dtype.kind not in "iufb":
            raise place.no_number(0, i, str(column.iloc[0]))
        values[:, j] = column.to_numpy(np.float64, na_value=np.nan) if column.dtype.kind != "b" else column.to_numpy()
    place.check_finite(values, chosen, 0)
    labels = None
    if of_label is not None:
        column = frame.iloc[:, of_label]
        if bool(column.isna().any()):
            raise place.at(int(np.flatnonzero(column.isna())[0]), of_label, "", "a label is missing")
        labels = column.astype(str).to_numpy().astype(np.str_)
    own = tuple(names[i] for i in chosen)
    return Table(values, own, labels, tuple(counting(values, own)))


def counting(values: np.ndarray, columns: Sequence[str]) -> list[str]:
    """A note for each column that counts the rows, as an index does."""
    steps = np.arange(len(values))
    return [f"column {columns[i] if columns else i!r} counts the rows; if that is an index, leave it out with data.columns"
            for i in range(values.shape[1]) if len(values) > 2 and np.array_equal(values[:, i] - values[0, i], steps)]


def _decoded(raw: bytes, file: Path, argument: str) -> str:
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{argument}: {file} is neither text in UTF-8 (byte {error.start}) nor an .npy, .npz or "
                            ".parquet; a table in another encoding, such as Latin-1, must be saved as UTF-8", argument
                            ) from None


def _rows(text: str, separator: str) -> Iterator[list[str]]:
    """The rows that are not blank, as lists of cells."""
    lines = io.StringIO(text, newline="")
    rows: Iterable[list[str]] = map(str.split, lines) if separator == " " else csv.reader(lines, delimiter=separator)
    return (row for row in rows if any(cell.strip() for cell in row))


def _separator(text: str) -> str:
    """The separator that splits the first rows into the most columns, the same number in each if there is one such."""
    def sample(separator: str) -> list[list[str]]:
        return list(itertools.islice(_rows(text, separator), 20))

    def quality(separator: str) -> tuple[bool, int]:
        rows = sample(separator)
        usual = mode(map(len, rows)) if separator != " " or all(map(_is_number, rows[-1])) else 0      # or it is prose
        return len({len(row) for row in rows}) == 1 and usual > 1, usual

    for other in (";", "\t", " "):      # 1,5;2,5 is two numbers, not three; they are refused later
        cells = [cell for row in sample(other)[1:] for cell in row if len(row) > 1]
        if cells and all(map(_DECIMAL_COMMA.fullmatch, cells)):
            return other
    return max(SEPARATORS, key=quality)      # commas, if all are equal


def _is_header(first: Sequence[str], second: Sequence[str] | None) -> bool:
    if not any(_is_number(cell) or _DECIMAL_COMMA.fullmatch(cell) for cell in first):
        return True
    filled = [cell.strip() for cell in first if cell.strip()]
    if len(filled) > 1 and filled == [str(i) for i in range(len(filled))]:
        return True      # what pandas calls columns without names
    return second is not None and any(_is_number(below) and not _is_number(cell)
                                      for cell, below in zip(first, second, strict=False))


def _may_be_names(first: Sequence[str], values: np.ndarray) -> bool:
    """Whether a first row of numbers, such as 2019,2020, may have names: distinct integers, and nothing below is like them.

    Below, most numbers of each column are not whole; or the row goes up by one from column to column, and hardly any does.
    """
    below = values[1:]
    if not len(below) or len(set(first)) < len(first) or not all(_INTEGER.fullmatch(cell) for cell in first):
        return False
    if bool(((below != np.round(below)).mean(0) > 0.5).all()):
        return True
    counts = (np.diff(values, axis=1) == 1).all(1)
    return values.shape[1] > 2 and bool(counts[0]) and bool(counts[1:].mean() < 0.1)


def _number(cell: str) -> float:
    """The number in a cell; ValueError for what only Python takes for one: 1_0, and digits of other scripts."""
    if "_" in cell or not cell.strip().isascii():
        raise ValueError(cell)
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class _Place:
    """A table's file and columns, for reading and for messages."""

    file: Path
    argument: str
    names: list[str]
    named: bool
    separator: str

    def at(self, row: int, column: int, cell: str, problem: str) -> ArgumentError:
        shown = f" holds {cell.strip()[:40]!r}" if cell.strip() else ""
        return ArgumentError(f"{self.argument}: {self.file}, row {row + 1}, column {self.names[column]!r}{shown}: {problem}",
                             self.argument)

    def check_names(self, second: Sequence[str] | None) -> None:
        empty = [i for i, name in enumerate(self.names) if not name]
        if empty and not (second is not None and len(second) != len(self.names)):
            raise ArgumentError(f"{self.argument}: {self.file}: column number {empty[0]} has no name; an index that pandas "
                                "wrote is left out with to_csv(index=False), and other columns need a name", self.argument)
        if twice := [name for i, name in enumerate(self.names) if name in self.names[:i]]:
            raise ArgumentError(f"{self.argument}: {self.file} has two columns of the name {twice[0]!r}; rename one",
                                self.argument)

    def chosen(self, wanted: Wanted) -> tuple[list[int], int | None]:
        """The numbers of the columns of numbers and of that of the labels."""
        columns, label = wanted.columns, wanted.label if wanted.label in self.names or not wanted.optional else ""
        of_label = self.number(label, "data.label") if label else None
        chosen = [self.number(word, wanted.argument) for word in columns] if columns else [
            i for i in range(len(self.names)) if i != of_label]
        if of_label in chosen:
            raise ArgumentError(f"column {label!r} holds the labels, so it cannot be one of the numbers, too; leave it out "
                                "of data.columns", "data.columns", "data.label")
        if len(set(chosen)) < len(chosen):
            raise ArgumentError(f"data.columns={','.join(columns)} names a column twice", "data.columns")
        if not chosen:
            raise ArgumentError(f"{self.argument}: {self.file} has no column beside the labels", self.argument)
        return chosen, of_label

    def number(self, word: str, argument: str) -> int:
        if word in self.names:
            return self.names.index(word)
        raise ArgumentError(f"{self.file} has no column {word!r}{nearest(word, self.names)}; it has "
                            f"{', '.join(self.names[:12])}{', ...' if len(self.names) > 12 else ''}", argument)

    def read(self, rows: Iterator[list[str]], chosen: Sequence[int], of_label: int | None
             ) -> tuple[np.ndarray, np.ndarray | None]:
        parts, labels, begin = [], [], 0
        while chunk := list(itertools.islice(rows, _ROWS)):
            for row, cells in enumerate(chunk):
                if len(cells) != len(self.names):
                    raise self.ragged(begin + row, cells)
            columns = list(zip(*chunk, strict=True))
            part = np.empty((len(chunk), len(chosen)))
            for j, i in enumerate(chosen):
                try:
                    part[:, j] = list(map(_number, columns[i]))
                except ValueError:
                    raise self.first_bad(begin, i, columns[i]) from None
            self.check_finite(part, chosen, begin)
            parts.append(part)
            if of_label is not None:
                words = [word.strip() for word in columns[of_label]]
                if "" in words:
                    raise self.at(begin + words.index(""), of_label, "", "a label is missing")
                labels.append(np.array(words, np.str_))
            begin += len(chunk)
        if not parts:
            raise ArgumentError(f"{self.argument}: {self.file} has the names of its columns and no rows", self.argument)
        return np.concatenate(parts), np.concatenate(labels) if labels else None

    def ragged(self, row: int, cells: Sequence[str]) -> ArgumentError:
        hint = ("; if commas are in its numbers, write these with points, or separate the cells by semicolons"
                if self.separator == "," and len(cells) > len(self.names) else "")
        return ArgumentError(f"{self.argument}: {self.file}, row {row + 1} has {len(cells)} cells, and "
                             f"{'the names of the columns are' if self.named else 'row 1 has'} {len(self.names)}{hint}",
                             self.argument)

    def first_bad(self, begin: int, column: int, cells: Sequence[str]) -> ArgumentError:
        row = next(i for i, cell in enumerate(cells) if not _is_number(cell))
        if self.named and cells[row].strip() == self.names[column]:
            return self.at(begin + row, column, cells[row], "the names of the columns are there again; remove that row")
        return self.no_number(begin + row, column, cells[row])

    def no_number(self, row: int, column: int, cell: str) -> ArgumentError:
        if not cell.strip():
            return self.at(row, column, cell, "the number is missing; fill it in or remove the row")
        if _DECIMAL_COMMA.fullmatch(cell):
            return self.at(row, column, cell, "numbers have a decimal point, and nothing between thousands")
        return self.at(row, column, cell, f"that is no number; if the column holds classes, say data.label="
                                          f"{self.names[column]}, else name the columns to take in data.columns")

    def check_finite(self, values: np.ndarray, chosen: Sequence[int], begin: int) -> None:
        if not np.isfinite(values).all():
            row, j = (int(i[0]) for i in np.nonzero(~np.isfinite(values)))
            missing = np.isnan(values[row, j])
            raise self.at(begin + row, chosen[j], repr(float(values[row, j])), "numbers must be finite; "
                          + ("fill it in" if missing else "write a finite number") + " or remove the row")
