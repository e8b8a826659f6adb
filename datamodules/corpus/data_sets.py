"""Where a data set is: a folder, shipped with the project, or downloaded by its name."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from datamodules.corpus.by_name import folder_of_source, is_source_name, place_of_source
from datamodules.storage.archives import BEIR, download_beir
from datamodules.storage.files import is_file, is_folder
from retriever.errors import InputError, did_you_mean, shown

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
    require_dataset(name, data_dir)
    folder = _on_disk(name, data_dir)
    if folder is None and is_source_name(str(name)):
        return folder_of_source(str(name), data_dir)
    if folder is None:
        first, *inner = Path(name).parts
        folder = download_beir(first, data_dir).joinpath(*inner)  # cqadupstack/android, a part
    if not is_folder(folder):
        raise _unknown(name, data_dir)
    return folder


def dataset_on_disk(name: str | Path, data_dir: str | Path = "data") -> Path | None:
    """Give the folder of :func:`find_dataset` where it is there already; None where it would have to be fetched."""
    source = place_of_source(str(name), data_dir) if is_source_name(str(name)) else None
    return _on_disk(name, data_dir) or (source if source is not None and is_folder(source) else None)


def find_datasets(names: Iterable[str], data_dir: str | Path = "data") -> None:
    """Find several, so that all are there before the first is read.

    Raises:
        InputError: as :func:`find_dataset`, with the names of all that cannot be had.
    """
    errors: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            find_dataset(name, data_dir)
        except InputError as error:
            errors[name] = str(error)
    if errors:
        first, *others = errors
        raise InputError(errors[first] + (f" Nor can these be had: {', '.join(others)}." if others else ""))


def require_dataset(name: str | Path, data_dir: str | Path = "data", sets: Sequence[str] = ()) -> None:
    """Raise the InputError of :func:`find_dataset` for what can be no data set; nothing is downloaded.

    Args:
        name: of :func:`find_dataset`.
        data_dir: see there.
        sets: names of several that are understood in its place, for the message.
    """
    known = is_source_name(str(name)) or Path(name).parts[:1] in [(known,) for known in BEIR_NAMES]
    if not known and _on_disk(name, data_dir) is None:
        raise _unknown(name, data_dir, sets)


def _on_disk(name: str | Path, data_dir: str | Path) -> Path | None:
    folders = (Path(name), SHIPPED / name, Path(data_dir) / name)
    return next((folder for folder in folders if is_folder(folder)), None)


def _unknown(name: str | Path, data_dir: str | Path, sets: Sequence[str] = ()) -> InputError:
    names = sorted({*BEIR_NAMES, *(path.parent.name for path in SHIPPED.glob("*/qrels")), *sets})
    return InputError(
        f"There is no data set {shown(str(name))}: it is no folder, none in {data_dir}, and no name. Names are "
        f"{', '.join(names)}; others are ir_datasets:NAME and hub:OWNER/NAME.{did_you_mean(name, names)}"
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
