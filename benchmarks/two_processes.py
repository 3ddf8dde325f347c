"""Steps a second of two processes (gloo, one thread each) against one of one thread: `python -m benchmarks.two_processes`.

vp_digits with its whole batch, in alternating rounds; the figure is the median of the ratios, for whole networks (DDP) and
for shares (FSDP). Writes benchmarks/results/two_processes.json. Two idle cores are needed for a fair figure.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
CODE = """
import json, sys, time
from pathlib import Path
from scorefield.configs import vp_digits
from scorefield.data import load_dataset
from scorefield.numerics.devices import local_device
from scorefield.training import set_up
config = vp_digits.get_config()
config.training.update(steps=10**9, eval_every=0, sample_every=0, checkpoint_every=10**9, sharding=sys.argv[2])
trainer = set_up(config, load_dataset(config.data), Path(sys.argv[1]), local_device("cpu"))
trainer.model.train()
rates = []
for _ in range(int(sys.argv[3]) + 1):      # the first is for warming up
    start = time.perf_counter()
    for _ in range(20):
        trainer.update(*trainer.batches(trainer.step), trainer.step)
        trainer.step += 1
    rates.append(20 / (time.perf_counter() - start))
if trainer.world.first:
    print(json.dumps(rates[1:]))
trainer.world.leave()
"""


def steps_per_second(processes: int, sharding: str, rounds: int) -> list[float]:
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "steps.py"
        script.write_text(CODE)
        out = subprocess.run([sys.executable, *launcher, str(script), folder, sharding, str(rounds)], check=True, cwd=ROOT,
                             capture_output=True, text=True,
                             env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}).stdout
    return json.loads(out.splitlines()[-1])


def main() -> None:
    rows = []
    for _ in range(3):
        one = statistics.median(steps_per_second(1, "none", 3))
        for sharding in ("none", "fsdp"):
            two = statistics.median(steps_per_second(2, sharding, 3))
            rows.append({"sharding": sharding, "one": one, "two": two, "ratio": two / one})
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "two_processes.json").write_text(json.dumps({"load": os.getloadavg(), "rows": rows}, indent=2) + "\n")
    print("| two processes | steps a second | of one process | ratio |\n|---|---|---|---|")
    for sharding in ("none", "fsdp"):
        own = [row for row in rows if row["sharding"] == sharding]
        two, one, ratio = (statistics.median(row[name] for row in own) for name in ("two", "one", "ratio"))
        print(f"| {sharding} | {two:.2f} | {one:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
