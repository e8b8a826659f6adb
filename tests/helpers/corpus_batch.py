"""A batch whose three queries are compared with six passages that stand for a corpus."""

import torch

from retriever.batch import EncodedBatch


def corpus_batch(scores=None, log_weights=None, hidden=None, dtype=torch.float32):
    """The same embeddings at every call; random numbers that are drawn next are the same, too."""
    torch.manual_seed(0)
    return EncodedBatch(
        queries=torch.nn.functional.normalize(torch.randn(3, 8, dtype=dtype), dim=1).requires_grad_(),
        passages=torch.nn.functional.normalize(torch.randn(6, 8, dtype=dtype), dim=1),
        passage_keys=torch.arange(6) * 10,
        list_index=torch.tensor([[0, 1], [2, 3], [4, 5]]),
        list_mask=torch.ones(3, 2, dtype=torch.bool),
        teacher_scores=torch.rand(3, 2),
        positive_index=torch.tensor([0, 3, 5]),
        labelled_keys=torch.tensor([[0, 50], [30, -1], [50, 20]]),
        all_scores=scores,
        log_weights=log_weights,
        hidden_keys=hidden,
    )
