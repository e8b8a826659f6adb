"""What every dashboard gets of a run beside its curves: a summary, tables of queries, and what earlier parts logged."""

from collections.abc import Mapping
from typing import Any

import lightning as L

from callbacks.reporting.logged_before import logged_before
from callbacks.reporting.metric_tables import Row
from callbacks.reporting.run_record import RunRecord
from retriever.errors import InputError


class RunReport(L.Callback):
    """Remembers the dev figures of each step, and gives a dashboard what it shows of a finished run.

    Args:
        record: whose results are sent; it comes before this callback.
        per_query_rows: queries in a table, at most: as many of the most hurt as of the most helped; 0 makes no table.
        section: of the configuration, for messages.
    """

    def __init__(self, record: RunRecord, per_query_rows: int, section: str) -> None:
        if per_query_rows < 0:
            raise InputError(f"{section}.per_query_rows is {per_query_rows}; it must not be negative.")
        self.record, self.history = record, record.history
        self.per_query_rows = per_query_rows
        self.dev: dict[int, dict[str, float]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the dev figures of this step."""
        if not trainer.sanity_checking:
            figures = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("dev/")}
            self.dev[trainer.global_step] = figures

    def state_dict(self) -> dict[str, Any]:
        """The dev figures, so that a resumed run keeps them."""
        return {"dev": self.dev}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a resumed run's figures."""
        self.dev = state_dict["dev"]

    def logged_before(self, step: int) -> list[tuple[int, Row]]:
        """Step and figures of each row that this run's earlier parts logged before a step."""
        return logged_before(self.history.folder, step)

    def summary(self) -> dict[str, float]:
        """Give costs, and ``base/…``, ``best/…`` and ``last/…`` of every metric of evaluation sets and dev lists."""
        results = self.record.results
        summary = {name: results[name] for name in ("wall_time_s", "peak_memory_bytes", "optimiser_steps")}
        for point, step in results["steps"].items():
            summary[f"{point}/step"] = step
            summary |= {f"{point}/{name}": value for name, value in self.dev.get(step, {}).items()}
            for dataset, metrics in results["datasets"].items():
                summary |= {f"{point}/{dataset}/{metric}": values[point] for metric, values in metrics.items()}
        return summary

    def tables(self) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """Give ``per_query/<data set>`` → columns and rows; none where no rows are wanted."""
        sets = [opened.data for opened in self.history.sets] if self.per_query_rows else []
        columns = ["query_id", "query", "base", "best", "difference"]
        return {f"per_query/{data.name}": (columns, self._per_query(data.name, data.queries)) for data in sets}

    def _per_query(self, name: str, queries: Mapping[str, str]) -> list[list[Any]]:
        steps = self.record.results["steps"]
        base, best = (self.history.per_query(name, steps[point]) for point in ("base", "best"))
        rows: list[list[Any]] = sorted(
            ([query, queries[query], base[query], best[query], best[query] - base[query]] for query in best),
            key=lambda row: row[-1],
        )
        if len(rows) > self.per_query_rows:
            helped = self.per_query_rows // 2
            rows = rows[: self.per_query_rows - helped] + rows[len(rows) - helped :]
        return rows
