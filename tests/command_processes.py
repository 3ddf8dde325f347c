"""Real processes of the command line, which tests stop, kill and starve."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Points under a small network: a step takes a millisecond, so that what is tested is the loop.
POINTS = ["--config=configs/vp_swiss_roll.py", "--config.data.size=200", "--config.model.width=16",
          "--config.model.layers=1",
          "--config.training.batch_size=16", "--config.training.warmup=0", "--config.training.precision=fp32",
          "--config.training.decay=constant", "--config.training.sample_every=0", "--device=cpu"]
DOCUMENTED = {0, 1, 129, 130, 138, 143}      # docs/training_faults.md


def heeding():
    """Take SIGHUP as a terminal's process does, also where nohup runs the tests."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Process:
    """A process of main.py, started in a session of its own."""

    def __init__(self, *words, launcher=(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, before=heeding, env=None):
        self.process = subprocess.Popen([*(launcher or [sys.executable]), "main.py", *map(str, words)], cwd=ROOT, text=True,
                                        stdout=stdout, stderr=stderr, start_new_session=True, preexec_fn=before,
                                        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}))

    def until(self, happened, seconds=120):
        """Wait until happened() is true; the process must live until then."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "it takes too long"
            time.sleep(0.02)
        return self

    def says(self, text):
        """Wait for a line with this text on standard output."""
        return any(text in line for line in iter(self.process.stdout.readline, ""))

    def send(self, number):
        self.process.send_signal(number)
        return self

    def end(self, seconds=120):
        """(exit code, standard output, standard error), when it has ended by itself."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.process.returncode, out, err

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def steps_logged(run):
    """The number of whole lines in a run's log."""
    path = run / "stats.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
