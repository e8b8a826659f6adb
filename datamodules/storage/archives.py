"""BEIR's data sets as zip archives: downloaded, checked and unpacked without leaving their folder."""

import hashlib
import shutil
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from datamodules.storage.compressed import MOST_TIMES, SMALL
from datamodules.storage.files import atomic_path, lock_beside
from retriever.errors import InputError, installed_by

_ADDRESS = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{}.zip"
# name → MD5 of its archive, as BEIR publishes them (README of github.com/beir-cellar/beir, table of data sets)
BEIR = {
    "arguana": "8ad3e3c2a5867cdced806d6503f29b99",
    "climate-fever": "8b66f0a9126c521bae2bde127b4dc99d",
    "cqadupstack": "4e41456d7df8ee7760a7f866133bda78",
    "dbpedia-entity": "c2a39eb420a3164af735795df012ac2c",
    "fever": "5a818580227bfb4b35bb6fa46d9b6c03",
    "fiqa": "17918ed23cd04fb15047f73e6c3bd9d9",
    "hotpotqa": "f412724f78b0d91183a0e86805e16114",
    "msmarco": "444067daf65d982533ea17ebd59501e4",
    "nfcorpus": "a89dba18a62ef92f7d323ec890a0d38d",
    "nq": "d4d3d2e48787a744b6f6e691ff534307",
    "quora": "18fb154900ba42a600f84b839c173167",
    "scidocs": "38121350fc3a4d2f48850f6aff52e4a9",
    "scifact": "5f7d1de60b170fc8027bb7898e2efca1",
    "trec-covid": "ce62140cb23feb9becf6270d0d1fe6d1",
    "webis-touche2020": "46f650ba5a527fc69e0a6521c5a23563",
}


def download_beir(name: str, data_dir: str | Path) -> Path:
    """Download and unpack a BEIR data set; its folder.

    An archive that lies in ``data_dir`` already is used, and stays. Processes that share the folder wait for each
    other.

    Args:
        name: one of ``BEIR``.
        data_dir: the folder of the data sets.

    Raises:
        InputError: the archive cannot be downloaded, is not the one that BEIR published, or would write elsewhere.
    """
    with installed_by("beir", f"Downloading the BEIR data set {name!r}"):
        from beir.util import download_url

    archive, folder = Path(data_dir) / f"{name}.zip", Path(data_dir) / name
    with lock_beside(folder):
        if folder.is_dir():
            return folder
        fetched = not archive.is_file()
        if fetched:
            try:
                with atomic_path(archive) as temporary:
                    download_url(_ADDRESS.format(name), str(temporary))
            except OSError as error:
                raise InputError(
                    f"The BEIR data set {name!r} is not on this machine and could not be downloaded "
                    f"({type(error).__name__}). Put its folder (corpus.jsonl, queries.jsonl, qrels/) at {folder}."
                ) from error
        check_md5(archive, BEIR[name])
        unpack(archive, name, folder)
        if fetched:  # one that was there before is the user's own
            archive.unlink()
    return folder


def check_md5(archive: Path, expected: str) -> None:
    """Refuse an archive with another checksum."""
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise InputError(
            f"{archive}: MD5 is {found}, and BEIR published {expected}: incomplete, or not that data set, so it is not "
            "unpacked. Delete it to download it anew."
        )


def unpack(archive: Path, name: str, folder: Path) -> None:
    """Unpack the folder ``name`` of a zip archive as ``folder``, whole or not at all.

    Raises:
        InputError: it is no zip archive, or incomplete; an entry is a link, or has a path that leads out of ``name``;
            all entries together are more than ``MOST_TIMES`` as large as the archive, or larger than the disk has room.
    """
    try:
        with zipfile.ZipFile(archive) as opened, TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as place:
            entries = opened.infolist()
            _check_entries(archive, name, entries)
            _check_size(archive, sum(entry.file_size for entry in entries), folder.parent)
            opened.extractall(place)
            if not (Path(place) / name).is_dir():
                raise InputError(f"{archive}: there is no folder {name!r} in it.")
            (Path(place) / name).rename(folder)
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{archive}: not a whole zip archive ({error}). Delete it to download it anew.") from error


def _check_entries(archive: Path, name: str, entries: Sequence[zipfile.ZipInfo]) -> None:
    for entry in entries:
        path = PurePosixPath(entry.filename)
        # the raw name, too: zipfile cuts it at a NUL, and another system reads backslashes and drives
        raw = entry.orig_filename
        inside = not path.is_absolute() and ".." not in path.parts and not any(c in raw for c in "\\:\0")
        if not inside or stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(
                f"{archive}: the entry {raw!r} is a link or leads out of the archive's folder. Nothing was unpacked; "
                "do not trust this file."
            )


def _check_size(archive: Path, size: int, folder: Path) -> None:
    packed, free = archive.stat().st_size, shutil.disk_usage(folder).free
    if size > max(SMALL, MOST_TIMES * packed):
        raise InputError(f"{archive}: its {packed:,} bytes would become {size:,}, which no text does. Not unpacked.")
    if size > free:
        raise InputError(f"{archive}: it needs {size:,} bytes, and {folder} has room for {free:,}. Make room.")
