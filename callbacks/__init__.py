"""What happens beside training: BEIR evaluation, diagnostics, stopping, export and run records."""

from callbacks.atomic_checkpoints import AtomicCheckpoints
from callbacks.beir_evaluation import BeirEvaluation
from callbacks.diagnostics import Diagnostics
from callbacks.ending import EndAtSigterm
from callbacks.export import ExportBest
from callbacks.pruning import PruneRun
from callbacks.query_record import QueryRecord
from callbacks.rerank_evaluation import RerankEvaluation
from callbacks.run_record import RunRecord
from callbacks.step_seeds import StepSeeds
from callbacks.stopping import StopWhenNoneImproves
from callbacks.wandb_report import WandbReport
from callbacks.whole_csv import WholeCsvLogger

__all__ = [
    "AtomicCheckpoints",
    "BeirEvaluation",
    "Diagnostics",
    "EndAtSigterm",
    "ExportBest",
    "PruneRun",
    "QueryRecord",
    "RerankEvaluation",
    "RunRecord",
    "StepSeeds",
    "StopWhenNoneImproves",
    "WandbReport",
    "WholeCsvLogger",
]
