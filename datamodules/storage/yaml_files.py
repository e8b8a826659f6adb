"""Reading YAML files, with what is wrong with them in words."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from datamodules.storage.files import require_file
from retriever.errors import InputError


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """The keys and values of a YAML file, interpolations as they stand.

    Args:
        path: the file.
        remedy: what to do about a damaged one, a sentence.

    Raises:
        InputError: the file is missing, cannot be read, has a key twice, or holds no keys and values.
    """
    require_file(path)
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())[:300]}). {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected keys and values. {remedy}")
    return content
