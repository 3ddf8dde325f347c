"""The fields of a config's section `training` that every objective shares."""

from collections.abc import Sequence
from dataclasses import dataclass

from scorefield.models.ema import averages_of
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option

TRACKERS = ("tensorboard", "wandb")
MOST_WORKERS = 256
SHARDINGS = ("none", "fsdp")
MEMORY_FORMATS = ("auto", "channels_last", "contiguous")
ON_NONFINITE = ("stop", "skip")
SNAPSHOTS = ("fp32", "fp16")
_ABOVE_ZERO = ("steps", "batch_size", "learning_rate", "grad_clip", "log_every", "checkpoint_every", "keep",
               "sample_steps", "accumulate", "metrics_samples")
_AT_MOST = {"batch_size": 2**24, "seed": 2**64 - 1, "keep": 10**6, "sample_steps": 10**6, "learning_rate": 1e30,
            "accumulate": 2**24, "metrics_samples": 10**9,
            **dict.fromkeys(("steps", "warmup", "log_every", "eval_every", "sample_every", "checkpoint_every",
                             "snapshots_every", "metrics_every"), 10**12)}
_NOT_NEGATIVE = ("warmup", "eval_every", "sample_every", "seed", "snapshots_every", "metrics_every")
_FRACTIONS = ("ema_decay",)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Optimiser, averages of the weights, logging and saving. Raises ArgumentError for a number out of range.

    The classes that `optimizer` and `decay` name have fields of their own, beside these (configs/sections.py).
    """

    steps: int = option(800_000, "updates of the weights in the whole run")
    batch_size: int = option(128, "examples in an update, over all processes")
    learning_rate: float = option(2e-4, "learning rate after the warm-up")
    warmup: int = option(5000, "steps over which the learning rate rises from 0")
    decay: str = option("constant", "learning rate after the warm-up: constant, cosine, inverse_sqrt or cooldown")
    grad_clip: float = option(1.0, "largest norm of the gradient")
    ema_decay: float = option(0.9999, "decay of the average of the weights")
    precision: str = option("auto", "precision of the arithmetic: auto, fp32, bf16 or fp16")
    memory_format: str = option("auto", "memory format of the weights: auto (the faster one), channels_last or contiguous")
    compile: bool = option(False, "compile the network with torch.compile")
    activation_checkpointing: bool = option(False, "compute activations twice, to use less memory")
    log_every: int = option(100, "steps between lines of the log")
    eval_every: int = option(5000, "steps between evaluations on held-out data; 0: never")
    sample_every: int = option(10_000, "steps between previews in TensorBoard; 0: never")
    sample_steps: int = option(100, "steps of Euler-Maruyama for a preview")
    checkpoint_every: int = option(5000, "steps between checkpoints")
    keep: int = option(2, "how many of the newest checkpoints are kept")
    seed: int = option(0, "seed of the initial weights, batches, times and noise")
    on_nonfinite: str = option("stop", "a step whose gradient is not finite: stop, the step before it saved; or skip it")
    keep_best: str = option("held_out_loss", "the figure whose lowest keeps its checkpoint (max:NAME: whose highest); none: "
                            "no figure")
    optimizer: str = option("adam", "optimiser: adam, adamw, radam, nadam or sgd")
    accumulate: int = option(1, "parts of a batch that are computed one after the other, to use less memory")
    averages: str = option("", "more averages of the weights, by decay or by relative width, such as 0.999,power0.1")
    snapshots_every: int = option(0, "steps between snapshots of the power averages, for others afterwards; 0: none")
    snapshots_precision: str = option("fp32", "precision of the snapshots: fp32, or fp16 in half of the space")
    log_groups: bool = option(False, "log the gradient's norm of each top-level part of the network")
    workers: int = option(-1, "processes that read examples which are not in memory; 0: a thread, -1: chosen by the machine")
    trackers: str = option("tensorboard", "where figures go beside stats.jsonl: tensorboard, wandb, both or none")
    metrics_every: int = option(0, "steps between figures of samples, and bits/dim; 0: never")
    metrics: str = option("", "those figures, such as fid,kid,bits_per_dim; by default those of samples that fit the data")
    metrics_samples: int = option(1000, "how many samples, and at most how many held-out examples, they are of")
    sharding: str = option("none", "under torchrun: none (each process holds the whole network, DDP) or fsdp (its share)")
    sharded_saves: bool = option(False, "with sharding fsdp: each process writes its share of a checkpoint")

    def __post_init__(self) -> None:
        for names, allowed, text in ((_ABOVE_ZERO, lambda v: 0 < v < float("inf"), "be above 0"),
                                     (_NOT_NEGATIVE, lambda v: v >= 0, "not be negative"),
                                     (_FRACTIONS, lambda v: 0 <= v < 1, "lie in [0, 1)")):
            for name in names:
                if not allowed(getattr(self, name)):
                    raise ArgumentError(f"{name} must {text}, got {getattr(self, name)}", name)
        for name, most in _AT_MOST.items():
            if getattr(self, name) > most:
                raise ArgumentError(f"{name} must be at most {most}, got {getattr(self, name)}", name)
        for name, words in (("memory_format", MEMORY_FORMATS), ("snapshots_precision", SNAPSHOTS),
                            ("on_nonfinite", ON_NONFINITE), ("sharding", SHARDINGS)):
            if getattr(self, name) not in words:
                raise ArgumentError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(words)}", name)
        if self.batch_size % self.accumulate:
            raise ArgumentError(f"batch_size={self.batch_size} must be divisible by accumulate={self.accumulate}",
                                "batch_size", "accumulate")
        powers = [name for name in averages_of(self.averages) if name.startswith("power")]
        if self.snapshots_every and not powers:
            raise ArgumentError("snapshots_every needs averages with a power function, such as averages=power0.05,power0.1",
                                "snapshots_every", "averages")
        if not -1 <= self.workers <= MOST_WORKERS:
            raise ArgumentError(f"workers must lie in 0 .. {MOST_WORKERS}, or be -1, got {self.workers}", "workers")
        if self.sharded_saves and self.sharding == "none":
            raise ArgumentError("sharded_saves needs sharding fsdp; with none every process holds the whole network",
                                "sharded_saves", "sharding")
        names_of(self.trackers, "trackers", TRACKERS)
        names_of(self.metrics, "metrics")


def names_of(text: str, field: str, words: Sequence[str] = ()) -> list[str]:
    """The words of a field that holds several with commas between them, none of "" and "none"; ArgumentError for others.

    words  those that are allowed; empty: all
    """
    found = [] if text in ("", "none") else [word.strip() for word in text.split(",")]
    for word in found:
        if not word or found.count(word) > 1 or (words and word not in words):
            allowed = f"; choose from {', '.join(words)}" if words else ""
            raise ArgumentError(f"{field} must be different words with commas between them, got {text!r}{allowed}", field)
    return found
