"""ThreadedLoader: batches that are made ahead in threads."""

from collections.abc import Iterator

from torch.utils.data import DataLoader

from datamodules.batch_sampler import BatchSampler
from datamodules.batches import ListBatches
from datamodules.storage.made_ahead import made_ahead
from retriever.batch import RetrievalBatch


class ThreadedLoader(DataLoader):
    """Makes batches ahead in threads.

    torch's worker processes share semaphores and pipes with the run: one that is killed (by a machine that is short of
    memory) may keep what the run waits for. And threads begin with the first batch that is asked for: Lightning makes
    the iterator before it names the epoch, and under FSDP before it reads a checkpoint.

    Args:
        dataset: makes the batch of a draw.
        sampler: draws.
        threads: how many make batches ahead; 0 makes each when it is asked for.
    """

    def __init__(self, dataset: ListBatches, sampler: BatchSampler, threads: int) -> None:
        super().__init__(dataset, sampler=sampler, batch_size=None)
        self.threads = threads

    def __iter__(self) -> Iterator[RetrievalBatch]:
        if self.threads:
            yield from made_ahead(self.dataset.__getitem__, self.sampler, self.threads)
        else:
            yield from super().__iter__()
