"""Query lists from and to the file layouts of other tools: CADET, sentence-transformers, FlagEmbedding, TREC runs."""

from datamodules.list_layouts.passages import CorpusPassages, NewCorpus, new_corpus
from datamodules.list_layouts.transfer import LAYOUTS, export_lists, import_lists

__all__ = ["LAYOUTS", "CorpusPassages", "NewCorpus", "export_lists", "import_lists", "new_corpus"]
