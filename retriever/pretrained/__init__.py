"""Where a named model's weights are, and how they are loaded."""
