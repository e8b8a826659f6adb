"""Where a data set is: a folder, shipped with the project, or downloaded by its name."""

from pathlib import Path

from datamodules.corpus.by_name import folder_of_source, is_source_name
from datamodules.storage.archives import BEIR, download_beir
from datamodules.storage.files import is_file, is_folder
from retriever.errors import InputError, shown

SHIPPED = Path(__file__).parents[1] / "data"
BEIR_NAMES = list(BEIR)


def find_dataset(name: str | Path, data_dir: str | Path = "data") -> Path:
    """Find a data set's folder: a path, one that is shipped, one in ``data_dir``, or a name to download.

    Args:
        name: a path, a BEIR name, ``ir_datasets:NAME`` or ``hub:OWNER/NAME``.
        data_dir: where downloaded sets lie.

    Raises:
        InputError: none of these, or the download failed.
    """
    for folder in (Path(name), SHIPPED / name, Path(data_dir) / name):
        if is_folder(folder):
            return folder
    if is_source_name(str(name)):
        return folder_of_source(str(name), data_dir)
    first, *inner = Path(name).parts or ("",)
    if first in BEIR_NAMES:
        folder = download_beir(first, data_dir).joinpath(*inner)  # cqadupstack/android, a part
        if is_folder(folder):
            return folder
    raise InputError(
        f"There is no data set {shown(str(name))}: it is no folder, none in {data_dir}, not shipped, and no BEIR "
        f"name. BEIR names are {', '.join(BEIR_NAMES)}; others are ir_datasets:NAME and hub:OWNER/NAME."
    )


def find_file(path: str | Path) -> Path:
    """Find a file by its path or, where there is none, among the shipped data.

    Raises:
        InputError: neither is there.
    """
    for candidate in (Path(path), SHIPPED / path):
        if is_file(candidate):
            return candidate
    if is_folder(path):
        raise InputError(f"{path}: a folder, where a file is expected.")
    shipped = sorted(str(p.relative_to(SHIPPED)) for p in SHIPPED.glob("*/lists/*.parquet"))
    raise InputError(f"{path}: no such file, and none of the shipped ones ({', '.join(shipped) or 'none'}).")
