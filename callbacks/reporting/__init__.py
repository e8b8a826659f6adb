"""What a run keeps and shows: records, figures, model card, W&B."""
