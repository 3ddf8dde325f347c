"""Mode report: the table of what a run's folder holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scorefield.cli.command import Command

SUMMARY = "prints the table of what the folder holds"
FLAGS = ()


def run(command: Command) -> None:
    """Print the table of what the run's folder holds."""
    from scorefield.evaluation.report import report

    print(report(command.run))
