"""What a training step costs beyond the network: `python -m benchmarks.train_step [labels]`, part of `make bench`.

Side by side in one run, in alternating rounds: a step of the trainer as it is (data, times, noise, loss, clip, Adam,
EMA, log), and the bare forward, backward and Adam step of the same network in the same precision on ready tensors.
The figure is the ratio of the medians over the rounds; beside it, the share of a step that waits for data, and how many
steps training stands still for a save (a line of the log, and a copy of the state for the thread that writes). And what a
label costs: whole steps of vp_digits with classes = 10 and without, in alternating order ("labels": this alone). Writes
benchmarks/results/train_step.json.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from scorefield.configs import vp_cifar10, vp_digits, vp_fashion_mnist, vp_swiss_roll
from scorefield.data import Dataset, load_dataset
from scorefield.numerics.devices import local_device
from scorefield.training import set_up
from scorefield.training.log import Log
from scorefield.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"


def measure(name: str, config, dataset: Dataset, steps: int, rounds: int) -> dict:
    device = local_device("auto")
    with tempfile.TemporaryDirectory() as folder:
        config.training.update(steps=10**9, log_every=0, eval_every=0, sample_every=0, checkpoint_every=10**9)
        trainer = set_up(config, dataset, Path(folder), device)
        log = Log(Path(folder), 0, 10**9, trainer.world, progress=False)
        full = step_of(trainer, log)
        other = set_up(config, dataset, Path(folder), device)
        batch, draw = trainer.batches(0)
        x, t32, eps = other.model.sde.perturb(batch.x, draw.t, draw.eps), 999 * draw.t.float(), draw.eps
        inputs = (x, t32, batch.condition) if other.model.takes.names else (x, t32)
        other.model.train()

        def bare() -> None:
            with torch.autocast(device.type, other.model.autocast, enabled=other.model.autocast is not None):
                output = other.network(*inputs)
            (output.float() - eps).square().mean().backward()
            other.update.optimizer.step()
            other.update.optimizer.zero_grad()

        seconds(full, steps), seconds(bare, steps)
        waited = trainer.batches.waited
        pairs = [(seconds(full, steps), seconds(bare, steps)) for _ in range(rounds)]
        waited = (trainer.batches.waited - waited) / (steps * rounds)
        saves = [saving(trainer, log, full) for _ in range(5)]
        log.__exit__()
        trainer.batches.close()
    ours, network = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {"what": name, "step_ms": 1e3 * ours, "network_ms": 1e3 * network, "ratio": ours / network,
            "ratios": [a / b for a, b in pairs], "data_wait": waited / ours, "save_ms": 1e3 * statistics.median(saves),
            "save_steps": statistics.median(saves) / ours}


def saving(trainer: Trainer, log: Log, step: Callable[[], None]) -> float:
    """Seconds in which training stands still for a save; a thread then writes, which here has ended before the next one."""
    step()
    start = time.perf_counter()
    trainer._report(log, True)
    stood = time.perf_counter() - start
    trainer.saver.wait()
    return stood


def step_of(trainer: Trainer, log: Log) -> Callable[[], None]:
    """A whole step of a trainer, with its log."""
    trainer.model.train()

    def step() -> None:
        log.add(*trainer.update(*trainer.batches(trainer.step), trainer.step))
        trainer.step += 1
        trainer._report(log, False)

    return step


def seconds(step: Callable[[], None], steps: int) -> float:
    """Of one step, as the mean of some."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def labels(steps: int = 2, rounds: int = 121) -> dict:
    """The ratio of a step of vp_digits (batch 128) with classes = 10 to one without: the median over the rounds, and the
    interval of order statistics that holds it with 95 %.
    """
    device, dataset = local_device("auto"), load_dataset({"dataset": "digits"})
    with tempfile.TemporaryDirectory() as folder:
        ways, logs = [], []
        for classes in (10, None):
            config = vp_digits.get_config()
            config.model.classes = classes
            config.training.update(steps=10**9, log_every=0, eval_every=0, sample_every=0, checkpoint_every=10**9)
            trainer = set_up(config, dataset, Path(folder), device)
            logs.append(Log(Path(folder), 0, 10**9, trainer.world, progress=False))
            ways.append(step_of(trainer, logs[-1]))
        for way in ways:
            seconds(way, 2 * steps)
        ratios = []
        for i in range(rounds):
            order = ways if i % 2 else ways[::-1]
            times = {way: seconds(way, steps) for way in order}
            ratios.append(times[ways[0]] / times[ways[1]])
        for log in logs:
            log.__exit__()
    ratios.sort()
    half = round(0.98 * rounds**0.5)      # 1.96 standard deviations of a binomial of n halves
    low, high = ratios[max(0, rounds // 2 - half)], ratios[min(rounds - 1, rounds // 2 + half)]
    return {"what": "vp_digits, classes = 10 to none", "ratio": statistics.median(ratios), "interval": [low, high],
            "ratios": ratios}


def main() -> None:
    told = labels()
    low, high = told["interval"]
    print(f"a step with labels takes {told['ratio']:.3f} times one without (95 %: {low:.3f} to {high:.3f})")
    if sys.argv[1:] == ["labels"]:
        return
    modules = vp_digits, vp_fashion_mnist, vp_cifar10, vp_swiss_roll
    digits, fashion, cifar, roll = (module.get_config() for module in modules)
    fashion.training.batch_size = 64
    grey = torch.randint(0, 256, (256, 1, 28, 28), dtype=torch.uint8)
    grey_like = Dataset("noise in Fashion-MNIST's format", grey, grey, (1, 28, 28), levels=256)
    cifar.training.batch_size = 32      # of 128, for the sake of time
    noise = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    cifar_like = Dataset("noise in CIFAR-10's format", noise, noise, (3, 32, 32), levels=256, flip=True)
    rows = [measure("vp_digits", digits, load_dataset(digits.data), 20, 9),
            measure("vp_swiss_roll", roll, load_dataset(roll.data), 100, 9),
            measure("vp_fashion_mnist, batch 64", fashion, grey_like, 1, 7),
            measure("vp_cifar10, batch 32", cifar, cifar_like, 1, 5)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "train_step.json").write_text(json.dumps(
        {"threads": torch.get_num_threads(), "device": str(local_device("auto")), "rows": rows, "labels": told},
        indent=2) + "\n")
    print("| training step | whole step, ms | network alone, ms | ratio | waiting for data | a save, in steps |\n"
          "|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['what']} | {row['step_ms']:.1f} | {row['network_ms']:.1f} | {row['ratio']:.3f} | "
              f"{row['data_wait']:.2%} | {row['save_steps']:.2f} |")


if __name__ == "__main__":
    main()
