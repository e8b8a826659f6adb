"""What is trained on and evaluated on: corpora, query lists, batches, and the pipeline that makes query lists."""

from datamodules.datamodule import QueryListDataModule
