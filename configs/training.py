"""The fields of a config's section `training` that every objective shares."""

from dataclasses import dataclass

from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import option

DECAYS = ("constant", "cosine")
SHARDINGS = ("none", "fsdp")
MEMORY_FORMATS = ("auto", "channels_last", "contiguous")
_ABOVE_ZERO = ("steps", "batch_size", "learning_rate", "adam_eps", "grad_clip", "log_every", "checkpoint_every", "keep",
               "sample_steps")
_NOT_NEGATIVE = ("warmup", "eval_every", "sample_every", "seed")
_FRACTIONS = ("beta1", "beta2", "ema_decay")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Optimiser, average of the weights, logging and saving. Raises ArgumentError for a number out of range."""

    steps: int = option(800_000, "updates of the weights in the whole run")
    batch_size: int = option(128, "examples in an update, over all processes")
    learning_rate: float = option(2e-4, "Adam's learning rate after the warm-up")
    beta1: float = option(0.9, "Adam's decay of the mean of gradients")
    beta2: float = option(0.999, "Adam's decay of the mean of squared gradients")
    adam_eps: float = option(1e-8, "Adam's epsilon")
    warmup: int = option(5000, "steps over which the learning rate rises from 0")
    decay: str = option("constant", "learning rate after the warm-up: constant, or cosine to 0 at the last step")
    grad_clip: float = option(1.0, "largest norm of the gradient")
    ema_decay: float = option(0.9999, "decay of the average of the weights")
    precision: str = option("auto", "precision of the arithmetic: auto, fp32 or bf16")
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
    sharding: str = option("none", "under torchrun: none (each process holds the whole network, DDP) or fsdp (its share)")
    sharded_saves: bool = option(False, "with sharding fsdp: each process writes its share of a checkpoint")

    def __post_init__(self) -> None:
        for names, allowed, text in ((_ABOVE_ZERO, lambda v: 0 < v < float("inf"), "be above 0"),
                                     (_NOT_NEGATIVE, lambda v: v >= 0, "not be negative"),
                                     (_FRACTIONS, lambda v: 0 <= v < 1, "lie in [0, 1)")):
            for name in names:
                if not allowed(getattr(self, name)):
                    raise ArgumentError(f"{name} must {text}, got {getattr(self, name)}", name)
        for name, words in (("decay", DECAYS), ("memory_format", MEMORY_FORMATS), ("sharding", SHARDINGS)):
            if getattr(self, name) not in words:
                raise ArgumentError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(words)}", name)
        if self.sharded_saves and self.sharding == "none":
            raise ArgumentError("sharded_saves needs sharding fsdp; with none every process holds the whole network",
                                "sharded_saves", "sharding")
