"""Command lines: validation, redaction, repetition, sweeps, ranks, errors. Nothing of retrieval."""
