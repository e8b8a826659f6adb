"""SHA-256 of files."""

import hashlib
from pathlib import Path

from retriever.errors import InputError


def file_sha256(path: Path) -> str:
    """Hash a file by SHA-256, hexadecimal.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Look at its permissions and its disk.") from error
