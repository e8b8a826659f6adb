"""AtomicCSVLogger: a metrics.csv that no kill shortens."""

import csv

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from datamodules.storage.files import atomic_path


class AtomicCSVLogger(CSVLogger):
    """Lightning's, but where a new column makes it write the file again, it renames in place of writing over it."""

    @property
    def experiment(self) -> ExperimentWriter:
        """The writer."""
        writer = super().experiment
        if isinstance(writer, ExperimentWriter):  # not so on the other ranks
            writer.__class__ = _Writer
        return writer


class _Writer(ExperimentWriter):
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        with (
            atomic_path(self.metrics_file_path) as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)
