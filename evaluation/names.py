"""Names of files that say with which settings their content was made, so that two settings never share a name.

    auto.npz    auto_steps50.npz    dpm_solver++_steps10_order3_seed1.npz    ode_rtol0.001_bf16.npz

An option appears if it differs from its default, in the order of the class's fields. What a name may not hold (a path, a
long list) is there by the first digits of its SHA-256.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from scorefield.numerics.text import printable
from scorefield.samplers import EVERY, Sampler

BATCH_SIZE = 128  # the default, which a name does not say
LONGEST = 40      # bytes of a value in a name
MOST = 200        # bytes of a whole name; systems of files take 255, of which a temporary file needs some


def stem_of_samples(name: str, sampler: Sampler, guide: str = "", *, seed: int = 0, ema: bool | str = True,
                    precision: str = "fp32", step: int | None = None, batch_size: int = BATCH_SIZE) -> str:
    """The name, without a suffix, of the files of samples that were drawn with these settings.

        stem_of_samples("auto", make_sampler("auto", steps=50), seed=3)      # "auto_steps50_seed3"

    name   of the sampler on the registry
    guide  what the labels and the guidance add (`Guide.suffix`)
    step   of the checkpoint, where it is not the newest of its run
    batch_size  in which they are drawn, which goes on only in the same; adaptive solvers choose their steps by it
    """
    options = {} if name not in EVERY else changed(sampler, without=("points",))
    return whole(name + suffix_of(options) + guide + suffix_of_drawing(seed, ema, precision, step, batch_size))


def suffix_of_drawing(seed: int, ema: bool | str, precision: str, step: int | None = None,
                      batch_size: int = BATCH_SIZE) -> str:
    """What a name says of how samples are drawn, beside the sampler and the guide: _seed3_raw_bf16."""
    rest = ({"seed": seed} if seed else {}) | ({"batch_size": batch_size} if batch_size != BATCH_SIZE else {})
    words = [*words_of_weights(ema), *([] if precision == "fp32" else [precision]),
             *([] if step is None else [f"step{step:08d}"])]
    return suffix_of(rest) + "".join(f"_{word}" for word in words)


def words_of_weights(ema: bool | str) -> list[str]:
    """What a name says of the weights: nothing of the usual average, "raw", or the name of another average."""
    return [ema] if isinstance(ema, str) else [] if ema else ["raw"]


def changed(settings: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a dataclass whose values differ from their defaults."""
    return {field.name: value for field in fields(settings)
            if field.name not in without and (value := getattr(settings, field.name)) != field.default}


def suffix_of(options: Mapping[str, Any]) -> str:
    """What options add to a name: _steps20, _grid_logsnr, _denoise, _nocorrect, _grid_1-0.5-0.1."""
    return "".join(f"_{_word(name, value)}" for name, value in options.items())


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no{name}"
    if isinstance(value, int | float):
        return f"{name}{_number(value)}"
    text = "-".join(map(_number, value)) if isinstance(value, list | tuple) else str(value)
    return f"{name}_{short(text)}"


def _number(value: Any) -> str:
    return repr(value).removesuffix(".0")


def short(text: str) -> str:
    """The text if a file's name can hold it, else the first digits of its SHA-256."""
    fits = (len(os.fsencode(text)) <= LONGEST and text == printable(text) and not {"/", "\0", "\\"} & set(text)
            and not text.startswith("."))
    return text if fits else digits_of(text)


def whole(stem: str) -> str:
    """The stem if the systems of files take it with any suffix, else its beginning and digits of all of it."""
    return stem if len(os.fsencode(stem)) <= MOST else os.fsdecode(os.fsencode(stem)[:MOST - 9]) + "_" + digits_of(stem)


def digits_of(text: str) -> str:
    """The first 8 hexadecimal digits of the text's SHA-256. A text may hold bytes that are not UTF-8, as paths do."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def name_of_place(path: str | Path) -> str:
    """A name for a file or folder of a user: its stem, and digits of its absolute path, since two may have one stem."""
    place = Path(os.path.expanduser(path)).resolve()
    return f"{short(place.stem)}_{digits_of(str(place))}"


def with_suffix(stem: Path, suffix: str) -> Path:
    """The file beside others of that stem. A stem may hold points, as in guidance_2.5."""
    return stem.with_name(stem.name + suffix)
