"""What python -m experiments.bench runs: the systems that are measured, each in a process of its own."""
