"""What `experiments.evaluate` evaluates: models that are named, sets, and published figures beside."""
