"""Several processes: sums and rows over all ranks, and sharded weights."""
