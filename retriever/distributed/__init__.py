"""Ranks: sums and rows over all of them, and sharded weights."""
