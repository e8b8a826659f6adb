"""What a run is about to do: the block that it prints, its steps, its time."""
