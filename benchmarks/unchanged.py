"""Whether two checkouts give the same results to the bit: `python -m benchmarks.unchanged --before COMMIT`.

A change that only restructures changes no result. This script runs one workload in both checkouts and compares what they
write. A case of the workload (workload.py) is one call of main.py, in a process of its own and on one thread of the CPU. So
modules may move; the command line stays.

    train       losses, gradient norms and held-out losses; the last weights, averages and Adam's state
    resume      the same of training that goes on; it must also equal training that never stopped
    sample      arrays, pictures and numbers of evaluations
    likelihood  rows, figures and histograms
    convert     what is written in each checkpoint format
    import      what is read from each checkpoint format: samples, and training that goes on

A case may start from the files of another case. The first of each kind runs once more, in the new code on the files of the
old code. It must give what the old code gave. Times, paths, settings and a run's config.json are not compared.

The script prints a line for each comparison. Its exit status is 1 if one finds a difference or a command fails.
"""

import argparse
import csv
import json
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

from benchmarks.workload import Case, selected, workload, write_data

ROOT = Path(__file__).parents[1]
# Each case is a new process, forked from one that has loaded these libraries. Else imports would take most of the time.
PROCESSES = multiprocessing.get_context("forkserver")
LIBRARIES = ["torch._dynamo", "torch.utils.tensorboard", "torchdiffeq", "torchsde", "ml_collections", "scipy.interpolate",
             "scipy.stats", "sklearn.datasets", "matplotlib.figure", "safetensors.torch", "tqdm"]

# ---- running it ------------------------------------------------------------------------------------------------------


@contextmanager
def checkout_of(place: str) -> Iterator[Path]:
    """A checkout's folder as it is, or a temporary worktree of a commit."""
    if (Path(place) / "main.py").is_file():
        yield Path(place).resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, git = Path(temporary, "checkout"), ["git", "-C", str(ROOT), "worktree"]
        if subprocess.run([*git, "add", "--quiet", "--detach", folder, place]).returncode:
            sys.exit(f"{place!r} is neither a checkout nor a commit")
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", folder], check=True)


def call_main(checkout: Path, words: list[str], log: Path) -> None:
    """Become `python main.py` in a checkout, with all that it prints in a file."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(checkout)
    sys.path[0], sys.argv = str(checkout), ["main.py", *words]
    runpy.run_path(str(checkout / "main.py"), run_name="__main__")


def run(case: Case, checkout: Path, starts: Path, results: Path, places: dict[str, Path]) -> str:
    """Run a case below `results`, on the files that its start has below `starts`. Return its error, or nothing."""
    here = results / case.name
    if case.start:
        shutil.copytree(starts / case.start, here)
    else:
        here.mkdir(parents=True)
    words = [word.format(here=here, **places) for word in case.words.split()]
    process = PROCESSES.Process(target=call_main, args=(checkout, ["--device=cpu", *words], here / "log.txt"))
    process.start()
    process.join()
    printed = (here / "log.txt").read_text().split("\n")
    return next(filter(None, reversed(printed)), f"exit status {process.exitcode}") if process.exitcode else ""


# ---- comparing what it wrote -----------------------------------------------------------------------------------------

Values = dict[str, np.ndarray]
# Which files a case of each part writes.
WRITTEN = {
    "train": ("run/stats.jsonl", "run/checkpoints/*"),
    "resume": ("run/stats.jsonl", "run/checkpoints/*"),
    "sample": ("run/samples/*",),
    "likelihood": ("run/likelihood/*",),
    "convert": ("converted.*", "converted_run/checkpoints/*", "diffusers/*"),
    "import": ("imported/stats.jsonl", "imported/checkpoints/*", "imported/samples/*"),
}
STATE = ("network", "ema", "ema_updates", "optimizer", "step")      # of a run's checkpoint
READERS: dict[str, Callable[[Path], Any]] = {
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".json": lambda path: json.loads(path.read_text()),
    ".csv": lambda path: list(csv.DictReader(path.read_text().splitlines())),
    ".npz": lambda path: dict(np.load(path)),
    ".png": lambda path: np.asarray(Image.open(path)),
    ".pt": lambda path: {k: v for k, v in torch.load(path, weights_only=True).items() if k in STATE},
    ".pth": lambda path: torch.load(path, weights_only=True),
    ".safetensors": load_file,
}
IGNORED = ("seconds", "steps_per_second", "checkpoint", "settings", "images", "source")


def leaves(value: Any, name: str) -> Values:
    """The leaves of nested dictionaries and lists by their path, as arrays; less those that are ignored."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items if key not in IGNORED for k, v in leaves(item, f"{name}/{key}").items()}
    return {name: np.asarray(str(value) if value is None else value)}


def read(part: str, folder: Path) -> Values:
    """All values in the files that a case of that part has written."""
    files = sorted(file for pattern in WRITTEN[part] for file in folder.glob(pattern) if file.suffix in READERS)
    return {k: v for file in files for k, v in leaves(READERS[file.suffix](file), str(file.relative_to(folder))).items()}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two arrays; infinite if they are of two shapes or no numbers."""
    try:
        apart = np.abs(a.astype(float) - b.astype(float)) if a.shape == b.shape else np.asarray(np.inf)
    except ValueError:
        return np.inf
    return float(np.nan_to_num(apart, nan=np.inf).max())


def compare(before: Values, after: Values) -> str:
    """What differs in any bit, in words; nothing if all is equal."""
    if not before:
        return "nothing was written"
    if alone := sorted(before.keys() ^ after.keys()):
        return f"{len(alone)} values are only {'before' if alone[0] in before else 'after'}, such as {alone[0]}"
    apart = {name: distance(a, after[name]) for name, a in before.items()
             if (a.dtype, a.shape, a.tobytes()) != (after[name].dtype, after[name].shape, after[name].tobytes())}
    worst = max(apart, key=lambda name: apart[name], default="")
    return f"{len(apart)} of {len(before)} values differ, {worst} by {apart[worst]:.3g}" if apart else ""


def comparisons(cases: list[Case], before: Path, after: Path, root: Path, places: dict[str, Path]
                ) -> Iterator[tuple[str, str]]:
    """Run the cases. Yield the name of each comparison, and what differs."""
    old, new, mixed = root / "before", root / "after", root / "mixed"

    def verdict(part: str, expected: Path, found: Path, **errors: str) -> str:
        failed = "; ".join(f"{side} fails: {error}" for side, error in errors.items() if error)
        return failed or compare(read(part, expected), read(part, found))

    with ThreadPoolExecutor(2) as pool:
        for case in cases:
            first, second = (pool.submit(run, case, checkout, folder, folder, places)
                             for checkout, folder in ((before, old), (after, new)))
            yield case.name, verdict(case.part, old / case.name, new / case.name,
                                     before=first.result(), after=second.result())
        chosen = {(case.part, case.start): case for case in reversed(cases) if case.start}
        errors = {case: pool.submit(run, case, after, old, mixed, places) for case in reversed(chosen.values())}
        for case, error in errors.items():
            yield f"{case.name}, on old files", verdict(case.part, old / case.name, mixed / case.name, after=error.result())
    for case in cases:
        if case.equals:
            yield f"{case.name}, against {case.equals}", verdict(case.part, new / case.equals, new / case.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="a checkout or a commit")
    parser.add_argument("--after", default=str(ROOT), help="likewise; this checkout unless given")
    parser.add_argument("--only", default=",".join(WRITTEN), help="parts of the workload; what they need runs, too")
    parser.add_argument("--oracles", type=Path, default=ROOT.parent / "shared" / "oracles",
                        help="a folder with score_sde_ckpt/*.pth, to be imported; ../shared/oracles unless given")
    parser.add_argument("--folder", type=Path, help="a new folder that keeps all files; a temporary one unless given")
    given = parser.parse_args()
    parts, oracles, start = given.only.split(","), given.oracles.resolve() / "score_sde_ckpt", time.monotonic()
    if unknown := set(parts) - set(WRITTEN):
        parser.error(f"--only takes {','.join(WRITTEN)}; got {','.join(sorted(unknown))}")
    if given.folder and given.folder.exists():
        parser.error(f"--folder takes a new folder; {given.folder} is there already")
    if not oracles.is_dir():
        print(f"there is no {oracles}: nothing of it is imported (--oracles)")
    cases = selected(workload(oracles), parts)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    PROCESSES.set_forkserver_preload(LIBRARIES)
    count = different = 0
    with checkout_of(given.before) as before, checkout_of(given.after) as after, tempfile.TemporaryDirectory() as temporary:
        root = (given.folder or Path(temporary)).resolve()
        places = {"data": root / "data", "oracles": oracles}
        write_data(places["data"])
        for name, difference in comparisons(cases, before, after, root, places):
            print(f"{'DIFFERENT' if difference else 'equal':<11}{name}{difference and ': '}{difference}", flush=True)
            count, different = count + 1, different + bool(difference)
    print(f"{different} of {count} comparisons differ; {time.monotonic() - start:.0f} s")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
