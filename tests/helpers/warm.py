"""What commands load late, and what libraries prepare at their first use: done once, before commands are forked."""

import importlib
import io

from hydra.core.plugins import Plugins
from matplotlib.figure import Figure

from callbacks.reporting import run_record
from datamodules.pipeline import query_cleaning
from helpers.runs import config_of, prepare_config_of

LATE = (
    *("bm25s", "callbacks.reporting.diagnostics", "datamodules.pipeline.engines.choice", "hydra._internal.hydra"),
    *("pytrec_eval", "rensa", "requests", "retriever.teachers.run_fusion", "rich._emoji_codes"),
    *("transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama"),
)
for name in LATE:
    importlib.import_module(name)
Plugins.instance()  # those of Hydra
config_of()
prepare_config_of("corpus=scifact")
run_record._packages()
query_cleaning._identifier()
figure = Figure()
figure.subplots().set_title("fonts")
figure.savefig(io.BytesIO())
