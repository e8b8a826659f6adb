"""The configuration files of `experiments.prepare`."""
