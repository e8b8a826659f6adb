"""How far a student agrees with its teacher, on dev lists: at temperatures that are those of every run."""

from torch import Tensor

from retriever.batch import EncodedBatch
from retriever.diagnostics import top1_agreement
from retriever.losses.corpus import corpus_distillation
from retriever.losses.listwise import Scalar, listwise_distillation
from retriever.losses.query_blocks import in_query_blocks

# The paper's; what is measured at them compares runs, whatever the objective trains with.
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.05, 0.3
CORPUS_TEACHER_TEMPERATURE = 0.05  # of a fusion over a corpus, most of whose scores are 0


def agreement_with_teacher(batch: EncodedBatch, *, over_corpus: bool) -> dict[str, Tensor]:
    """Compute means over Q queries: ``kl`` and ``top1_agreement`` over their lists, and ``corpus_kl``.

    ``corpus_kl`` is there where the batch holds a teacher score of every passage of the corpus (or of a weighted draw).

    Args:
        batch: embeddings and teacher scores.
        over_corpus: whether the batch's passages stand for the corpus: they keep the base embeddings.

    Returns:
        Name → scalar, float32.
    """
    scores, teacher, mask = batch.list_scores, batch.teacher_scores, batch.list_mask
    found = {
        "kl": listwise_distillation(scores, teacher, mask, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE).mean(),
        "top1_agreement": top1_agreement(scores, teacher, mask).float().mean(),
    }
    if over_corpus and batch.all_scores is not None:
        found["corpus_kl"] = corpus_divergence(batch, STUDENT_TEMPERATURE, CORPUS_TEACHER_TEMPERATURE).mean()
    return found


def corpus_divergence(batch: EncodedBatch, temperature: Scalar, teacher_temperature: Scalar) -> Tensor:
    """Compute :func:`~retriever.losses.corpus.corpus_distillation` of a batch, what is hidden from a query left out.

    Args:
        batch: with a teacher score of every passage.
        temperature: τ_s > 0.
        teacher_temperature: τ_t > 0.

    Returns:
        [Q], float32 or better.
    """
    hidden = () if batch.hidden_keys is None else (batch.hidden_keys,)

    def of_block(queries: Tensor, teacher: Tensor, hidden: Tensor | None = None) -> Tensor:
        scores, log_weights = queries @ batch.passages.T, batch.weights_of(hidden)
        return corpus_distillation(scores, teacher, log_weights, temperature, teacher_temperature)

    return in_query_blocks(of_block, batch.queries, batch.all_scores, *hidden, numbers_per_query=len(batch.passages))
