"""From a folder of texts to a tuned model: what is there, what is done with it, and what came of it."""
