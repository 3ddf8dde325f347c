"""Repositories of the Hugging Face hub, fetched by huggingface_hub into its cache."""

import logging
import re
import textwrap
from pathlib import Path

PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def is_id(source: str) -> bool:
    """Whether `source` may be a repository: owner/name, or owner/name@revision."""
    return PATTERN.fullmatch(source) is not None


def fetch(source: str) -> Path:
    """The folder with the repository's configs and weights; of what is cached already nothing is fetched again.

    Raises OSError where the hub cannot be reached, ValueError where it has no such repository or lets nobody in.
    """
    name, _, revision = source.partition("@")
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise ValueError(f"fetching {source!r} needs huggingface_hub: pip install huggingface_hub; or download its files "
                         "and give their folder") from None
    weights = ["*.safetensors", "*.bin", "*.pth"]
    try:
        files = [file.rfilename for file in hub.model_info(name, revision=revision or None, timeout=20).siblings or []]
        weights = weights[:1] if any(file.endswith(".safetensors") for file in files) else weights[1:]
    except (HfHubHTTPError, hub.errors.HFValidationError) as error:
        raise ValueError(f"the Hugging Face hub gives nobody or not you a model {source!r} "
                         f"({textwrap.shorten(str(error), 150)}); see https://huggingface.co/{name}") from None
    except Exception:       # no network: what is cached will do. The HTTP libraries' errors have no base in common
        logging.getLogger(__name__).debug("no answer from the hub", exc_info=True)
    try:
        return Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=["*.json", *weights]))
    except Exception as error:
        raise OSError(f"there is no file or folder {source!r} here, and as a model of the Hugging Face hub it cannot be "
                      f"fetched: huggingface.co does not answer ({type(error).__name__}). With a network it is fetched "
                      "once and kept; without one, give the path of a copy") from None
