"""The paper's experiment: its configurations beside its numbers, and the three commands in miniature."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from datamodules.corpus import load_corpus
from datamodules.query_lists import read_metadata, read_query_lists
from experiments import run as run_module
from experiments.evaluate import evaluate
from experiments.evaluation.typed import as_overrides
from experiments.settings.checks import check
from experiments.settings.first_checks import check_inputs
from experiments.training.train import run_experiment
from helpers.runs import CONF, error_of, prepare, prepare_config_of
from retriever.errors import InputError
from retriever.schedule import learning_rate_factor

pytestmark = pytest.mark.slow

# what the paper and its code state (arXiv 2505.19274)
PREPARED = {
    "generator.model": "meta-llama/Llama-3.1-8B-Instruct",
    "generator.sampling.temperature": 0.8,
    "generator.sampling.max_tokens": 50,
    "generator.sampling.min_tokens": 1,
    "generate.types": ["question", "claim", "title", "keywords", "web", "zero_shot"],
    "generate.max_characters": 2048,
    "generate.titles": False,
    "generate.shots_by_passage": True,
    "deduplicate.min_characters": 10,
    "deduplicate.ignore_digits": False,
    "sample.size": 100_000,
    "mine.depth": 100,
    "mine.candidates": 100,
    "mine.fusion": "reciprocal_rank",
    "mine.drop_duplicates": True,
    "mine.retrievers.bge_base.encoder.model": "BAAI/bge-base-en-v1.5",
    "mine.retrievers.gte_base.encoder.model": "Alibaba-NLP/gte-base-en-v1.5",
    "mine.retrievers.arctic_embed_m.encoder.model": "Snowflake/snowflake-arctic-embed-m-v1.5",
    "mine.retrievers.bm25": None,
    "mine.retrievers.dense": None,
    "teacher._target_": "retriever.teachers.t5.RankT5",
    "teacher.template": "Query: {query} Document: {passage}",
    "teacher.score_token": "<extra_id_10>",
    "teacher.max_length": 512,
    "teacher.dtype": "auto",  # bfloat16 on a GPU
    "filter.consistency_rank": 20,
    "filter.teacher_first": True,
    "filter.min_length": 20,
    "filter.min_top_quantile": 0.25,
    "filter.keep": 20,
    "split.dev_fraction": 0.1,
    "students.e5_base_unsupervised": "bge_base",
}
TRAINED = {
    "data.batch_size": 4096,
    "data.list_length": 20,
    "data.candidates": "top",
    "data.normalization": "percentile",
    "data.min_top_quantile": None,
    "temperatures.infonce": 0.01,
    "temperatures.student": 0.05,
    "temperatures.teacher": 0.3,
    "module.train_passage_encoder": True,
    "module.learning_rate": 2e-4,
    "module.weight_decay": 0.01,
    "optimizer._target_": "torch.optim.AdamW",
    "scheduler.decay": "to_zero",
    "scheduler.final_learning_rate": 0.1,
    "trainer.max_epochs": 30,
    "trainer.gradient_clip_val": 1.0,
    "trainer.precision": "bf16-mixed",
    "early_stopping.monitors": ["dev/kl", "dev/loss"],
    "early_stopping.patience": 2,
    "criterion": "dev/loss",
    "encoder.dropout": 0.0,
    "encoder.query_max_length": 64,
    "encoder.passage_max_length": 512,
    "evaluation.hits": 1000,
    "evaluation.ignore_identical_ids": True,
}
OF_MODULE = {
    "infonce": {"temperature": 0.01, "positive": "teacher", "false_negative_threshold": 0.6, "multiset": True},
    "distillation": {"temperature": 0.05, "teacher_temperature": 0.3},
    "combined": {
        "distillation_weight": 1.0,
        "infonce_weight": 0.1,
        "temperature": 0.05,
        "teacher_temperature": 0.3,
        "infonce_temperature": 0.01,
        "false_negative_threshold": 0.6,
    },
}


def values(config, keys):
    found = {key: OmegaConf.select(config, key) for key in keys}
    return {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in found.items()}


def run_config(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("run", list(overrides), return_hydra_config=True)
    params = dict(config.hydra.sweeper.get("params") or {})
    HydraConfig.instance().set_config(config)
    plain = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return OmegaConf.create(OmegaConf.to_container(plain, resolve=True)), params


def test_preparation_has_the_papers_settings():
    config = prepare_config_of("+exp=cadet", "corpus=fiqa")
    assert values(config, PREPARED) == PREPARED
    assert OmegaConf.to_container(config.queries) == {"synthetic": {"source": "generated"}}


@pytest.mark.parametrize("module", OF_MODULE)
@pytest.mark.parametrize("encoder", ["bge_base", "gte_base", "arctic_embed_m", "e5_base_unsupervised"])
def test_training_has_the_papers_settings(module, encoder):
    config, params = run_config("+exp=paper/cadet", "corpus=fiqa", f"encoder={encoder}", f"module={module}")
    assert values(config, TRAINED) == TRAINED
    assert values(config.module, OF_MODULE[module]) == OF_MODULE[module]
    assert config.data.train[0].path == f"outputs/lists/fiqa/{encoder}/synthetic.train.parquet"
    assert params == {"module": "infonce,distillation,combined"}


def test_a_student_without_lists_is_told_of_those_that_have_some(tmp_path):
    assert run_config("+exp=paper/cadet", "corpus=fiqa")[0].data.train[0].path.split("/")[-2] == "bge_base"
    for student in ("bge_base", "gte_base"):
        (tmp_path / "lists" / "fiqa" / student).mkdir(parents=True)
        (tmp_path / "lists" / "fiqa" / student / "synthetic.train.parquet").touch()
    config, _ = run_config("+exp=paper/cadet", "corpus=fiqa", "encoder=minilm", f"output_dir={tmp_path}")
    with pytest.raises(InputError, match=r"no such file\. .* lists of bge_base, gte_base: say encoder=bge_base\."):
        check_inputs(config)


def test_a_corpus_must_be_named(monkeypatch, capsys, tmp_path):
    typed = ["+exp=paper/cadet", "hydra.mode=RUN", f"hydra.run.dir={tmp_path}/run"]
    said = error_of(run_module, monkeypatch, capsys, *typed)
    assert said.endswith("error: corpus has no default, and is not set: say corpus=….\n")
    assert not any(tmp_path.iterdir())


def test_the_general_model_has_the_papers_settings():
    config, _ = run_config("+exp=paper/cadet_general")
    assert values(config, TRAINED) == TRAINED
    assert (config.data.order, config.scheduler.warmup_steps) == ("rotate", 20)
    assert config.encoder.model == "intfloat/e5-base-unsupervised"
    assert [spec.corpus for spec in config.data.train] == ["msmarco", "dbpedia-entity", "climate-fever"]


def test_the_learning_rate_is_a_line_to_0_held_at_a_tenth():
    factors = [learning_rate_factor(step, 10, 110, 0.1, "to_zero") for step in range(110)]
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert factors[10:] == pytest.approx(np.maximum(0.1, 1 - np.arange(1, 101) / 100))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, small_scifact, tiny_model, tiny_chat_model, t5):
    """The folder in which `prepare +exp=cadet` has made lists of the small corpus, by tiny models."""
    folder = tmp_path_factory.mktemp("cadet")
    encoders = ("bge_base", "gte_base", "arctic_embed_m")
    models = [f"mine.retrievers.{name}.encoder.model={tiny_model}" for name in encoders]
    lengths = {"bge_base": 24, "gte_base": 40, "arctic_embed_m": 64}
    models += [f"mine.retrievers.{name}.encoder.passage_max_length={n}" for name, n in lengths.items()]
    prepare(
        [
            "+exp=cadet",
            f"corpus={small_scifact}",
            f"output={folder / 'lists'}",
            f"output_dir={folder}",
            f"generator.model={tiny_chat_model}",
            "generator.engine=transformers",
            "generator.sampling.stop=[s, t]",
            "generator.sampling.max_tokens=24",
            "generate.language=null",
            "generate.max_characters=200",
            "generate.block_size=8",
            "sample.size=16",
            f"teacher.model={t5}",
            "teacher.max_length=100",
            *models,
            "mine.depth=60",
            "filter={consistency_rank: 50, teacher_first: false, min_length: 5, min_top_quantile: 0.1, keep: 6}",
            "split.dev_fraction=0.3",
        ]
    )
    return folder


def test_each_student_gets_lists_of_its_own_retrievers_hits(prepared, small_scifact):
    manifest = json.loads((prepared / "lists" / "manifest.json").read_text())
    union = {q.query_id: q for part in ("train", "dev") for q in lists_of(prepared / "lists", part)}
    found = {}
    for student in ("bge_base", "gte_base", "arctic_embed_m", "e5_base_unsupervised"):
        found[student] = {
            q.query_id: q for part in ("train", "dev") for q in lists_of(prepared / "lists" / student, part)
        }
        assert len(found[student]) == manifest[f"{student}/filter"]["counts"]["kept"] > 20
        assert {q.query_type for q in found[student].values()} >= {"question", "keywords", "web"}
        for q in found[student].values():
            assert q.teacher_scores == sorted(q.teacher_scores, reverse=True) and 5 <= len(q.passage_ids) <= 6
    assert found["bge_base"] == found["e5_base_unsupervised"] != found["gte_base"]
    shared = union.keys() & found["bge_base"].keys()
    assert shared and all(  # one scoring for all
        dict(zip(union[q].passage_ids, union[q].teacher_scores, strict=True)).get(p, s) == s
        for q in shared
        for p, s in zip(found["bge_base"][q].passage_ids, found["bge_base"][q].teacher_scores, strict=True)
    )


def lists_of(folder, part):
    return list(read_query_lists(folder / f"synthetic.{part}.parquet"))


def test_the_scale_is_that_of_all_candidates(prepared, small_scifact):
    """Percentiles, filters and the split by retriever, from the stages' files by another way."""
    manifest = json.loads((prepared / "lists" / "manifest.json").read_text())
    work = prepared / "prepare"
    scored = pq.read_table(next(work.glob("score*/scored.parquet"))).to_pylist()
    mined = next(work.glob("mine*/run.gte_base.parquet"))
    hits = pq.read_table(mined)["rows"].to_pylist()
    corpus_ids = load_corpus(small_scifact).ids.to_pylist()
    of_type = {}
    for line, rows in zip(scored, hits, strict=True):
        own = {corpus_ids[row] for row in rows}
        pairs = [(p, s) for p, s in zip(line["passage_ids"], line["teacher_scores"], strict=True) if p in own]
        rank = line["rank.gte_base"]
        if rank is not None and rank <= 50 and len(pairs) >= 5:
            of_type.setdefault(line["query_type"], {})[line["query_id"]] = pairs
    expected_ids = set()
    for kind, lists in of_type.items():
        everything = np.array([s for pairs in lists.values() for _, s in pairs], np.float64)
        scale = manifest["gte_base/filter"]["counts"]["scale"]["synthetic"][kind]
        assert scale == pytest.approx(np.percentile(everything, [1, 99]).tolist())
        floor = np.quantile(everything, 0.1)
        expected_ids |= {q for q, pairs in lists.items() if pairs[0][1] >= floor}
    found = [q for part in ("train", "dev") for q in lists_of(prepared / "lists" / "gte_base", part)]
    assert {q.query_id for q in found} == expected_ids
    for q in found:
        assert [p for p, _ in of_type[q.query_type][q.query_id]][:6] == q.passage_ids
    about = read_metadata(prepared / "lists" / "gte_base" / "synthetic.train.parquet")
    assert about["scale"] == manifest["gte_base/filter"]["counts"]["scale"]["synthetic"]


def test_the_three_commands(prepared, small_scifact, tiny_model, tmp_path):
    arms = {}
    for module in ("infonce", "distillation", "combined"):
        config, _ = run_config(
            "+exp=paper/cadet",
            f"corpus={small_scifact}",
            f"lists={prepared}/lists/bge_base",
            f"module={module}",
            f"encoder.model={tiny_model}",
            "encoder.passage_max_length=64",
            "trainer.accelerator=cpu",
            "trainer.devices=1",
            "trainer.precision=32-true",
            "trainer.max_epochs=2",
            "data.leak_jaccard=1.1",
            "data.batch_size=16",
            "logger=csv",
            f"output_dir={tmp_path}",
        )
        check(config)
        arms[module] = run_experiment(config, tmp_path / module)
    typed = [str(tiny_model), *(str(tmp_path / module) for module in arms), f"sets={small_scifact}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", as_overrides([*typed, f"output_dir={tmp_path}", "trainer.accelerator=cpu"]))
    folders = evaluate(config, tmp_path / "evaluated")
    for folder, module in zip(folders[1:], arms, strict=True):
        figure = json.loads((folder / "results.json").read_text())["datasets"]["small"]["ndcg@10"]["best"]
        assert figure == pytest.approx(arms[module]["datasets"]["small"]["ndcg@10"]["best"], abs=1e-5)
