"""Other tools' files: query lists of CADET, sentence-transformers, FlagEmbedding, tevatron, TREC runs; and tables."""
