"""python -m experiments.prepare: from a corpus to query lists, whole, in parts, on several processes, through kills."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.errors import InstantiationException

from datamodules.corpus import load_corpus
from datamodules.query_lists import open_query_lists, read_metadata, read_query_lists
from experiments.preparation.pipeline import Pipeline
from experiments.preparation.settings import STAGES
from helpers.batch_api import batch_api
from helpers.processes import begin, end, finish, run_in, start
from helpers.runs import CONF, LISTS, lists_in, prepare, prepare_config_of
from retriever.errors import InputError

pytestmark = pytest.mark.slow

ROOT = CONF.parents[1]


def test_the_texts_of_an_evaluation_corpus_decide_the_split_in_any_format(small_prepare, tmp_path):
    other = tmp_path / "other"
    (other / "qrels").mkdir(parents=True)
    (other / "queries.tsv").write_text("q\twhat\n")
    (other / "qrels" / "test.tsv").write_text("q\td\t1\n")
    found = set()
    for text in ("one", "another"):
        pq.write_table(pa.table({"_id": ["d"], "text": [text]}), other / "corpus.parquet")
        config = prepare_config_of(*small_prepare, f"split.evaluation=[{{path: {other}}}]")
        [(_, digest)] = Pipeline(config)._evaluation_sets
        found.add(digest)
    assert len(found) == 2


def test_a_corpus_becomes_lists_that_training_reads(
    small_prepare, small_scifact, tiny_model, tiny_chat_model, tmp_path, capsys, caplog
):
    with caplog.at_level("INFO"):
        paths = prepare(small_prepare)
    said = [r.getMessage() for r in caplog.records if r.name == "experiments.preparation.pipeline"][:9]
    assert said[0] == f"corpus: small ({small_scifact}), 120 passages"
    assert said[1] == "queries: human (judged), synthetic (generated)"
    assert said[2].startswith("stages: deduplicate, sample, generate")
    assert said[3].startswith(f"generator: {tiny_chat_model.name}, by transformers, sampling")
    assert said[4] == "retriever bm25: BM25, k1 0.9, b 0.4, language english"
    assert said[5].startswith(f"retriever dense: folder {tiny_model}, 32 dimensions, pooling mean, prompts '' and ''")
    assert said[6].startswith("precision: 32-true")
    assert said[7].startswith("teacher: kind fusion") and said[8] == "leak guard: protects small (20 queries)"
    assert [p.stem for p in paths] == list(LISTS)
    corpus = load_corpus(small_scifact)
    for path in paths:
        lists, dropped = open_query_lists(path, corpus, tmp_path / "cache")
        assert len(lists) and not dropped
        assert read_metadata(path)["teacher"]["teacher"]["kind"].startswith("fusion")
    synthetic = list(read_query_lists(tmp_path / "lists" / "synthetic.train.parquet"))
    assert all(2 <= len(x.passage_ids) <= 10 and x.query_type in ("question", "keywords") for x in synthetic)
    manifest = json.loads((tmp_path / "lists" / "manifest.json").read_text())
    assert list(manifest) == list(STAGES)
    generated = manifest["generate"]["counts"]
    assert (
        manifest["queries"]["counts"]["synthetic"] == generated["accepted"]
        and manifest["queries"]["counts"]["human"] == 40
    )
    card = json.loads((tmp_path / "lists" / "teacher_card.json").read_text())["human"]
    figures = card["ndcg@10"]
    assert set(figures) == {"teacher", "bm25", "dense", "fused", "oracle"} and card["queries"] == 40
    assert figures["oracle"] >= max(figures["teacher"], figures["bm25"], figures["dense"]) > 0
    printed = capsys.readouterr().out
    assert "Answers by query type" in printed and "Teacher card: human" in printed and "Lists by filter" in printed


def test_stages_run_alone_and_as_far_as_named_and_only_once(small_prepare, whole_lists, tmp_path):
    with pytest.raises(InputError, match=r"Stage mine needs the output of stage deduplicate.*until=deduplicate"):
        prepare([*small_prepare, "stage=mine"])
    assert prepare([*small_prepare, "until=sample"]) == []
    work = tmp_path / "prepare"
    assert sorted(p.name.split("-")[0] for p in work.iterdir() if p.is_dir()) == ["deduplicate", "sample"]
    for stage in STAGES[2:-1]:
        prepare([*small_prepare, f"stage={stage}"])
    times = {p: p.stat().st_mtime_ns for p in work.rglob("manifest.json")}
    prepare(small_prepare)
    assert lists_in(tmp_path / "lists") == whole_lists
    assert {p: p.stat().st_mtime_ns for p in times} == times  # nothing was done again
    prepare([*small_prepare, "score.candidates=12"])
    assert sum(p.name.startswith("score-") for p in work.iterdir()) == 2
    assert sum(p.name.startswith("mine-") for p in work.iterdir()) == 1
    with pytest.raises(InputError, match=r"stage is 'scoer'; it must be .*did you mean 'score'"):
        prepare([*small_prepare, "stage=scoer"])


def test_lists_of_another_corpus_are_replaced_where_a_copy_of_them_stays(
    small_prepare, small_scifact, tmp_path, caplog
):
    other = shutil.copytree(small_scifact, tmp_path / "other")
    with (other / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "new", "title": "", "text": "A wing that is new."}\n')
    titles = [option for option in small_prepare if not option.startswith(("queries=", "generat", "sample"))]
    titles += ["queries={title: {source: titles, filter: false}}", "+students.lexical=bm25"]
    before = {path.relative_to(tmp_path / "lists"): path.read_bytes() for path in prepare(titles)}
    of_students = [path for path in before if path.parts[0] == "lexical"]
    assert 0 < len(of_students) < len(before)
    prepare([*titles, "score.candidates=12"])  # of the same corpus
    prepare(titles)
    assert "another corpus" not in caplog.text
    elsewhere = [*titles, f"corpus={other}"]
    prepare([*elsewhere, "until=mine"])
    assert "another corpus" not in caplog.text
    prepare(elsewhere)
    [said] = [r.getMessage() for r in caplog.records if "another corpus" in r.getMessage()]
    assert f"{tmp_path / 'lists'} has lists of another corpus, small. Those of other will replace them" in said
    kept = re.search(r"copies stay in (.*)\. To keep", said)[1].split(", ")
    for path, content in before.items():
        assert content in [(Path(folder) / path.name).read_bytes() for folder in kept]
    work = next(folder for folder in (tmp_path / "prepare").glob("split-*") if str(folder) not in kept)
    made = {path: path.read_bytes() for path in (tmp_path / "lists").rglob("*.parquet")}
    shutil.rmtree(tmp_path / "prepare")
    with pytest.raises(InputError, match=r"lists of another corpus, other, and .*prepare has no copy.*output=…"):
        prepare(titles)
    assert {path: path.read_bytes() for path in (tmp_path / "lists").rglob("*.parquet")} == made and not work.exists()


def test_shards_on_two_processes_leave_the_same_lists(small_prepare, whole_lists, tmp_path):
    prepare([*small_prepare, "until=sample"])
    for stage in STAGES[2:]:
        for shard in ("1/2", "0/2"):
            prepare([*small_prepare, f"stage={stage}", f"shard={shard}"])
    prepare(small_prepare)
    assert lists_in(tmp_path / "lists") == whole_lists


def test_a_cross_encoder_teacher_is_one_override(small_prepare, tiny_model, tmp_path):
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    torch.manual_seed(2)
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_model, num_labels=1)).save_pretrained(tmp_path / "ce")
    BertTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "ce")
    teacher = ["teacher=classifier", f"teacher.model={tmp_path / 'ce'}", "teacher.max_length=64", "score.candidates=12"]
    paths = prepare([*small_prepare, *teacher])
    about = read_metadata(paths[0])
    assert about["teacher"]["teacher"]["weights"] and 0 < about["truncated"]["teacher"] <= 1
    with pytest.raises(InstantiationException, match="no such model folder"):
        prepare([*small_prepare, "teacher=classifier", "teacher.model=./none"])


API_TEACHER = """
import json
from urllib.request import Request, urlopen

from retriever.teachers import Teacher


class Api(Teacher):
    def __init__(self, url, model):
        self.url, self.model = url, model

    def score(self, queries, passages):
        body = json.dumps({"model": self.model, "pairs": list(zip(queries, passages, strict=True))}).encode()
        with urlopen(Request(self.url, body), timeout=60) as answer:
            return json.load(answer)["scores"]

    def description(self):
        return {"kind": "api", "model": self.model}
"""


def common_words(query, passage):
    return float(len(set(query.split()) & set(passage.split())))


@pytest.fixture
def api():
    """Address of a server that scores pairs by their common words, and the numbers of pairs it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(len(request["pairs"]))
            words = "many" if request["model"] == "broken" else None
            answer = json.dumps({"scores": [words or common_words(*pair) for pair in request["pairs"]]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_teacher_of_the_users_own_calls_a_web_api(small_prepare, small_scifact, api, tmp_path):
    """One class and one YAML file, outside of this repository; no tokens."""
    url, asked = api
    (tmp_path / "my_teachers.py").write_text(API_TEACHER)
    (tmp_path / "conf" / "teacher").mkdir(parents=True)
    (tmp_path / "conf" / "teacher" / "api.yaml").write_text("_target_: my_teachers.Api\nurl: ???\nmodel: words-1\n")
    queries = "queries={human: {source: judged, filter: false}}"
    options = [o for o in small_prepare if not o.startswith("queries")]
    options += [queries, "teacher=api", f"teacher.url={url}", "until=score"]

    def command(*more):
        return run_in(tmp_path, "experiments.prepare", "--config-dir", str(tmp_path / "conf"), *options, *more)

    status, said = command()
    assert status == 0, said
    [scored] = tmp_path.glob("prepare/score-*/scored.parquet")
    texts = load_corpus(small_scifact)
    texts = dict(zip(texts.ids.to_pylist(), texts.passages.to_pylist(), strict=True))
    rows = pq.read_table(scored).to_pylist()
    for row in rows:
        expected = [common_words(row["query"], texts[passage]) for passage in row["passage_ids"]]
        assert row["teacher_scores"] == expected == sorted(expected, reverse=True)
    assert len(rows) == 40 and sum(asked) == sum(len(row["passage_ids"]) for row in rows)
    manifest = json.loads(scored.with_name("manifest.json").read_text())
    assert manifest["settings"]["members"] == {"teacher": {"kind": "api", "model": "words-1"}}
    before = len(asked)
    assert command()[0] == 0 and len(asked) == before  # the scores are there already
    status, said = command("teacher.model=broken")
    assert status == 2 and "Api.score gave what is no list of numbers" in said


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("queries={a: {source: judged, splt: train}}", "queries.a: 'splt' is no setting here.*Did you mean 'split'"),
        ("shard=4/4", "shard is '4/4'"),
        ("sample.size=0", "size is 0"),
        ("generate.types=[riddle]", "generate.types is 'riddle'"),
        ("generator.engine=vlm", "Did you mean 'vllm'"),
        ("+mine.retrievers.x={bm52: {}}", "Did you mean 'bm25'"),
        ("mine.fusion=scores", "Did you mean 'score'"),
        ("filter.min_top_quantile=2", "min_top_quantile is 2"),
        ("split.dev_fraction=1.5", "dev_fraction is 1.5"),
        ("split.leak_guard=fial", "Did you mean 'fail'"),
        ("deduplicate.near_jaccard=0", "near_jaccard is 0"),
        ("queries={a: {source: file, path: /none.jsonl}}", "queries.a: /none.jsonl: no such file"),
        ("filter.consistency_retrievers=[bm52]", "Did you mean 'bm25'"),
        ("teacher.weights={bm52: 1}", "Did you mean 'bm25'"),
    ],
)
def test_a_bad_setting_is_named_before_long_work(small_prepare, override, words):
    # Hydra wraps what a constructor raises; the command prints the innermost one
    with pytest.raises((InputError, InstantiationException), match=words):
        prepare([*(o for o in small_prepare if o.split("=")[0] != override.split("=")[0]), override])


def test_filters_that_take_everything_are_told(small_prepare):
    taken = ["filter.min_length=1000", "queries={synthetic: {source: generated}}"]
    options = [o for o in small_prepare if not o.startswith(("queries", "filter="))]
    with pytest.raises(InputError, match="No list is left"):
        prepare([*options, *taken])


def test_the_command_says_what_is_wrong_in_one_line(small_prepare):
    line = [sys.executable, "-m", "experiments.prepare", *small_prepare, "sampel.size=3"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "error:" in done.stderr and "Traceback" not in done.stderr
    assert "sample" in done.stderr


@pytest.mark.parametrize("name", ["scifact", "scifact_free"])
def test_the_shipped_configurations_compose(name):
    config = prepare_config_of(f"+data={name}")
    assert config.corpus == "scifact" and config.queries.human.leak_guard == "off"


def test_kills_at_random_moments_leave_the_same_lists(small_prepare, whole_lists, tmp_path):
    """Six SIGKILLs spread over the time that a whole run takes, then one run to the end."""
    undisturbed, _ = begin(prepare, [*small_prepare, f"output_dir={tmp_path / 'timed'}"])
    began = time.monotonic()
    undisturbed.join()
    duration = time.monotonic() - began
    assert undisturbed.exitcode == 0 and lists_in(tmp_path / "timed" / "lists") == whole_lists
    moments = random.Random(0)
    killed = 0
    for _ in range(6):
        process, _ = begin(prepare, small_prepare)
        process.join(timeout=duration * moments.uniform(0.02, 0.3))
        end(process)
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 3
    finish(tmp_path / "last", start(tmp_path / "last", *small_prepare, module="experiments.prepare"))
    assert lists_in(tmp_path / "lists") == whole_lists
    assert not list((tmp_path / "prepare").rglob("blocks")) and not list((tmp_path / "lists").glob(".*"))


def test_a_command_that_is_killed_while_batches_are_answered_goes_on_with_them(small_prepare, tmp_path, capsys):
    with batch_api() as api:
        server = [f"generator.server.base_url={api.address}", "generator.batch={requests: 20, poll: 0.05}"]
        options = [*small_prepare, *server, "generator.price={input: 1, output: 4}", "until=generate"]
        batch, served = [*options, "generator.engine=batch"], [*options, "generator.engine=server"]
        assert prepare([*batch, "plan=true"]) == [] and not api.files
        said = capsys.readouterr().out
        assert "48: 2 query types for 24 passages" in said and "of generator.price" in said
        api.looks = 10**6
        process, _ = begin(prepare, batch)
        began = time.monotonic()
        while len(api.batches) < 3 or not any(b["status"] == "in_progress" for b in api.batches.values()):
            assert process.is_alive() and time.monotonic() - began < 200
            time.sleep(0.05)
        end(process)
        for submitted in api.batches.values():
            submitted["looks"] = 1
        prepare(batch)
        assert len(api.batches) == 3 and len(api.files) == 6 and len(set(api.paid)) == len(api.paid) == 48
        prepare([*served, f"output_dir={tmp_path / 'served'}"])
        made, asked = (
            list(folder.glob("prepare/generate-*/queries.parquet")) for folder in (tmp_path, tmp_path / "served")
        )
        assert made[0].read_bytes() == asked[0].read_bytes() and len(api.paid) == 96
