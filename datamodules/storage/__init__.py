"""Files: atomic, compressed, Parquet, memory-mapped columns, downloads. Nothing of retrieval."""
