"""python -m scorefield, the command `scorefield`, and main.py.

A signal leaves no traceback, also during the seconds that imports take: so its handler comes before them.
"""

from scorefield.numerics import stopping

stopping.install()


def run() -> None:
    """The entry point of a process; see `scorefield.cli.process.run`."""
    from scorefield.cli.process import run

    run()


if __name__ == "__main__":
    run()
