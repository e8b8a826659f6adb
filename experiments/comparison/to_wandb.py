"""A comparison in W&B: its tables, and all its files as an artifact."""

from collections.abc import Sequence
from pathlib import Path

import wandb

from experiments.cli.wandb_run import start_run
from experiments.comparison.formats import records
from experiments.comparison.tables import Comparison


def log_comparison(comparison: Comparison, files: Sequence[Path], folder: Path, project: str) -> None:
    """Log to a W&B run of its own: online where a key is there and the server answers, else to an offline file.

    Args:
        comparison: its tables become one W&B table, a row for each arm of each, with unrounded figures.
        files: the artifact ``comparison`` of type ``comparison``.
        folder: W&B's files go below ``wandb`` in it.
        project: in W&B.
    """
    arguments = {
        "project": project,
        "name": f"comparison-{folder.absolute().name}",
        "job_type": "comparison",
        "config": {
            "runs": [str(run.folder) for runs in comparison.groups.values() for run in runs],
            "base": comparison.base,
            "at_home": comparison.differing is not None,
        },
    }
    with start_run(folder, arguments) as run:
        rows = records(comparison)
        run.log({"comparison": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})
        artifact = wandb.Artifact("comparison", type="comparison")
        for path in files:
            artifact.add_file(str(path))
        run.log_artifact(artifact)
