"""What happens beside training: BEIR evaluation, diagnostics, stopping, export and run records."""

from callbacks.evaluation.dense import DenseRanker
from callbacks.evaluation.evaluation import DenseEvaluation, Evaluation, RerankEvaluation
from callbacks.evaluation.evaluator import Evaluator
from callbacks.evaluation.history import History
from callbacks.evaluation.metrics import Metric, Metrics
from callbacks.evaluation.ranker import Ranker, Ranking
from callbacks.evaluation.reranking import CrossEncoderRanker
from callbacks.evaluation.sets import Reading, open_sets
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
    "CrossEncoderRanker",
    "DenseEvaluation",
    "DenseRanker",
    "Diagnostics",
    "Evaluation",
    "Evaluator",
    "ExportBest",
    "GracefulTermination",
    "History",
    "Metric",
    "Metrics",
    "PruneRun",
    "QueryRecord",
    "Ranker",
    "Ranking",
    "Reading",
    "RerankEvaluation",
    "RunRecord",
    "StepSeeds",
    "StopWhenNoneImproves",
    "WandbReport",
    "open_sets",
]
