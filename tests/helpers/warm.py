"""What commands load late, and what libraries prepare at their first use: done once, before commands are forked."""

import importlib
import io
import logging
import os
from tempfile import TemporaryDirectory

import torch
from hydra.core.plugins import Plugins
from matplotlib.figure import Figure
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging as hub

from callbacks.reporting import run_record
from datamodules.text import languages
from experiments.settings.checks import check
from helpers.runs import config_of, prepare_config_of

LATE = (
    *("bm25s", "callbacks.reporting.diagnostics", "datamodules.pipeline.engines.choice", "hydra._internal.hydra"),
    *("experiments.adaptation.decide", "experiments.adaptation.estimate", "hydra._internal.logging_config"),
    *("pytrec_eval", "rensa", "requests", "retriever.teachers.run_fusion", "rich._emoji_codes"),
    *("torch.profiler._cupti_monitor", "torch.utils.serialization.config"),
    *("transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama"),
)
for name in LATE:
    importlib.import_module(name)
variables = dict(os.environ)
logging.disable()
hub.disable_progress_bar()  # it has a thread and a lock, which a command that is killed would take along
Plugins.instance()  # those of Hydra
for objective in ("infonce", "combined"):
    check(config_of("name=warm", f"module={objective}"))
prepare_config_of("corpus=scifact")
run_record._packages()
languages._identifier()
figure = Figure()
figure.subplots().set_title("fonts")
figure.savefig(io.BytesIO())
with TemporaryDirectory() as folder, torch.random.fork_rng():
    sizes = dict.fromkeys(
        ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"), 2
    )
    BertModel(BertConfig(**sizes), add_pooling_layer=False).save_pretrained(folder)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    model(torch.ones(1, 2, dtype=torch.long)).last_hidden_state.sum().backward()
    torch.optim.AdamW(model.parameters()).step()
torch.use_deterministic_algorithms(False)  # which the trainer that is checked has switched on
hub.enable_progress_bar()
logging.disable(logging.NOTSET)
os.environ.clear()
os.environ.update(variables)
