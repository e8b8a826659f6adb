"""What is trained on and evaluated on: corpora, query lists, batches, and the pipeline that makes query lists."""

from typing import TYPE_CHECKING

from retriever.on_demand import import_when_used

if TYPE_CHECKING:
    from datamodules.datamodule import QueryListDataModule
else:
    __getattr__ = import_when_used(__name__)
