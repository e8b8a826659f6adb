"""Batches of a draw of lists, for what is measured before training begins."""

from collections.abc import Iterator

import numpy as np

from datamodules.batch_sampler import Draw
from datamodules.batches import ListBatches
from retriever.batch import RetrievalBatch


def drawn_batches(dataset: ListBatches, lists: int, batch_size: int) -> Iterator[tuple[RetrievalBatch, list[str]]]:
    """Make batches of a draw of lists, the same at every call; each batch is of one corpus.

    Args:
        dataset: makes them; of its sources, lists that training never takes (weight 0) are left out.
        lists: at most so many are drawn, all with the same chance.
        batch_size: lists of a batch, at most.

    Yields:
        A batch, and the query type of each of its lists.
    """
    taken = [np.flatnonzero(source.weights > 0) for source in dataset.sources]
    places = np.concatenate([np.stack([np.full(len(at), n), at], 1) for n, at in enumerate(taken)])
    places = places[np.sort(np.random.default_rng(0).permutation(len(places))[:lists])]
    corpora = np.array([source.corpus.name for source in dataset.sources])[places[:, 0]]
    for corpus in dict.fromkeys(corpora.tolist()):
        inside = places[corpora == corpus]
        for number, part in enumerate(np.array_split(inside, -(-len(inside) // batch_size))):
            of_sources = [(n, part[part[:, 0] == n, 1]) for n in np.unique(part[:, 0])]
            types = [kind for n, at in of_sources for kind in dataset.sources[n].lists.query_types.take(at).to_pylist()]
            yield dataset[Draw(part, (0, 0, number, 0))], types
