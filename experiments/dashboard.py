"""The dashboard of an ablation: python -m experiments.dashboard --entity ME --project P [--dataset NAME ...].

Saves a W&B workspace with the panels below, runs grouped by ablation and arm. --print shows them, and sends nothing.
--trackio FOLDER opens the runs of logger=trackio in a browser instead, on this machine alone.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.cli.errors import KindParser
from retriever.errors import InputError, installed_by

STEP = "trainer/global_step"
NAME = "Ablation"
METRICS = ("ndcg@10", "recall@100")  # of the bars


@dataclass(frozen=True)
class Panel:
    """What one panel shows.

    Attributes:
        kind: ``line`` (curves over optimiser steps), ``bar`` (of the summary) or ``table``.
        title: above it.
        keys: names that a run logs.
    """

    kind: str
    title: str
    keys: tuple[str, ...]


def sections(datasets: Sequence[str], metrics: Sequence[str] = METRICS) -> dict[str, list[Panel]]:
    """Section → panels, for runs that are evaluated on these data sets by these metrics, named as they are logged."""
    return {
        "nDCG@10 by optimiser step, and the base model's": [
            Panel("line", name, (f"val/{name}/ndcg@10", f"val/{name}/ndcg@10_base")) for name in datasets
        ]
        + [Panel("line", f"{name}, difference to the base model", (f"val/{name}/ndcg@10_delta",)) for name in datasets],
        "The step that the dev criterion chose": [
            Panel("bar", f"{name}: {metric}", tuple(f"{point}/{name}/{metric}" for point in ("base", "best", "last")))
            for name in datasets
            for metric in metrics
        ],
        "Dev lists": [
            Panel("line", "loss", ("dev/loss",)),
            Panel("line", "divergence from the teacher", ("dev/kl",)),
            Panel("line", "first as the teacher's", ("dev/top1_agreement",)),
            Panel("line", "nDCG@10, the teacher's scores as grades", ("dev/teacher_ndcg@10",)),
        ],
        "Training": [
            Panel("line", "loss", ("train/loss",)),
            Panel("line", "learning rate", ("lr-AdamW",)),
            Panel("line", "distinct passages, padding: shares", ("train/distinct_share", "train/padding_share")),
            Panel("bar", "seconds", ("wall_time_s",)),
            Panel("bar", "bytes at most", ("peak_memory_bytes",)),
        ],
        "Queries, the most hurt first": [Panel("table", name, (f"per_query/{name}",)) for name in datasets],
    }


def columns(datasets: Sequence[str]) -> list[str]:
    """Keys of the summary that stand beside the runs."""
    return [f"{point}/{name}/ndcg@10" for name in datasets for point in ("base", "best", "last")] + ["best/dev/loss"]


def workspace(entity: str, project: str, datasets: Sequence[str], metrics: Sequence[str] = METRICS) -> Any:
    """The workspace, as ``wandb_workspaces`` has it; nothing is sent before its ``save``.

    Raises:
        InputError: the package is not installed.
    """
    with installed_by("dashboard", "The dashboard"):
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=title, panels=[_panel(p) for p in panels], is_open=True)
            for title, panels in sections(datasets, metrics).items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Metric("Group"), expr.Metric("JobType")],
            pinned_columns=[f"summary:{key}" for key in columns(datasets)],
        ),
    )


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "line":
        return wr.LinePlot(title=panel.title, x=STEP, y=list(panel.keys))
    if panel.kind == "bar":
        return wr.BarPlot(title=panel.title, metrics=[wr.SummaryMetric(key) for key in panel.keys])
    return wr.WeavePanelSummaryTable(table_name=panel.keys[0])


def show_trackio(folder: Path, project: str, port: int | None = None) -> None:
    """Serve a folder's runs on this machine, and open them in a browser; returns when it is interrupted.

    Raises:
        InputError: trackio is not installed, or has no such project in the folder.
    """
    from experiments.cli.trackio_run import open_trackio

    found = sorted(path.stem for path in folder.glob("*.db"))
    if project not in found:
        raise InputError(f"{folder}: no runs of project {project!r} in it; it has {', '.join(found) or 'none'}.")
    open_trackio(folder).show(project, server_port=port, host="127.0.0.1", share=False, block_thread=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = KindParser(prog="python -m experiments.dashboard", description=__doc__.splitlines()[0])
    parser.add_argument("--entity", help="user or team")
    parser.add_argument("--project", default="retriever-distillation")
    parser.add_argument("--dataset", action="append", help="an evaluation set's name; may be given again (scifact)")
    parser.add_argument("--metric", action="append", help="of the bars, as it is logged; may be given again (ndcg@10)")
    parser.add_argument("--print", action="store_true", help="show the panels and send nothing")
    of_trackio = "open the runs that logger=trackio has left in this folder (outputs/trackio), until it is interrupted"
    parser.add_argument("--trackio", metavar="FOLDER", type=Path, help=of_trackio)
    parser.add_argument("--port", type=int, help="of trackio's page on this machine; default: a free one from 7860 on")
    options = parser.parse_args(arguments)
    datasets, metrics = options.dataset or ["scifact"], options.metric or METRICS
    if options.print:
        for title, panels in sections(datasets, metrics).items():
            print(title)
            for panel in panels:
                print(f"  {panel.kind:5}  {panel.title}: {', '.join(panel.keys)}")
        print(f"Columns beside the runs\n  {', '.join(columns(datasets))}")
        return
    try:
        if options.trackio is not None:
            show_trackio(options.trackio, options.project, options.port)
            return
        if options.entity is None:
            parser.error("--entity is needed to save the workspace; --print shows it, --trackio opens local runs")
        print(workspace(options.entity, options.project, datasets, metrics).save().url)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
