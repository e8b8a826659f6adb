"""The real thing: all-MiniLM-L6-v2 on SciFact gives the published figure before it is trained.

``make scifact`` takes all 5,183 passages, for minutes; the other test takes 125, half of them judged relevant.
"""

import json
import os

import pytest

from datamodules.corpus import SHIPPED
from datamodules.query_lists import read_query_lists, write_query_lists
from datamodules.small_corpus import cut_data_set
from experiments.training.train import run_experiment
from helpers.runs import config_of

pytestmark = pytest.mark.slow


def trained(folder, *overrides):
    """A step with the quick start's encoder and settings, measured before and behind it."""
    once = ["trainer.max_steps=1", "trainer.val_check_interval=1", "trainer.limit_train_batches=1"]
    small = ["logger=csv", "save_checkpoints=false", "export=false", f"output_dir={folder}"]
    config = config_of("+exp=scifact/objectives", "module=distillation", "name=real", *once, *small, *overrides)
    results = run_experiment(config, folder / "run")
    return results, next(iter(results["datasets"].values()))


@pytest.mark.timeout(3600)
@pytest.mark.skipif("WHOLE_SCIFACT" not in os.environ, reason="make scifact")
def test_quick_start_begins_at_the_published_figure(tmp_path):
    results, figures = trained(tmp_path)
    # published 0.6451 (MTEB result files); measured 0.64508, Recall@100 0.925
    assert figures["ndcg@10"]["base"] == pytest.approx(0.64508, abs=2e-5)
    assert figures["recall@100"]["base"] == pytest.approx(0.925, abs=1e-5)
    assert results["data"]["dev_lists"] == 535 and figures["ndcg@10"]["last"] != figures["ndcg@10"]["base"]
    per_query = json.loads((tmp_path / "run" / "per_query" / "scifact" / "step-000000.json").read_text())["ndcg@10"]
    assert len(per_query) == 300


def test_quick_starts_encoder_has_the_figures_of_sentence_transformers(tmp_path):
    counts = cut_data_set(SHIPPED / "scifact", tmp_path / "scifact-125", 125)
    assert counts == {"passages": 125, "test queries": 83, "train queries": 74}
    both_sides = ["module.train_passage_encoder=true", "data.batch_size=4", "data.list_length=5"]
    lists = [*read_query_lists(SHIPPED / "scifact" / "lists" / "human.dev.parquet")][:3]
    write_query_lists(tmp_path / "dev.parquet", lists, {"teacher": "as shipped"})
    few_dev = [f"data.dev=[{{path: {tmp_path}/dev.parquet, corpus: scifact}}]"]
    only = f"evaluation.datasets=[{{path: {tmp_path}/scifact-125}}]"
    _, figures = trained(tmp_path, *both_sides, *few_dev, only)
    # measured with sentence-transformers 6.0 and pytrec_eval on the same 125 passages
    assert figures["ndcg@10"]["base"] == pytest.approx(0.90930, abs=2e-5)
    assert figures["recall@100"]["base"] == 1
    assert figures["ndcg@10"]["last"] != figures["ndcg@10"]["base"]
