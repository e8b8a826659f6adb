"""nDCG@10 on BEIR corpora while training."""
