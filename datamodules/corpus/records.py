"""What corpus and query files have in common: where they are, and their ids."""

from pathlib import Path

from datamodules.formats.records import Columns, find_records
from datamodules.storage.compressed import ENDINGS
from datamodules.storage.files import is_folder
from retriever.errors import InputError, shown


def record_files(folder: Path, stem: str) -> list[Path]:
    """Find the file ``stem`` of a folder, or its parts.

    Raises:
        InputError: there is none.
    """
    paths = find_records(folder, stem)
    if not paths:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) if is_folder(folder) else ""
        raise InputError(
            f"{folder}: neither {stem}.jsonl nor {stem}.parquet, .arrow, .tsv or .csv in it (JSON Lines, TSV and CSV "
            f"also with {', '.join(ENDINGS)}), so this is no folder in BEIR's layout. In it: {inside or 'nothing'}."
        )
    return paths


def record_id(path: Path, number: int, record: dict, columns: Columns, seen: dict[str, int]) -> str:
    """Read the id of a record, and remember its line in ``seen``.

    Raises:
        InputError: no id, one that is no text or whole number, or one that was there before.
    """
    value = columns.id_of(record)
    if value is None or value == "":
        raise InputError(
            f"{path}:{number}: no {columns.id}. Every line needs one; this one has "
            f"{', '.join(map(repr, list(record)[:8])) or 'no key'}."
        )
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(f"{path}:{number}: the {columns.id} is {shown(value)}; expected a string or a whole number.")
    value = str(value)
    if not value.strip() or "\0" in value:  # trec_eval ends an id at NUL
        raise InputError(
            f"{path}:{number}: the {columns.id} is {shown(value)}; expected characters, and no NUL among them."
        )
    if value in seen:
        raise InputError(
            f"{path}:{number}: the {columns.id} {shown(value)} is already in line {seen[value]}"
            f"{'' if path.stem.startswith(('corpus', 'queries')) else ' of this part or one before'}. Ids must differ."
        )
    seen[value] = number
    return value
