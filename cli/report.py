"""Mode report: a table of the results in a run's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scorefield.cli.command import Command

SUMMARY = "prints a table of the results in the run's folder"
FLAGS = ()


def run(command: Command) -> None:
    """Print a table of the results in the run's folder."""
    from scorefield.evaluation.report import report

    print(report(command.run))
