"""python -m scorefield"""

from scorefield.cli.main import run

if __name__ == "__main__":
    run()
