"""Query lists: what they are, their files, and how they are opened for training."""

from typing import TYPE_CHECKING

from retriever.on_demand import import_when_used

if TYPE_CHECKING:
    from datamodules.query_lists.files import read_metadata, read_query_lists, write_query_lists
    from datamodules.query_lists.opened import open_query_lists
    from datamodules.query_lists.plain_texts import open_list_file
    from datamodules.query_lists.query_list import SCHEMA, QueryList, QueryLists, ragged_take
else:
    __getattr__ = import_when_used(__name__)
