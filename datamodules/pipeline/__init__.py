"""From a corpus to query lists: stages, engines, prompts."""
