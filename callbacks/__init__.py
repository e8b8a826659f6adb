"""What happens beside training: BEIR evaluation, diagnostics, stopping, export and run records."""

from callbacks.evaluation.beir_evaluation import BeirEvaluation
from callbacks.evaluation.rerank_evaluation import RerankEvaluation
from callbacks.pruning import PruneRun
from callbacks.reliability.atomic_checkpoints import AtomicCheckpoints
from callbacks.reliability.step_seeds import StepSeeds
from callbacks.reliability.termination import GracefulTermination
from callbacks.reporting.atomic_csv import AtomicCSVLogger
from callbacks.reporting.diagnostics import Diagnostics
from callbacks.reporting.export import ExportBest
from callbacks.reporting.query_record import QueryRecord
from callbacks.reporting.run_record import RunRecord
from callbacks.reporting.wandb_report import WandbReport
from callbacks.stopping import StopWhenNoneImproves

__all__ = [
    "AtomicCSVLogger",
    "AtomicCheckpoints",
    "BeirEvaluation",
    "Diagnostics",
    "ExportBest",
    "GracefulTermination",
    "PruneRun",
    "QueryRecord",
    "RerankEvaluation",
    "RunRecord",
    "StepSeeds",
    "StopWhenNoneImproves",
    "WandbReport",
]
