"""What experiments.compare is made of: reading runs, tables, formats, plots, the HTML page, W&B."""
