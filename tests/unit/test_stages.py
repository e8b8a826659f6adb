"""The stages one by one, on a small real slice of SciFact and small tables."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from datamodules.corpus import Corpus, load_corpus, load_evaluation_set
from datamodules.hits import Hits, bm25_search, fuse_ranks, fuse_scores
from datamodules.pipeline.engines import TransformersEngine
from datamodules.pipeline.query_types import load_query_types
from datamodules.pipeline.searchers import Bm25
from datamodules.pipeline.stages.deduplicate import Deduplicate
from datamodules.pipeline.stages.filter import Filter
from datamodules.pipeline.stages.generate import DUPLICATE, Generate
from datamodules.pipeline.stages.mine import Dense, Mine, hits_to_table, table_to_hits
from datamodules.pipeline.stages.queries import QUERIES, CollectQueries
from datamodules.pipeline.stages.sample import Sample
from datamodules.pipeline.stages.score import Score
from datamodules.pipeline.stages.split import Split
from datamodules.pipeline.stages.stage import Output, run_stage
from datamodules.query_lists import read_metadata, read_query_lists
from datamodules.text.words import normalize_texts
from retriever.errors import InputError
from retriever.hashing import file_sha256
from retriever.teachers import Ensemble, RunFusion
from retriever.teachers.sequence_classifier import SequenceClassifier

NEAR = " ".join(f"word{i}" for i in range(60))


def corpus_of(*texts, name="made"):
    return Corpus(
        name, pa.array([f"p{i}" for i in range(len(texts))]), pa.array([""] * len(texts)), pa.array(list(texts))
    )


def rows(output, name):
    return pq.read_table(output.file(name)).to_pylist()


def written(tmp_path, name, table):
    """An output as a stage would leave it."""
    folder = tmp_path / name
    folder.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, folder / f"{name}.parquet")
    manifest = {"outputs": {f"{name}.parquet": {"sha256": file_sha256(folder / f"{name}.parquet")}}}
    return Output(
        folder, manifest | {"settings": {"members": {"t": {}}, "weights": {"t": 1.0}}, "counts": {"truncated": {}}}
    )


# deduplicate, sample


def test_what_says_the_same_falls_out_with_its_reason(tmp_path):
    corpus = corpus_of(
        "Aspirin lowers the risk of stroke by 20 %.",
        "aspirin lowers the RISK of stroke, by 20",
        "Aspirin lowers the risk of stroke by 30 %.",
        "Aspirin lowers the risk",
        "the risk of stroke by 30",
        "Short",
        "Ćafé Müller reopened its doors",
        "cafe muller reopened its doors!",
        NEAR,
        NEAR.replace("word30", "other"),
        "Something else altogether stands here",
    )
    output = run_stage(Deduplicate(corpus, near_jaccard=0.8), tmp_path)
    found = {r["passage_id"]: (r["reason"], r["kept_id"]) for r in rows(output, "removed.parquet")}
    assert found == {
        "p1": ("equal", "p0"),
        "p3": ("contained", "p0"),
        "p4": ("contained", "p2"),
        "p5": ("under 10 characters", None),
        "p7": ("equal", "p6"),
        "p9": ("nearly equal", "p8"),
    }
    assert [r["passage_id"] for r in rows(output, "passages.parquet")] == ["p0", "p2", "p6", "p8", "p10"]
    assert output.manifest["counts"]["kept"] == 5 and output.manifest["counts"]["contained"] == 2


def test_digits_count_unless_asked_otherwise_and_near_duplicates_can_stay(tmp_path):
    corpus = corpus_of("The dose was 20 mg a day for all", "The dose was 40 mg a day for all", NEAR, NEAR + " more")
    kept = {}
    for digits in (False, True):
        stage = Deduplicate(corpus, ignore_digits=digits, near_jaccard=None)
        kept[digits] = [r["passage_id"] for r in rows(run_stage(stage, tmp_path), "passages.parquet")]
    assert kept == {False: ["p0", "p1", "p3"], True: ["p0", "p3"]}
    assert normalize_texts(["  Dose: 20mg/ＤＡＹ – naïve_user "]) == ["dose 20mg day naive user"]


def test_near_duplicates_are_those_of_an_exact_comparison(tmp_path):
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in range(400)]
    texts = []
    for _ in range(40):
        text = list(random.choice(words, 50))
        texts.append(" ".join(text))
        for changes in (1, 3, 8):
            other = text.copy()
            for at in random.choice(50, changes, replace=False):
                other[at] = "new"
            texts.append(" ".join(other))
    output = run_stage(Deduplicate(corpus_of(*texts), near_jaccard=0.7), tmp_path)

    def shingles(text):
        w = text.split()
        return {tuple(w[i : i + 3]) for i in range(48)}

    kept, expected = [], set()
    for number, text in enumerate(texts):
        own = shingles(text)
        if any(len(own & shingles(texts[k])) / len(own | shingles(texts[k])) >= 0.7 for k in kept):
            expected.add(f"p{number}")
        else:
            kept.append(number)
    assert expected and {r["passage_id"] for r in rows(output, "removed.parquet")} == expected


def test_a_passage_whose_keeper_fell_out_points_to_the_one_that_is_there(tmp_path):
    # p0 begins p1, and p1 ends p2
    corpus = corpus_of("alpha beta gamma", "alpha beta gamma delta", "zero alpha beta gamma delta")
    output = run_stage(Deduplicate(corpus), tmp_path)
    assert {r["passage_id"]: r["kept_id"] for r in rows(output, "removed.parquet")} == {"p0": "p2", "p1": "p2"}


@pytest.fixture
def small(small_scifact):
    return load_corpus(small_scifact)


@pytest.fixture
def deduplicated(small, tmp_path):
    return run_stage(Deduplicate(small), tmp_path)


def draw(corpus, deduplicated, tmp_path, **options):
    return [
        r["passage_id"] for r in rows(run_stage(Sample(corpus, deduplicated, **options), tmp_path), "passages.parquet")
    ]


def test_a_sample_is_seeded_and_a_larger_one_holds_it(small, deduplicated, tmp_path):
    few, more = (draw(small, deduplicated, tmp_path, size=n) for n in (20, 50))
    assert len(few) == 20 and set(few) < set(more) and few != draw(small, deduplicated, tmp_path, size=20, seed=2)
    assert len(draw(small, deduplicated, tmp_path, size=None)) == 120
    without = draw(small, deduplicated, tmp_path, size=None, exclude=few)
    assert set(without) == set(small.ids.to_pylist()) - set(few)
    (tmp_path / "out.txt").write_text("\n".join(few))
    assert draw(small, deduplicated, tmp_path, size=None, exclude=str(tmp_path / "out.txt")) == without
    with pytest.raises(InputError, match="'nobody' is not in the corpus"):
        Sample(small, deduplicated, exclude=["nobody"])


def test_strata_are_of_equal_share(small, deduplicated, tmp_path):
    ids = draw(small, deduplicated, tmp_path, size=40, strata=4)
    lengths = np.array([len(t) for t in small.passages.to_pylist()])
    quarter = np.empty(120, int)
    quarter[np.lexsort((np.arange(120), lengths))] = np.arange(120) // 30
    assert Counter(quarter[small.rows(ids)].tolist()) == dict.fromkeys(range(4), 10)


# generate


@pytest.fixture
def generate(small, deduplicated, tiny_chat_model, tmp_path):
    sample = run_stage(Sample(small, deduplicated, size=12), tmp_path)

    def make(**options):
        sampling = {"temperature": 0.8, "max_tokens": 24, "stop": ["s", "t"]}
        engine = TransformersEngine(str(tiny_chat_model), sampling, batch_size=4)
        types = load_query_types(["question", "keywords", "zero_shot"])
        own = {"block_size": 5, "max_characters": 200, "language": None} | options
        return Generate(small, sample, engine, types, **own)

    return make


@pytest.mark.slow
def test_every_answer_is_accepted_or_rejected_with_a_reason(generate, tmp_path):
    output = run_stage(generate(), tmp_path)
    queries, rejected = rows(output, "queries.parquet"), rows(output, "rejected.parquet")
    counts = output.manifest["counts"]
    assert len(queries) + len(rejected) == 36 == counts["asked"] and queries and rejected
    assert all(r["reason"] for r in rejected) and counts["accepted"] == len(queries)
    assert {r["query_type"] for r in queries + rejected} == {"question", "keywords", "zero_shot"}
    assert all(q["query_id"] == f"{q['query_type']}-{q['passage_id']}" and q["query"] for q in queries)
    assert Counter(r["reason"] for r in rejected) == sum(
        (Counter({k: v for k, v in line.items() if k != "accepted"}) for line in counts["by_type"].values()), Counter()
    )


@pytest.mark.slow
def test_the_same_seed_writes_the_same_queries_after_a_kill(generate, tmp_path, monkeypatch):
    whole = run_stage(generate(), tmp_path / "whole")
    killed = generate()
    run_block = killed.run_block
    killed.run_block = lambda number, advance: (
        (_ for _ in ()).throw(KeyboardInterrupt) if number == 1 else run_block(number, advance)
    )
    with pytest.raises(KeyboardInterrupt):
        run_stage(killed, tmp_path / "killed")
    resumed = run_stage(generate(), tmp_path / "killed")
    other = run_stage(generate(seed=2), tmp_path / "whole")
    for name in ("queries.parquet", "rejected.parquet"):
        assert resumed.file(name).read_bytes() == whole.file(name).read_bytes() != other.file(name).read_bytes()


@pytest.mark.slow
def test_rejected_answers_are_asked_for_again(generate, tmp_path):
    once, thrice = (run_stage(generate(attempts=n), tmp_path).manifest["counts"] for n in (1, 3))
    assert thrice["asked"] > once["asked"] and thrice["accepted"] > once["accepted"]
    again = run_stage(generate(attempts=3), tmp_path)
    accepted = [r["query_id"] for r in rows(again, "queries.parquet")]
    assert len(accepted) == len(set(accepted))


@pytest.mark.slow
def test_a_query_that_stands_already_is_a_duplicate(generate, tmp_path):
    stage = generate()
    table = stage.run_block(0, lambda _: None)
    folder = tmp_path / "twice"
    folder.mkdir()
    counts = stage.finish(iter([table, table]), folder)
    accepted = sum(reason is None for reason in table["reason"].to_pylist())
    found = sum(line.get(DUPLICATE, 0) for line in counts["by_type"].values())
    assert counts["accepted"] <= accepted and found >= accepted


# queries, mine


@pytest.fixture
def collected(small, small_scifact, tmp_path):
    own = tmp_path / "own.jsonl"
    record = {
        "query_id": "mine-1",
        "query": "my own query",
        "query_type": "web",
        "positive_ids": [small.ids[3].as_py()],
    }
    own.write_text(json.dumps(record) + "\n")
    groups = {
        "human": {"source": "judged", "split": "train"},
        "title": {"source": "titles"},
        "own": {"source": "file", "path": str(own)},
    }
    return run_stage(CollectQueries(small, str(small_scifact), tmp_path, groups, None), tmp_path)


def test_groups_come_one_after_the_other_with_their_positives(collected, small):
    table = rows(collected, "queries.parquet")
    assert Counter(r["group"] for r in table) == {"human": 40, "title": 120, "own": 1}
    assert {r["query_type"] for r in table} == {"human", "title", "web"}
    assert all(r["positive_ids"] and (small.rows(r["positive_ids"]) >= 0).all() for r in table)


def test_a_limit_is_shared_evenly_by_passages_and_a_part_of_any_larger_one(small, small_scifact, tmp_path):
    def drawn(limit):
        groups = {"sentence": {"source": "sentences", "limit": limit}}
        output = run_stage(CollectQueries(small, str(small_scifact), tmp_path, groups, None), tmp_path)
        return {r["query_id"]: r["positive_ids"][0] for r in rows(output, "queries.parquet")}

    everything = drawn(None)
    there = Counter(everything.values())
    for limit in (60, 250):
        found = drawn(limit)
        counts = Counter(found.values())
        assert len(found) == limit and found.items() <= everything.items()
        most = max(counts.values())
        assert all(counts[passage] >= min(there[passage], most - 1) for passage in there)
    assert drawn(60).keys() <= drawn(250).keys() and drawn(10**6) == everything


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({}, "queries is empty"),
        ({"a": {"source": "titles", "limit": 0}}, "queries.a.limit is 0"),
        ({"a": {"source": "jugded"}}, "Did you mean 'judged'"),
        ({"a": {"source": "generated"}}, "stage generate is switched off"),
        ({"a": {"source": "file"}}, "name it in queries.a.path"),
    ],
)
def test_a_bad_group_is_named(small, small_scifact, tmp_path, groups, words):
    with pytest.raises(InputError, match=words):
        CollectQueries(small, str(small_scifact), tmp_path, groups, None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"query_id": "1", "query": " ", "query_type": "web"}', "own.jsonl:1: 'query' is ' '"),
        (
            '{"query_id": "1", "query": "q", "query_type": "web", "positive_ids": ["no"]}',
            "own.jsonl:1: the positive 'no'",
        ),
        ('{"query_id": "1", "query": "q", "query_type": "web", "positive_ids": "no"}', "own.jsonl:1: 'positive_ids'"),
        (('{"query_id": "1", "query": "q", "query_type": "web"}\n' * 2).strip(), "own.jsonl:2: .* already in line 1"),
    ],
)
def test_a_bad_line_of_own_queries_is_named(small, small_scifact, tmp_path, line, words):
    (tmp_path / "own.jsonl").write_text(line + "\n")
    groups = {"own": {"source": "file", "path": str(tmp_path / "own.jsonl")}}
    with pytest.raises(InputError, match=words):
        run_stage(CollectQueries(small, str(small_scifact), tmp_path, groups, None), tmp_path)


def mine(small, collected, tiny_encoder, tmp_path, chunk=1000, deduplicated=None, keep=True, **options):
    dense = Dense(tiny_encoder, tmp_path / "cache", chunk=chunk, keep_embeddings=keep)
    return Mine(small, collected, deduplicated, {"bm25": Bm25(), "dense": dense}, **{"depth": 20, **options})


@pytest.mark.slow
def test_the_runs_are_those_of_whole_searches(small, collected, tiny_encoder, tmp_path):
    output = run_stage(mine(small, collected, tiny_encoder, tmp_path, chunk=50), tmp_path)
    queries = [r["query"] for r in rows(collected, "queries.parquet")]
    tiny_encoder.eval()
    with torch.inference_mode():
        embedded = [
            tiny_encoder(*tiny_encoder.tokenize(texts, kind).padded(np.arange(len(texts)), 0)).double().numpy()
            for texts, kind in ((queries, "query"), (small.passages.to_pylist(), "passage"))
        ]
    scores = embedded[0] @ embedded[1].T
    run = table_to_hits(pq.read_table(output.file("run.dense.parquet")))
    best = -np.sort(-scores, axis=1)[:, :20]
    np.testing.assert_allclose(run.scores, best, atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(scores, run.rows, 1), best, atol=2e-6)
    lexical = table_to_hits(pq.read_table(output.file("run.bm25.parquet")))
    expected = bm25_search(small.passages.to_pylist(), queries, 20).rows
    np.testing.assert_array_equal(lexical.rows, expected[:, : lexical.rows.shape[1]])
    assert (expected[:, lexical.rows.shape[1] :] == -1).all()
    fused = table_to_hits(pq.read_table(output.file("candidates.parquet")))
    expected = fuse_ranks([lexical, run], [1, 1], 100)
    np.testing.assert_array_equal(fused.rows, expected.rows[:, : fused.rows.shape[1]])


@pytest.mark.slow
def test_neither_chunks_nor_the_cache_change_the_hits(small, collected, tiny_encoder, tmp_path):
    found = []
    for chunk, keep in ((1000, True), (40, True), (40, False)):
        stage = mine(small, collected, tiny_encoder, tmp_path, chunk=chunk, keep=keep)
        output = run_stage(stage, tmp_path / str(len(found)))
        found.append(table_to_hits(pq.read_table(output.file("run.dense.parquet"))))
    for other in found[1:]:
        np.testing.assert_allclose(other.scores, found[0].scores, atol=2e-6)
        # another batch rounds otherwise, so passages of one score may change places, and no others
        steps = -np.diff(found[0].scores, axis=1, prepend=np.inf, append=-np.inf)
        assert (np.minimum(steps[:, 1:], steps[:, :-1])[other.rows != found[0].rows] < 1e-5).all()


def test_a_passage_without_a_word_of_the_query_is_no_hit():
    passages = ["statins and strokes", "bees and pollen", "tides and the moon", "statins again"]
    hits = bm25_search(passages, ["statins", "unheard of", "Mond und Biene"], 4)
    assert [set(row[row >= 0].tolist()) for row in hits.rows] == [{0, 3}, set(), set()]
    assert np.isfinite(hits.scores[0, :2]).all() and np.isneginf(hits.scores[hits.rows < 0]).all()
    with pytest.raises(InputError, match=r"'engl'.*Did you mean 'english'"):
        bm25_search(passages, ["statins"], 2, language="engl")


@pytest.mark.slow
def test_another_order_of_retrievers_is_another_stage(small, collected, tiny_encoder, tmp_path):
    stages = []
    for names in (("a", "b"), ("b", "a")):
        retrievers = {n: Bm25(k1=0.9 if n == "a" else 2.0) for n in names}
        stages.append(Mine(small, collected, None, retrievers, depth=5))
    assert stages[0].key() != stages[1].key()
    runs = [pq.read_table(run_stage(s, tmp_path).file("run.a.parquet")) for s in stages]
    assert runs[0].equals(runs[1])


def test_fusion_by_rank_is_its_formula():
    runs = [Hits(np.zeros((1, 3), np.float32), np.array([r])) for r in ([4, 7, 2], [7, 9, -1])]
    found = fuse_ranks(runs, [1.0, 2.0], 5)
    expected = {4: 1 / 61, 7: 1 / 62 + 2 / 61, 2: 1 / 63, 9: 2 / 62}
    order = sorted(expected, key=lambda p: -expected[p])
    assert found.rows[0].tolist() == [*order, -1]
    np.testing.assert_allclose(found.scores[0, :4], [expected[p] for p in order], rtol=1e-6)


def test_fusion_by_score_leaves_out_what_is_not_there():
    runs = [
        Hits(np.array([[3.0, 1.0, -np.inf]], np.float32), np.array([[5, 6, -1]])),
        Hits(np.array([[0.9, 0.5, 0.1]], np.float32), np.array([[6, 8, 5]])),
    ]
    found = fuse_scores(runs, [0.5, 0.5], 4)
    assert found.rows[0].tolist() == [5, 6, 8, -1]
    np.testing.assert_allclose(found.scores[0, :3], [0.5, 0.5, 0.25])


def test_near_duplicates_of_the_source_and_the_querys_own_passage_are_left_out(tiny_encoder, tmp_path):
    corpus = corpus_of(NEAR, NEAR + " more", "other words stand here now", "yet another passage of words")
    own = tmp_path / "own.jsonl"
    records = [
        {"query_id": "q", "query": "word1 word2 word3", "query_type": "web", "positive_ids": ["p1"]},
        {"query_id": "p2", "query": "other words", "query_type": "web", "positive_ids": ["p3"]},
    ]
    own.write_text("".join(json.dumps(r) + "\n" for r in records))
    groups = {"own": {"source": "file", "path": str(own)}}
    collected = run_stage(CollectQueries(corpus, "made", tmp_path, groups, None), tmp_path)
    deduplicated = run_stage(Deduplicate(corpus), tmp_path)
    found = {}
    for on in (True, False):
        stage = mine(
            corpus,
            collected,
            tiny_encoder,
            tmp_path,
            deduplicated=deduplicated,
            drop_near_duplicates=on,
            drop_identical_ids=on,
        )
        found[on] = [set(r["rows"]) for r in rows(run_stage(stage, tmp_path), "candidates.parquet")]
    assert found[False] == [{0, 1, 2, 3}, {0, 1, 2, 3}]
    assert found[True] == [{1, 2, 3}, {0, 1, 3}]


def test_hits_survive_the_table():
    hits = Hits(np.array([[2.0, 1.0], [3.0, -np.inf]], np.float32), np.array([[7, 1], [0, -1]]))
    again = table_to_hits(hits_to_table(hits))
    np.testing.assert_array_equal(again.rows, hits.rows)
    np.testing.assert_array_equal(again.scores, hits.scores)


# score


@pytest.fixture
def mined(small, collected, tiny_encoder, tmp_path):
    return run_stage(mine(small, collected, tiny_encoder, tmp_path, candidates=15), tmp_path)


@pytest.fixture
def tiny_cross_encoder(tiny_model, tmp_path):
    torch.manual_seed(1)
    config = BertConfig.from_pretrained(tiny_model, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "cross")
    BertTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "cross")
    return SequenceClassifier(str(tmp_path / "cross"), max_length=64, token_budget=2048)


def score(small, collected, mined, teacher, tmp_path, **options):
    output = run_stage(Score(small, collected, mined, teacher, **{"block_size": 50, **options}), tmp_path)
    return output, rows(output, "scored.parquet")


@pytest.mark.slow
def test_the_fusion_teacher_is_the_fused_score(small, collected, mined, tmp_path):
    _, scored = score(small, collected, mined, RunFusion({"bm25": 0.4, "dense": 0.6}), tmp_path)
    runs = [table_to_hits(pq.read_table(mined.file(f"run.{n}.parquet"))) for n in ("bm25", "dense")]
    fused = fuse_scores(runs, [0.4, 0.6], 40)
    ids = small.ids.to_pylist()
    for number, line in enumerate(scored):
        expected = {ids[r]: s for r, s in zip(fused.rows[number], fused.scores[number], strict=True) if r >= 0}
        assert [expected[p] for p in line["passage_ids"]] == line["teacher_scores"]
        assert line["teacher_scores"] == sorted(line["teacher_scores"], reverse=True)


@pytest.mark.slow
def test_a_reading_teacher_scores_each_pair_as_alone(small, collected, mined, tiny_cross_encoder, tmp_path):
    output, scored = score(small, collected, mined, tiny_cross_encoder, tmp_path, candidates=6)
    texts = dict(zip(small.ids.to_pylist(), small.passages.to_pylist(), strict=True))
    for line in scored[::23]:
        alone = [float(tiny_cross_encoder.score([line["query"]], [texts[p]])[0]) for p in line["passage_ids"]]
        np.testing.assert_allclose(line["teacher_scores"], alone, atol=1e-5)
    assert output.manifest["counts"]["pairs"] == 6 * len(scored)
    assert 0 < output.manifest["counts"]["truncated"]["teacher"] <= 1
    assert output.manifest["settings"]["members"]["teacher"]["weights"]


@pytest.mark.slow
def test_an_ensemble_keeps_the_members_raw_scores(small, collected, mined, tiny_cross_encoder, tmp_path):
    teacher = Ensemble({"fusion": RunFusion(), "cross": tiny_cross_encoder}, {"fusion": 3.0, "cross": 1.0})
    _, scored = score(small, collected, mined, teacher, tmp_path)
    raw = {n: np.concatenate([r[f"scores.{n}"] for r in scored]).astype(np.float64) for n in ("fusion", "cross")}
    scaled = {n: np.clip((s - np.percentile(s, 1)) / np.ptp(np.percentile(s, [1, 99])), 0, 1) for n, s in raw.items()}
    together = np.concatenate([r["teacher_scores"] for r in scored])
    np.testing.assert_allclose(together, 0.75 * scaled["fusion"] + 0.25 * scaled["cross"], atol=1e-6)
    alone = score(small, collected, mined, tiny_cross_encoder, tmp_path)[1]
    assert dict(zip(scored[0]["passage_ids"], scored[0]["scores.cross"], strict=True)) == pytest.approx(
        dict(zip(alone[0]["passage_ids"], alone[0]["teacher_scores"], strict=True)), abs=1e-6
    )


def test_the_ranks_of_the_positives_are_those_in_the_runs(small, collected, mined, tmp_path):
    _, scored = score(small, collected, mined, RunFusion(), tmp_path)
    ids = small.ids.to_pylist()
    run = rows(mined, "run.bm25.parquet")
    for line, hits in zip(scored, run, strict=True):
        found = [i + 1 for i, r in enumerate(hits["rows"]) if ids[r] in line["positive_ids"]]
        assert line["rank.bm25"] == (found[0] if found else None)


def test_a_weight_for_nobody_is_refused(small, collected, mined, tmp_path):
    with pytest.raises(InputError, match=r"the retriever is 'bm52'.*Did you mean 'bm25'"):
        score(small, collected, mined, RunFusion({"bm52": 1.0}), tmp_path)
    with pytest.raises(InputError, match="the member is 'b'"):
        Ensemble({"a": RunFusion()}, {"b": 1.0})


# filter, split


def scored_table(*lines):
    """(group, type, positives, passage ids, scores, rank)."""
    names = ["group", "query_id", "query", "query_type", "positive_ids", "passage_ids", "teacher_scores", "rank.r"]
    made = [
        {
            "group": g,
            "query_id": f"q{n}",
            "query": f"query number {n}",
            "query_type": k,
            "positive_ids": p,
            "passage_ids": ids,
            "teacher_scores": s,
            "rank.r": rank,
        }
        for n, (g, k, p, ids, s, rank) in enumerate(lines)
    ]
    schema = pa.schema(
        [
            *QUERIES,
            ("passage_ids", pa.list_(pa.string())),
            ("teacher_scores", pa.list_(pa.float32())),
            ("rank.r", pa.int64()),
        ]
    )
    assert schema.names == names
    return pa.Table.from_pylist(made, schema=schema)


ABC = ["a", "b", "c"]


def test_each_filter_takes_what_it_should(tmp_path):
    table = scored_table(
        ("s", "web", ["a"], ABC, [0.9, 0.5, 0.1], 1),
        ("s", "web", ["a"], ABC, [0.9, 0.5, 0.1], 3),
        ("s", "web", ["a"], ABC, [0.9, 0.5, 0.1], None),
        ("s", "web", ["b"], ABC, [0.9, 0.5, 0.1], 1),
        ("s", "web", ["a"], ["a", "b"], [0.8, 0.4], 1),
        ("s", "web", ["a"], ABC, [0.3, 0.2, 0.1], 1),
        ("s", "web", ["a"], ABC, [0.95, 0.6, 0.2], 2),
        ("h", "human", ["c"], ABC, [0.2, 0.1, 0.0], None),
    )
    scored = written(tmp_path, "scored", table)
    options = {"consistency_rank": 2, "min_length": 3, "min_top_quantile": 0.6, "keep": 2, "exempt": ["h"]}
    output = run_stage(Filter(scored, **options), tmp_path)
    kept = rows(output, "filtered.parquet")
    assert [r["query_id"] for r in kept] == ["q0", "q6", "q7"]
    assert all(r["passage_ids"] == ["a", "b"] and len(r["teacher_scores"]) == 2 for r in kept)
    assert output.manifest["counts"]["by_type"] == {
        "s": {"web": {"kept": 2, "inconsistent": 2, "not first": 1, "short list": 1, "low score": 1}},
        "h": {"human": {"kept": 1}},
    }
    off = {"consistency_rank": None, "teacher_first": False, "min_length": 1, "min_top_quantile": None, "keep": None}
    nothing = pa.concat_tables([table, scored_table(("h", "human", ["c"], [], [], None))])
    empty = run_stage(Filter(written(tmp_path / "e", "scored", nothing), **options), tmp_path)
    assert empty.manifest["counts"]["by_type"]["h"] == {"human": {"kept": 1, "short list": 1}}
    graded = run_stage(Filter(written(tmp_path / "g", "scored", nothing), **off | {"min_top_score": 0.8}), tmp_path)
    assert [r["query_id"] for r in rows(graded, "filtered.parquet")] == ["q0", "q1", "q2", "q3", "q4", "q6"]
    everything = run_stage(Filter(scored, **off), tmp_path)
    assert pq.read_table(everything.file("filtered.parquet")).equals(table)


def test_consistency_can_ask_for_any_or_all_of_chosen_retrievers(tmp_path):
    table = scored_table(*[("s", "web", ["a"], ABC, [0.9, 0.5, 0.1], 1)] * 3)
    table = table.append_column("rank.s", pa.array([9, None, 2], pa.int64()))
    scored = written(tmp_path, "scored", table)
    kept = {}
    for require, chosen in (("any", None), ("all", None), ("any", ["s"])):
        stage = Filter(
            scored,
            consistency_rank=5,
            consistency_require=require,
            consistency_retrievers=chosen,
            min_length=2,
            min_top_quantile=None,
        )
        kept[require, bool(chosen)] = run_stage(stage, tmp_path).manifest["counts"]["kept"]
    assert kept == {("any", False): 3, ("all", False): 1, ("any", True): 1}
    with pytest.raises(InputError, match="the retriever is 'x'"):
        run_stage(Filter(scored, consistency_retrievers=["x"]), tmp_path)


@pytest.fixture
def filtered(small_scifact, tmp_path):
    test = load_evaluation_set(str(small_scifact), "test")
    query_id, query = next(iter(test.queries.items()))
    relevant = sorted(test.relevant()[query_id])
    lines = [("h", "human", relevant, [*relevant, "b"], [1.0, 0.5], 1)]
    lines += [("s", "web", relevant, [*relevant, "b"], [1.0, 0.5], 1)] * 3
    lines += [("s", "web", [f"x{n}"], ["a", "b"], [1.0, 0.5], 1) for n in range(200)]
    table = scored_table(*lines)
    queries = table["query"].to_pylist()
    queries[2] = query + " indeed"
    table = table.set_column(2, "query", pa.array(queries))
    return written(tmp_path, "filtered", table), test


def split(filtered, tmp_path, **options):
    output, test = filtered
    options = {"guards": {"h": "drop", "s": "drop"}, "judged": ["h"], "dev_fraction": 0.3, **options}
    return run_stage(Split(output, output, "small", [(test, "0")], **options), tmp_path)


def test_a_human_query_must_not_share_a_passage_and_no_query_be_a_near_copy(filtered, tmp_path):
    output = split(filtered, tmp_path)
    leaks = [json.loads(line) for line in output.file("leaks.jsonl").read_text().splitlines()]
    assert [(leak["query_id"], leak["reason"]) for leak in leaks] == [
        ("q0", "shares a relevant passage with"),
        ("q2", "is nearly equal to"),
    ]
    lists = [
        x for part in ("s.train", "s.dev", "h.train", "h.dev") for x in read_query_lists(output.file(f"{part}.parquet"))
    ]
    assert {x.query_id for x in lists} == {f"q{n}" for n in range(204)} - {"q0", "q2"}
    assert read_metadata(output.file("s.dev.parquet"))["split"] == "dev"


def test_train_and_dev_are_split_by_passage(filtered, tmp_path):
    output = split(filtered, tmp_path, guards={"h": "off", "s": "off"})
    parts = {p: list(read_query_lists(output.file(f"{p}.parquet"))) for p in ("s.train", "s.dev", "h.train", "h.dev")}
    sources = {
        side: {i for p in (f"s.{side}", f"h.{side}") for x in parts[p] for i in x.positive_ids}
        for side in ("train", "dev")
    }
    assert not sources["train"] & sources["dev"] and 0.2 < len(sources["dev"]) / 201 < 0.4
    assert sum(map(len, parts.values())) == 204


def test_some_lists_are_kept_to_evaluate_on(filtered, tmp_path):
    guards = {"h": "off", "s": "off"}
    before, after = (split(filtered, tmp_path, guards=guards, test_fraction=share) for share in (0.0, 0.2))
    assert not list(before.folder.glob("*.test.parquet"))
    dev, train, test = (list(read_query_lists(after.file(f"s.{part}.parquet"))) for part in ("dev", "train", "test"))
    assert dev == list(read_query_lists(before.file("s.dev.parquet")))  # the share of test is taken from train
    assert len(dev) + len(train) + len(test) == 203 and 0.1 < len(test) / 203 < 0.3
    of_test = {i for x in test for i in x.positive_ids}
    assert not of_test & {i for x in (*dev, *train) for i in x.positive_ids}
    with pytest.raises(InputError, match="together they must not be more than 1"):
        split(filtered, tmp_path, guards=guards, test_fraction=0.8)


def test_what_else_is_in_the_lists_moves_no_passage(tmp_path, small_scifact):
    test = load_evaluation_set(str(small_scifact), "test")
    single = [("s", "web", [f"x{n}"], ["a", "b"], [1.0, 0.5], 1) for n in range(300)]
    judged = [("h", "human", [f"x{n}", f"x{n + 1}"], ["a", "b"], [1.0, 0.5], 1) for n in range(0, 100, 2)]
    bound = [row[2] for row in judged]
    sides = []
    for number, lines in enumerate((single, single[:150] + judged, judged)):
        output = written(tmp_path / str(number), "filtered", scored_table(*lines))
        options = {"guards": {"h": "drop", "s": "drop"}, "judgements": bound, "dev_fraction": 0.4}
        done = run_stage(Split(output, output, "small", [(test, "0")], **options), tmp_path)
        side = {}
        for part in ("train", "dev"):
            for group in ("h", "s"):
                for x in read_query_lists(done.file(f"{group}.{part}.parquet")):
                    side |= dict.fromkeys(x.positive_ids, part)
        sides.append(side)
    assert len(sides[0]) == 300 and set(sides[0].values()) == {"train", "dev"}
    assert sides[1].items() <= sides[0].items() and sides[2].items() <= sides[0].items()


def test_a_human_query_from_a_file_is_guarded_as_a_judged_one(filtered, tmp_path):
    found = split(filtered, tmp_path, judged=[])
    assert '"q0"' in found.file("leaks.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "near", "reason"),
    [
        (str.upper, None, "shares the text of a relevant passage with"),
        (lambda text: text + " And more.", None, None),
        (lambda text: text + " And more.", 0.8, "shares a near copy of a relevant passage with"),
    ],
)
def test_a_copy_of_a_relevant_passage_is_a_leak(filtered, tmp_path, change, near, reason):
    _, test = filtered
    relevant = sorted(test.relevant()[next(iter(test.queries))])
    ids, titles, texts = (getattr(test.corpus, name).to_pylist() for name in ("ids", "titles", "texts"))
    copies = Corpus("copies", *(pa.array(c) for c in ([f"c{i}" for i in ids], titles, [change(t) for t in texts])))
    lines = [(group, kind, [f"c{relevant[0]}"], ["a"], [1.0], 1) for group, kind in (("h", "human"), ("s", "web"))]
    output = written(tmp_path, "filtered", scored_table(*lines))
    options = {"guards": {"h": "drop", "s": "drop"}, "near_passages": near, "corpus": copies}
    done = run_stage(Split(output, output, "copies", [(test, "0")], **options), tmp_path)
    leaks = [json.loads(line) for line in done.file("leaks.jsonl").read_text().splitlines()]
    assert [(leak["group"], leak["reason"]) for leak in leaks] == ([("h", reason)] if reason else [])


def test_a_leak_can_fail_the_run(filtered, tmp_path):
    with pytest.raises(InputError, match=r"'q0' of h .* shares a relevant passage with the evaluation query"):
        split(filtered, tmp_path, guards={"h": "fail", "s": "drop"})
    with pytest.raises(InputError, match=r"'q2' of s .* is nearly equal to"):
        split(filtered, tmp_path, guards={"h": "drop", "s": "fail"})
    with pytest.raises(InputError, match=r"'dorp'.*Did you mean 'drop'"):
        split(filtered, tmp_path, guards={"h": "dorp"})


def test_a_query_of_nearly_the_same_meaning_is_caught_by_embeddings(filtered, tiny_encoder, tmp_path):
    found = split(filtered, tmp_path, jaccard=1.1, cosine=0.9999, encoder=tiny_encoder, cache_dir=tmp_path / "cache")
    assert found.manifest["counts"]["left out by the leak guard"] >= 1  # the shared passage at least
    lenient = split(
        filtered, tmp_path, jaccard=1.1, cosine=-1.0 + 1.001, encoder=tiny_encoder, cache_dir=tmp_path / "cache"
    )
    assert lenient.manifest["counts"]["left out by the leak guard"] == 204
    reasons = {json.loads(line)["reason"] for line in lenient.file("leaks.jsonl").read_text().splitlines()}
    assert reasons == {"shares a relevant passage with", "means nearly the same as"}
