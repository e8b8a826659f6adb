"""Checkpoints, signals and seeds."""
