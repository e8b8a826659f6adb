"""A guide's embeddings: encoded once, by whatever encoder is named, and handed to the objective with each batch."""

import lightning as L
import numpy as np
import pytest
from hydra.utils import instantiate

from datamodules.caches import embed
from experiments.settings.checks import check
from experiments.settings.without_effect import OF_RUN
from experiments.training.train import run_experiment
from helpers.runs import config_of
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture
def guided(small_run, tiny_model):
    """A run whose guide is the tiny model with another pooling and prompt, by a preset's settings."""
    guide = ["+encoder@data.guide=minilm", f"data.guide.model={tiny_model}", "data.guide.pooling=cls"]
    return [*small_run, "module=infonce_guided", *guide, "data.guide.query_prompt='query: '"]


def test_batches_hold_the_guides_embeddings(guided, tiny_model):
    config = config_of(*guided)
    check(config)
    module = instantiate(config.module, encoder=instantiate(config.encoder))
    data = instantiate(config.data, encoder=module.encoder)
    data.trainer, data.needs = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), module.needs
    data.setup()
    guide = TextEncoder.from_pretrained(str(tiny_model), pooling="cls", query_prompt="query: ")
    passages = embed(guide.tokenize(data._train[0].corpus.passages.to_pylist(), "passage"), guide, 4096)
    for loader, source in ((data.train_dataloader(), data._train[0]), (data.val_dataloader(), data._dev[0])):
        batch = next(iter(loader))
        queries = embed(guide.tokenize(source.lists.queries.to_pylist(), "query"), guide, 4096)
        by_query = dict(zip(source.lists.query_ids.to_pylist(), queries, strict=True))
        assert np.allclose(batch.guide_passages.numpy(), passages[batch.passage_keys.numpy()], atol=1e-5)
        assert np.allclose(batch.guide_queries.numpy(), [by_query[q] for q in batch.query_ids], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["+encoder@data.guide=cross_minilm"], r"data.guide._target_ is retriever.cross_encoder.* single texts"),
        (["data.guide={}"], "data.guide names no model"),
        (["data.guide={model: here, poling: cls}"], "data.guide: the setting is 'poling'.*pooling"),
        (["data.guide={model: here, pooling: max}"], "data.guide.pooling is 'max'"),
        (["criterion=dev/lss"], "dev/lss"),
    ],
)
def test_what_is_wrong_with_a_guide_is_refused_before_anything_is_loaded(small_run, options, said):
    with pytest.raises(InputError, match=said):
        check(config_of(*small_run, "module=infonce_guided", *options))


def test_another_guide_leaves_out_other_negatives(guided, small_run, tmp_path):
    own = [option for option in guided if "data.guide" not in option]
    figures = {}
    for name, options in {"other": guided, "own": own, "none": [*small_run, "module=infonce_conventional"]}.items():
        run_experiment(config_of(*options, "export=false"), tmp_path / name)
        figures[name] = (tmp_path / name / "metrics.csv").read_text()
    assert len(set(figures.values())) == 3


def test_a_guide_that_nothing_reads_is_told_of(guided, small_run):
    is_idle, why = OF_RUN["data.guide"]
    assert not is_idle(config_of(*guided)) and is_idle(config_of(*small_run)) and "positive_aware is not guide" in why
