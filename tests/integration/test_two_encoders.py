"""A query encoder trained for the passages of another encoder, of another width; and embeddings drawn to another's."""

from __future__ import annotations

import json
import shutil

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from callbacks.reporting.results import read_results
from datamodules.caches import embed
from experiments.comparison.runs import read_runs
from experiments.evaluate import evaluate
from experiments.mix import mix
from experiments.push import push
from experiments.settings.checks import check
from experiments.settings.first_checks import check_first
from experiments.training.train import make_module_and_data, run_experiment
from helpers.runs import config_of
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError

pytestmark = pytest.mark.slow
TEXTS = ["Vitamin D is a hormone.", "Short.", "Aspirin lowers the risk of heart disease in patients over fifty."]


@pytest.fixture(scope="module")
def wide_model(tiny_model, tmp_path_factory):
    """The tiny model's tokenizer with other weights, of 48 dimensions in place of 32."""
    folder = tmp_path_factory.mktemp("wide") / "wide_model"
    shutil.copytree(tiny_model, folder)
    torch.manual_seed(7)
    sizes = {"hidden_size": 48, "num_attention_heads": 2}
    BertModel(BertConfig.from_pretrained(tiny_model, **sizes), add_pooling_layer=False).save_pretrained(folder)
    pooling = {"embedding_dimension": 48, "pooling_mode": "mean"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="module")
def two(run_options, wide_model, tmp_path_factory):
    """Overrides for a run with passages of the wide model, and what is cached in one folder."""
    of_passages = ["encoder@passage_encoder=minilm", f"passage_encoder.model={wide_model}"]
    of_passages += ["passage_encoder.passage_max_length=50", "passage_encoder.passage_prompt='doc: '"]
    folder = tmp_path_factory.mktemp("two")
    slow = ["module.learning_rate=2e-4", "trainer.max_epochs=5"]
    return [*run_options, *of_passages, *slow, "module.train_passage_encoder=false", f"output_dir={folder}"]


@pytest.fixture(scope="module")
def regressed(two, tmp_path_factory):
    """The folder of a run that draws queries to the wide model's."""
    folder = tmp_path_factory.mktemp("runs") / "regressed"
    run_experiment(config_of(*two, "module=embedding_regression"), folder)
    return folder


def test_a_run_begins_at_the_least_squares_and_learns_from_there(two, regressed, wide_model):
    module, data = make_module_and_data(config_of(*two, "module=embedding_regression"))
    wide = TextEncoder.from_pretrained(str(wide_model), passage_prompt="doc: ", passage_max_length=50)
    assert module.encoder.dimension == wide.dimension == 48
    results = read_results(regressed)
    assert results["passage_encoder"] == str(wide_model) and results["passages_encoded"] == 0
    metrics = (regressed / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(metrics[0].split(","), row.split(","), strict=True)) for row in metrics[1:]]
    dev, train = ([float(row[name]) for row in rows if row[name]] for name in ("dev/loss", "train/loss"))
    assert dev[0] < 0.2  # 2 between directions that have nothing to do with each other
    assert np.mean(train[-4:]) < 0.9 * np.mean(train[:4])
    queries = TextEncoder.from_pretrained(str(regressed / "model"))
    assert (data.passage_encoder.spec, queries.dimension) == (wide.spec, 48)
    own, theirs = (embed(e.tokenize(TEXTS, "query"), e, 4096) for e in (queries, wide))
    assert (own * theirs).sum(1).min() > 0.7
    sentence = SentenceTransformer(str(regressed / "model"), device="cpu")
    np.testing.assert_allclose(own, sentence.encode_query(TEXTS), atol=1e-5)
    facts = json.loads((regressed / "environment.json").read_text())
    assert facts["passage_weights"] == wide.fingerprint() and facts["plan"]["passage_model"]["dimension"] == 48


def test_an_evaluation_and_the_card_know_the_passages_encoder(regressed, small_scifact, wide_model, tmp_path):
    from hydra import compose, initialize_config_dir

    from experiments.conf import CONF
    from experiments.evaluation.typed import as_overrides

    with initialize_config_dir(str(CONF), version_base="1.3"):
        typed = as_overrides([str(regressed), f"sets={small_scifact}", f"output_dir={tmp_path}"])
        config = compose("evaluate", [*typed, "trainer.accelerator=cpu"])
    [folder] = evaluate(config, tmp_path / "out")
    recorded, found = (read_results(f)["datasets"]["small"] for f in (regressed, folder))
    assert {m: v["best"] for m, v in found.items()} == {m: v["best"] for m, v in recorded.items()}
    card = (regressed / "model" / "README.md").read_text()
    assert "must be encoded with the unchanged wide_model**" in card and "projected by least squares" in card
    assert 'SentenceTransformer("wide_model", prompts={"document": "doc: "})' in card and "max_seq_length = 50" in card
    with pytest.raises(InputError, match="no base model to mix with"):
        mix([regressed], tmp_path / "mixed")


@pytest.mark.parametrize("module", ["infonce_corpus", "distillation_corpus", "combined"])
def test_other_objectives_train_the_queries_from_there(two, regressed, tmp_path, module):
    """A second stage: the regressed model is what it begins with, and its projection is not fitted again."""
    second = [option for option in two if not option.startswith("encoder.")]
    options = [*second, f"encoder.model={regressed / 'model'}", f"module={module}", "trainer.max_epochs=1"]
    results = run_experiment(config_of(*options, "criterion=dev/loss"), tmp_path)
    before = read_results(regressed)["datasets"]["small"]["ndcg@10"]["best"]
    assert results["datasets"]["small"]["ndcg@10"]["base"] == before
    first, now = (TextEncoder.from_pretrained(str(f / "model")).head[0].linear.weight for f in (regressed, tmp_path))
    assert 0 < (first - now).abs().max() < 0.1


def test_a_resumed_run_ends_as_an_undisturbed_one(two, tmp_path):
    from helpers.kills import killed_at

    adapters = "encoder.lora={r: 2, target_modules: [query]}"
    options = [*two, "module=embedding_regression", "encoder.trainable_layers=1", adapters]
    run_experiment(config_of(*options), tmp_path / "whole")
    with killed_at(5):
        run_experiment(config_of(*options), tmp_path / "cut")
    run_experiment(config_of(*options, f"resume={tmp_path / 'cut'}"), tmp_path / "cut")
    whole, cut = (torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("whole", "cut"))
    assert "encoder.head.0.linear.weight" in whole["state_dict"]
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, cut["state_dict"][name]), name
    with pytest.raises(InputError, match=r"begun with passage_encoder\.passage_max_length=50"):
        changed = ["passage_encoder.passage_max_length=40", f"resume={tmp_path / 'cut'}"]
        check(config_of(*options, *changed))


def test_a_guide_of_another_width_draws_plain_texts_and_passages(
    run_options, small_scifact, wide_model, texts, tmp_path
):
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"{text}\n" for text in texts[200:240]))
    typed = [f"data.train=[{{path: {file}, corpus: {small_scifact}}}]", f"output_dir={tmp_path}"]
    typed += ["+encoder@data.guide=minilm", f"data.guide.model={wide_model}"]
    options = [*run_options, *typed, "module=embedding_regression"]
    results = run_experiment(config_of(*options), tmp_path / "run")
    assert (
        results["passages_encoded"] > 0
        and str(file) in json.loads((tmp_path / "run" / "environment.json").read_text())["inputs"]
    )
    with pytest.raises(InputError, match="projected to its guide's dimensions"):
        mix([tmp_path / "run"], tmp_path / "mixed")
    with pytest.raises(InputError, match="plain texts, without candidates"):
        run_experiment(config_of(*options, "module=combined"), tmp_path / "refused")
    with pytest.raises(InputError, match=r"texts\.txt: plain texts were cut from no passage; say data\.sources=keep"):
        run_experiment(config_of(*options, "data.sources=hide"), tmp_path / "hidden")
    with pytest.raises(InputError, match=r"which are no query lists\. Share the model alone: leave out --lists"):
        push(tmp_path / "run", "someone/model", tmp_path / "shared", lists=True, private=False)
    short = run_experiment(config_of(*options, "+debug=fast"), tmp_path / "short")
    assert 0 < short["data"]["train_lists"] <= 8
    both = TextEncoder.from_pretrained(str(tmp_path / "run" / "model"))
    wide = TextEncoder.from_pretrained(str(wide_model))
    own, theirs = (embed(e.tokenize(TEXTS, "passage"), e, 4096) for e in (both, wide))
    assert (own * theirs).sum(1).min() > 0.7


FROZEN = "module.train_passage_encoder=false"
OTHER = "encoder@passage_encoder=minilm"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([OTHER], r"passage_encoder \(.*say module.train_passage_encoder=false"),
        ([OTHER, FROZEN, "passage_encoder.lora={r: 4}"], r"passage_encoder.lora is .* not trained"),
        ([OTHER, FROZEN, "passage_encoder.trainable_layers=1"], r"passage_encoder.trainable_layers is 1"),
        ([OTHER, FROZEN, "passage_encoder.pooling=max"], r"passage_encoder.pooling is 'max'"),
        (["passage_encoder=minilm"], r"passage_encoder is 'minilm'.* Say null, or give a mapping|passage_encoder"),
        (["encoder@passage_encoder=cross_minilm", FROZEN], r"passage_encoder._target_ is .*scores pairs"),
        (["module=reranker", OTHER], r"passage_encoder.*say module.train_passage_encoder=false"),
        (["module=embedding_regression"], "none is named"),
        (["module=embedding_regression", "+encoder@data.guide=minilm", OTHER, FROZEN], "leave data.guide out"),
        (["module=embedding_regression", "+encoder@data.guide=minilm", FROZEN], "or train both sides"),
    ],
)
def test_encoders_that_do_not_go_together_are_refused_before_anything_is_loaded(small_run, options, said):
    with pytest.raises(InputError, match=said):
        check(config_of(*small_run, *options))


def test_the_layer_is_fitted_to_the_passages_also_beside_a_guide(two, tiny_model, wide_model, tmp_path):
    guided = [*two, "module=infonce_guided", "+encoder@data.guide=minilm", f"data.guide.model={tiny_model}"]
    module, data = make_module_and_data(config_of(*guided, f"output_dir={tmp_path}"))
    data.trainer = L.Trainer(accelerator="cpu", logger=False)
    data.setup()
    queries, wide = data.train_lists[0].lists.queries.to_pylist()[:20], TextEncoder.from_pretrained(str(wide_model))
    fitted, theirs = (embed(e.tokenize(queries, "query"), e, 4096) for e in (module.encoder, wide))
    assert (fitted * theirs).sum(1).min() > 0.5


def test_a_guide_that_embeddings_are_drawn_to_stays(tiny_model, run_options, tmp_path):
    drawn = [
        *run_options,
        "module=embedding_regression",
        "+encoder@data.guide=minilm",
        f"data.guide.model={tiny_model}",
    ]
    (tmp_path / "begun").mkdir()
    OmegaConf.save(config_of(*drawn), tmp_path / "begun" / "config.yaml")
    check_first(config_of(*drawn, f"resume={tmp_path / 'begun'}"))
    with pytest.raises(InputError, match=r"begun with data\.guide\.query_max_length"):
        check_first(config_of(*drawn, "data.guide.query_max_length=7", f"resume={tmp_path / 'begun'}"))


def test_runs_beside_another_models_passages_have_a_base_of_their_own(regressed):
    run = read_runs({regressed: read_results(regressed)})[0]
    assert "passage_encoder" in run.encoder() and "guide" not in run.encoder()
