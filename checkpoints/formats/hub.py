"""Repositories of the Hugging Face hub, fetched by huggingface_hub into its cache."""

import contextlib
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from scorefield.checkpoints.formats.diffusers_weights import chosen, is_whole, parts_of

PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
PARTS = ("unet", "transformer")      # the folder of the network in that of a pipeline
AUTOENCODER = "vae"                  # which is read beside a transformer
CONFIGS = ["config.json", "scheduler_config.json", "model_index.json", "scheduler/scheduler_config.json",
           *(f"{part}/config.json" for part in (*PARTS, AUTOENCODER))]
# Where there are no weights of diffusers, in the order of preference: if there is one kind, the next are not fetched.
WEIGHTS = ["*.safetensors", "*.pth", "*.bin"]
REFUSED = (401, 403, 404)      # no such repository or revision, a private one, or one with a licence to accept


def is_id(source: str) -> bool:
    """Whether `source` may be a repository: owner/name, or owner/name@revision."""
    return PATTERN.fullmatch(source) is not None


def _folders(files: Sequence[str]) -> list[str]:
    """The folders of a repository whose weights are read: unet/, or transformer/ with vae/, if they have a config, else the
    main one.
    """
    found = [part for part in PARTS if f"{part}/config.json" in files][:1]
    beside = [AUTOENCODER] if found == ["transformer"] and f"{AUTOENCODER}/config.json" in files else []
    return [*found, *beside] or ["."]


def _weights(files: Sequence[str]) -> list[str]:
    """The files of a repository that hold the one copy of the weights that is read, of each folder that is."""
    return [file for part in _folders(files) for file in _of_folder(files, part)]


def _of_folder(files: Sequence[str], part: str) -> list[str]:
    folder = PurePosixPath(part)
    there = [file for file in map(PurePosixPath, files) if file.parent == folder]
    names = [file.name for file in there]
    if (first := chosen(names)) is not None:
        return [str(folder / name) for name in parts_of(first, names)]
    kinds = ([str(file) for file in there if file.match(kind)] for kind in WEIGHTS)
    return next(filter(None, kinds), [])


def _is_whole(kept: list[str]) -> bool:
    """Whether files are all that hold the weights of a folder."""
    names = [PurePosixPath(file).name for file in kept]
    return bool(kept) and (chosen(names) is None or is_whole(names))


def fetch(source: str) -> Path:
    """The folder with the repository's configs and weights. Files that are cached already are not fetched again.

    Raises ValueError if the hub has no such repository or denies access to it; OSError if the repository is not cached and
    cannot be fetched, because the network, the server's answer or a place to write to is missing.
    """
    name, _, revision = source.partition("@")
    lead = f"there is no file or folder {source!r} here; "
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors
    except ImportError:
        raise ValueError(f"{lead}to fetch a model of that name from the Hugging Face hub, pip install huggingface_hub, or "
                         "download its files and give their folder") from None

    def snapshot(weights: list[str], cached: bool) -> Path:
        return Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=[*CONFIGS, *weights],
                                          local_files_only=cached))

    try:
        siblings = hub.model_info(name, revision=revision or None, timeout=20).siblings or []
        return snapshot(_weights([file.rfilename for file in siblings]), cached=False)
    except Exception as error:      # the HTTP libraries' errors have no base in common
        local = isinstance(error, errors.LocalEntryNotFoundError)      # hides the real error, which is its cause
        reason = error.__cause__ if local and error.__cause__ else error
    told = textwrap.shorten(str(reason), 250)
    status = getattr(getattr(reason, "response", None), "status_code", None)
    if status in REFUSED or isinstance(reason, errors.HFValidationError):
        raise ValueError(f"{lead}the Hugging Face hub has no such model, or you have no access to it ({told}); see "
                         f"https://huggingface.co/{name}")
    with contextlib.suppress(OSError):
        folder = snapshot([], cached=True)
        kept = [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
        if all(_is_whole(_of_folder(kept, part)) for part in _folders(kept)):
            return folder
    raise OSError(f"{lead}the model of that name on the Hugging Face hub is not complete in {constants.HF_HUB_CACHE} "
                  f"(HF_HUB_CACHE) and cannot be fetched: {type(reason).__name__}: {told}. Once fetched, it is kept there; "
                  "without a network, give the path of a copy")
