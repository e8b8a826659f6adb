"""The stages from a corpus to query lists, in the order in which they run."""
