"""nDCG@10 without any of the evaluation callback's code but the scorer."""

from callbacks.evaluation.metrics import score_run
from datamodules.caches import embed
from retriever.search import exact_search


def ndcg_of(query_encoder, passage_encoder, data):
    """Mean nDCG@10 of an evaluation set; one encoder for the queries, one for the passages."""
    queries = embed(query_encoder.tokenize(list(data.queries.values()), "query"), query_encoder, 4096)
    passages = embed(passage_encoder.tokenize(data.corpus.passages.to_pylist(), "passage"), passage_encoder, 4096)
    scores, rows = exact_search(queries, passages, 100)
    ids = data.corpus.ids.to_pylist()
    run = {q: {ids[r]: float(s) for r, s in zip(rows[i], scores[i], strict=True)} for i, q in enumerate(data.queries)}
    return score_run(data.qrels, run)[0]["ndcg@10"]
