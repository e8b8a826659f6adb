"""What a run's configuration is asked before anything is loaded."""
