"""Many samples, in batches that processes share, that a killed command does not repeat, and that need not fit in memory.

Sample i depends on (seed, i), and on the others of its batch only under adaptive solvers, which choose their steps by batch.
So the batches are the same however many processes share them: process r of W takes the batches r, r + W, ... More samples of
the same settings go on where the last whole batch ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.data import Codec
from scorefield.evaluation.draw import draw_batch
from scorefield.evaluation.progress import Progress
from scorefield.evaluation.sample_set import Batch, SampleSet, Stored
from scorefield.models import ScoreModel
from scorefield.numerics import stopping
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.files import json_digest
from scorefield.numerics.processes import World
from scorefield.samplers import Result, Sampler


def generate(model: ScoreModel | Callable[[range], ScoreModel], sampler: Sampler, shape: tuple[int, ...], codec: Codec,
             n: int, seed: int = 0, batch_size: int = 128, device: torch.device | str = "cpu", folder: Path | None = None,
             world: World | None = None, label: Callable[[range], Tensor | None] | None = None, identity: Any = None,
             stored: Stored | None = None, first: Callable[[Result], None] | None = None, progress: bool = True,
             begun: SampleSet | None = None) -> SampleSet:
    """n samples as data, in batches.

        samples = generate(model, make_sampler("auto", steps=20), (1, 8, 8), codec, n=10_000, folder=Path("samples"),
                           identity="digest of the model's weights")
        for x, label in samples: ...

    model     the score model, or a function from the numbers of a batch's samples to their score model, as in `draw`
    shape     of one sample as the model sees it; `codec` decodes samples to data
    folder    where each batch is kept as it is done; None keeps them in memory
    world     this process among those that share the folder and the work. The first process waits for the others, and only
              its set is sure to be whole
    label     from the numbers of samples to their labels, to be kept with them
    identity  of the model and all else that the samples depend on, beside the arguments here; plain values. It is needed
              with a folder: what other models or settings have left there is never taken, but replaced
    stored    a finished set (`find_stored`), whose batches are taken if they are the same
    begun     the set as `begin` found it, in place of `stored`. Processes that share a folder need it: they must look for
              what is there before any of them works
    first     called with the result of the first batch, with its trajectory, if this process draws it now

    Raises ArithmeticError if samples are not finite, OSError if the disk is full, KeyboardInterrupt: each says what is kept.
    """
    if n < 1 or batch_size < 1:
        raise ArgumentError(f"the number of samples and batch_size must be at least 1, got {n} and {batch_size}", "n",
                            "batch_size")
    if folder is not None and identity is None:
        raise ArgumentError("samples in a folder need the identity of their model, so that those of another model are never "
                            "taken for them; give identity", "identity")
    world, key = world or World(), identity_of(sampler, shape, codec, seed, batch_size, device, identity)
    samples = begin(n, key, batch_size, folder, stored) if begun is None else begun
    done = sum(stop - start for start, stop in samples.known)
    try:
        with stopping.keeping(lambda: kept(samples)):
            if done and world.first and progress and done < n:
                print(f"continuing: {done} of {n} samples are drawn already", flush=True)
            _draw_missing(model, sampler, shape, codec, seed, device, samples, world, label, first, progress)
    except (ArithmeticError, OSError) as error:
        if said := kept(samples):
            raise saying(error, said) from error
        raise
    return samples


def begin(n: int, key: str, batch_size: int, folder: Path | None, stored: Stored | None) -> SampleSet:
    """A set of n samples of an identity (`identity_of`), with the batches that are there already."""
    units = [(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    samples = SampleSet(units, key, folder, stored if stored is not None and stored.identity == key else None)
    for unit in units:
        samples.has(unit)
    return samples


def identity_of(sampler: Sampler, shape: tuple[int, ...], codec: Codec, seed: int, batch_size: int,
                device: torch.device | str, identity: Any) -> str:
    """The identity of a set of samples: digits that change with anything that the samples depend on but their number."""
    of = [type(sampler).__name__, vars(sampler), list(shape), type(codec).__name__, vars(codec), seed, batch_size,
          torch.device(device).type, identity]
    return json_digest(of, repr)[:16]


def kept(samples: SampleSet) -> str:
    """What an interrupted command has kept, in words; "" if nothing."""
    done = sum(end - begin for begin, end in samples.units if samples.has((begin, end)))
    return "" if samples.folder is None or not done else (
        f"{done} of {len(samples)} samples are done and kept; the same command continues from there")


def _draw_missing(model: ScoreModel | Callable[[range], ScoreModel], sampler: Sampler, shape: tuple[int, ...], codec: Codec,
                  seed: int, device: torch.device | str, samples: SampleSet, world: World,
                  label: Callable[[range], Tensor | None] | None, first: Callable[[Result], None] | None,
                  progress: bool) -> None:
    """Draw this process's share of the missing batches; the first process then waits for the rest."""
    missing = [unit for unit in samples.units if unit not in samples.known]
    if not missing:
        return
    if samples.folder is not None:
        samples.folder.mkdir(parents=True, exist_ok=True)

    def of_batch(batch: range) -> ScoreModel:
        return model if isinstance(model, ScoreModel) else model(batch)

    own = sorted(set(samples.units[world.rank::world.size]) & set(missing))
    steps = len(sampler.times(of_batch(range(*missing[0])))) - 1
    with Progress(len(missing) * steps, "step", progress and world.first, "samples", len(samples)) as bar:
        for unit in own:
            numbers, start = range(*unit), time.perf_counter()
            keep = first is not None and unit[0] == 0
            result = draw_batch(of_batch(numbers), sampler, shape, numbers, seed, device, keep, bar.step)
            x = codec.decode(result.x).cpu()
            samples.add(unit, Batch(x, None if label is None else label(numbers), result.nfe, time.perf_counter() - start))
            if first is not None and keep:
                first(result)
            bar.show(lambda: _rows(samples))
        while world.first and (rest := [unit for unit in missing if not samples.has(unit)]):
            bar.at((len(missing) - len(rest)) * steps)
            bar.show(lambda: _rows(samples))
            time.sleep(0.2)


def _rows(samples: SampleSet) -> int:
    """How many samples are known to be there; those of other processes, too, once their files are."""
    return sum(end - begin for begin, end in samples.units
               if (begin, end) in samples.known or (samples.folder is not None and samples.path((begin, end)).exists()))


def saying(error: Exception, said: str) -> Exception:
    """The error with what is kept added to its message."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, f"{error.strerror}; {said}", error.filename)
    message = str(error).replace("; nothing was kept", "")
    return (OSError if isinstance(error, OSError) else ArithmeticError)(f"{message}; {said}")
