"""Scorefield's command line in a checkout: python main.py --config configs/vp_digits.py --mode train"""

from scorefield.cli.main import run

if __name__ == "__main__":
    run()
