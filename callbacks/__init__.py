"""What happens beside training: BEIR evaluation, diagnostics, stopping, export and run records."""

from typing import TYPE_CHECKING

from retriever.on_demand import import_when_used

if TYPE_CHECKING:
    from callbacks.evaluation.dense import DenseRanker
    from callbacks.evaluation.evaluation import DenseEvaluation, Evaluation, RerankEvaluation
    from callbacks.evaluation.evaluator import Evaluator
    from callbacks.evaluation.history import History
    from callbacks.evaluation.metrics import Metric, Metrics
    from callbacks.evaluation.ranker import Ranker, Ranking
    from callbacks.evaluation.reranking import CrossEncoderRanker
    from callbacks.evaluation.sets import Reading, open_sets
    from callbacks.reliability.atomic_checkpoints import AtomicCheckpoints
    from callbacks.reporting.atomic_csv import AtomicCSVLogger
    from callbacks.reporting.diagnostics import Diagnostics
    from callbacks.reporting.run_record import RunRecord
    from callbacks.stopping import StopWhenNoneImproves
else:
    __getattr__ = import_when_used(__name__)
