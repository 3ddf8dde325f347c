"""Scorefield's command line in a checkout: python main.py --config configs/vp_digits.py --mode train"""

import _signal  # built into Python. Ctrl-C in the milliseconds before scorefield's own handler ends us without a traceback

_signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from scorefield.__main__ import run  # noqa: E402

if __name__ == "__main__":
    run()
