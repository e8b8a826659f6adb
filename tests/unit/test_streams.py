"""What is read in pieces, or sorted on the disk, is what it would be in memory."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.corpus import Corpus, load_corpus
from datamodules.hits import Hits
from datamodules.pipeline import query_choice, searchers
from datamodules.pipeline.searchers import Bm25
from datamodules.pipeline.stages import deduplicate, mine, queries, score, split
from datamodules.pipeline.stages import filter as filter_stage
from datamodules.pipeline.stages.deduplicate import Deduplicate
from datamodules.pipeline.stages.filter import Filter
from datamodules.pipeline.stages.mine import Mine, positive_rows
from datamodules.pipeline.stages.queries import CollectQueries
from datamodules.pipeline.stages.score import Score
from datamodules.pipeline.stages.split import Split
from datamodules.pipeline.stages.stage import run_stage, stage_folder
from datamodules.pipeline.stages.student import Student
from datamodules.storage import parquet
from datamodules.storage.parquet import ParquetRows, regrouped
from datamodules.storage.sorted_texts import SortedTexts
from datamodules.streamed_quantiles import streamed_quantiles
from datamodules.text.near_texts import NearTexts, band_hashes, groups_with_bands_in_common
from datamodules.text.words import count_characters, normalize_texts
from experiments.benchmarks.made_up import MadeUpSearch, write_corpus
from retriever.search import merge_hits
from retriever.teachers import Ensemble, RunFusion

SHARES = [0, 0.01, 0.25, 1 / 3, 0.5, 0.99, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101, 5000])
def test_streamed_quantiles_are_numpys_to_the_bit(count):
    random = np.random.default_rng(count)
    kinds = {
        "any": random.standard_normal(count) * 10.0 ** random.integers(-30, 30, count),
        "ties": random.integers(-2, 3, count) * (-0.0 if count == 1 else 1.0),
        "narrow": 1e6 + random.random(count),
    }
    kinds = {name: values.astype(np.float32) for name, values in kinds.items()}

    def read():
        for part in range(3):
            yield from ((name, values[part::3]) for name, values in kinds.items())
        yield "nothing", np.zeros(0, np.float32)

    found = streamed_quantiles(read, SHARES)
    assert found.keys() == kinds.keys()
    for name, values in kinds.items():
        assert found[name] == np.quantile(values.astype(np.float64), SHARES).tolist()


def test_rows_of_a_file_and_tables_cut_anew_are_the_whole(tmp_path):
    table = pa.table({"n": pa.array(range(50)), "texts": pa.array([["x"] * (n % 4) for n in range(50)])})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    rows = ParquetRows(tmp_path / "t.parquet")
    assert len(rows) == 50 and len(rows.rows(20, 20)) == 0
    for start, stop in ((0, 50), (3, 5), (6, 30), (49, 99), (48, 49), (0, 1)):
        assert rows.rows(start, stop).equals(table.slice(start, stop - start).combine_chunks())
    assert ParquetRows(tmp_path / "t.parquet", ["n"]).rows(7, 9).to_pydict() == {"n": [7, 8]}
    parts = [table.slice(0, 3), table.slice(3, 0), table.slice(3, 30), table.slice(33)]
    cut = list(regrouped(parts, 20))
    assert [len(part) for part in cut] == [20, 20, 10] and pa.concat_tables(cut).equals(table)
    assert list(regrouped([], 20)) == []


def test_texts_are_sorted_as_python_sorts_them(tmp_path):
    texts = dict(enumerate(["b", "ab", "a", "ab", "é", "漢字", "😀", "￿", "z", "", "ba"]))
    with SortedTexts(tmp_path) as stored:
        stored.append(texts.items())
        for reverse, read in ((False, str), (True, lambda text: text[::-1])):
            order = sorted(texts, key=lambda n: (read(texts[n]), -n), reverse=True)
            assert list(stored.descending(reverse)) == [(n, read(texts[n])) for n in order]
        assert stored.read([5, 0, 5]) == [texts[n] for n in (5, 0, 5)]


def plainly_deduplicated(texts, least, threshold):
    """Row → (reason, the one that stays), all in memory, by sorting and by one index of everything that stays."""
    found, rows = {}, [row for row, text in enumerate(texts) if count_characters(text) >= least]
    for read in (str, lambda text: text[::-1]):
        stays = None
        for row in sorted((r for r in rows if r not in found), key=lambda r: (read(texts[r]), -r), reverse=True):
            if stays is not None and read(texts[stays]).startswith(read(texts[row])):
                found[row] = ("equal" if texts[row] == texts[stays] else "contained", stays)
            else:
                stays = row
    kept = NearTexts(threshold)
    for row in (r for r in rows if r not in found):
        [hashed] = kept.hashed([texts[row]])
        near = kept.find(texts[row], hashed)
        if near is None:
            kept.add(row, texts[row], hashed)
        else:
            found[row] = ("nearly equal", near[0])
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """600 made-up passages, of which some are copies, and copies of copies."""
    corpus = load_corpus(write_corpus(tmp_path_factory.mktemp("made"), 500, 2))
    texts = corpus.passages.to_pylist()
    random = np.random.default_rng(0)
    for row in random.integers(0, 500, 60):
        words = texts[row].split()
        words[random.integers(len(words))] = "other"
        texts += [" ".join(words), " ".join(words[:-9])]
    texts += ["漢字かな" * 9, "漢字かな" * 8, "too few", ""]
    return Corpus("many", pa.array([f"p{n}" for n in range(len(texts))]), pa.array([""] * len(texts)), pa.array(texts))


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_blocks_on_the_disk_find_what_one_index_in_memory_finds(many, threshold, tmp_path, monkeypatch):
    expected = plainly_deduplicated(normalize_texts(many.passages.to_pylist()), 10, threshold)
    assert {reason for reason, _ in expected.values()} == {"equal", "contained", "nearly equal"}
    files = []
    for size in (37, 10_000):
        monkeypatch.setattr(deduplicate, "_BLOCK", size)
        output = run_stage(Deduplicate(many, near_jaccard=threshold), tmp_path / str(size))
        files.append([output.file(f"{name}.parquet").read_bytes() for name in ("passages", "removed")])
        removed = output.table("removed.parquet").to_pylist()
        assert {r["passage_id"]: r["reason"] for r in removed if r["kept_id"]} == {
            f"p{row}": reason for row, (reason, _) in expected.items()
        }
        for row in removed:
            last = int(row["passage_id"][1:])
            while last in expected:
                last = expected[last][1]
            assert row["kept_id"] == (f"p{last}" if row["reason"] != "under 10 characters" else None)
        assert not list(output.folder.glob("**/.compared*"))
    assert files[0] == files[1]


def test_a_search_for_copies_that_was_killed_goes_on(many, tmp_path, monkeypatch):
    whole = run_stage(Deduplicate(many), tmp_path / "whole")
    monkeypatch.setattr(deduplicate, "near_duplicates", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(deduplicate.tempfile, "TemporaryDirectory", Kept)
    with pytest.raises(KeyboardInterrupt):
        run_stage(Deduplicate(many), tmp_path / "killed")
    folder = stage_folder(Deduplicate(many), tmp_path / "killed")
    assert list(folder.glob(".compared*")) and list((folder / "blocks").iterdir())
    monkeypatch.undo()
    made = Deduplicate(many)
    made.run_block = None  # its blocks are done
    again = run_stage(made, tmp_path / "killed")
    for name in ("passages.parquet", "removed.parquet"):
        assert again.file(name).read_bytes() == whole.file(name).read_bytes()
    assert not list(folder.glob(".compared*"))


class Kept:
    """A temporary folder that a kill leaves."""

    def __init__(self, dir, prefix, suffix):
        self.path = dir / f"{prefix}1{suffix}"

    def __enter__(self):
        self.path.mkdir()
        return str(self.path)

    def __exit__(self, *_):
        pass


def test_groups_hold_every_pair_that_the_index_looks_at():
    random = np.random.default_rng(1)
    words = [f"w{n}" for n in range(40)]
    texts = [" ".join(random.choice(words, 12)) for _ in range(30)]
    texts += [" ".join(text.split()[:-1]) for text in texts for _ in range(2)]
    index = NearTexts(0.3)
    hashed = index.hashed(texts)
    for number, each in enumerate(hashed):
        index._index.insert(number, each)
    bands = band_hashes(texts, 0.3).T
    group_of = {}
    rows = np.arange(len(texts))
    for number, group in enumerate(groups_with_bands_in_common(list(bands), rows, 1)):
        assert (np.diff(group) > 0).all() and len(group) > 1
        group_of |= dict.fromkeys(group.tolist(), number)
    for number, each in enumerate(hashed):
        for other in index._index.query(each):
            assert other == number or group_of[other] == group_of[number]
    together = list(groups_with_bands_in_common(list(bands), rows, 10**6))
    assert len(together) == 1 and set(together[0].tolist()) == set(group_of)
    assert list(groups_with_bands_in_common(list(bands), rows[:0], 5)) == []


class Sliced(MadeUpSearch):
    """The same hits, for another number of queries at a time."""

    def __init__(self, positives, seed, size):
        super().__init__(positives, seed)
        self.size = size

    def search(self, *asked):
        [hits] = super().search(*asked)
        for start in range(0, len(hits.rows), self.size):
            yield Hits(hits.scores[start : start + self.size], hits.rows[start : start + self.size])


@pytest.fixture(scope="module")
def prepared(many, tmp_path_factory):
    """Prepare lists of the passages, in slices of a size, on made-up hits: file → content, and counts."""

    def prepare(monkeypatch, size):
        folder = tmp_path_factory.mktemp("prepared")
        for module in (queries, query_choice, mine, filter_stage, split):
            monkeypatch.setattr(module, "BLOCK_ROWS", size)
        for module, name in ((parquet, "_DECODED"), (query_choice, "_SORTED"), (score, "_WRITTEN")):
            monkeypatch.setattr(module, name, size)
        sentences = {"source": "sentences", "limit": 400, "quality": True}
        groups = {"sentence": sentences, "keywords": {"source": "keywords"}}
        stages = [run_stage(CollectQueries(many, "many", folder, groups, None), folder)]
        rows = positive_rows(stages[0].table("queries.parquet"), many)
        searches = {f"s{n}": Sliced(np.array([r[0] for r in rows]), n, size + 3) for n in (1, 2)}
        copies = run_stage(Deduplicate(many), folder)
        stages.append(run_stage(Mine(many, stages[0], copies, searches, depth=9, drop_duplicates=True), folder))
        weights = ({"s1": 1.0}, {"s1": 1.0, "s2": 2.0})
        teacher = Ensemble({f"t{n}": RunFusion(weight) for n, weight in enumerate(weights)})
        stages.append(run_stage(Score(many, *stages, teacher, candidates=11, block_size=17), folder))
        scored, quantile = stages[-1], {"min_length": 3, "min_top_quantile": 0.97}
        stages.append(run_stage(Filter(scored, consistency_rank=4, **quantile, exempt=["keywords"], keep=5), folder))
        student = Student("s2", stages[1], many)
        stages.append(run_stage(Filter(scored, student=student, teacher_first=False, **quantile), folder))
        stages += [
            run_stage(Split(each, scored, "many", [], guards={"sentence": "off"}, dev_fraction=0.3), folder)
            for each in stages[-2:]
        ]
        monkeypatch.undo()
        content = {
            f"{number} {path.name}": pq.read_table(path)
            for number, stage in enumerate(stages)
            for path in stage.folder.glob("*.parquet")
        }
        return content, [stage.manifest["counts"] for stage in stages]

    return prepare


@pytest.mark.slow
def test_slices_of_any_size_make_the_same_lists(prepared, monkeypatch):
    whole, small = prepared(monkeypatch, 10_000), prepared(monkeypatch, 37)
    assert small[1] == whole[1]
    assert small[0].keys() == whole[0].keys() and len(whole[0]) > 7
    for name, table in whole[0].items():
        assert small[0][name].equals(table), name
    kept = whole[1][3]
    assert 0 < kept["kept"] < kept["lists"] and kept["by_type"]["sentence"]["sentence"]["low score"]


@pytest.mark.slow
def test_the_scores_of_an_ensemble_are_scaled_over_all_of_them(prepared, monkeypatch):
    content, _ = prepared(monkeypatch, 37)
    scored = content["2 scored.parquet"]
    raw = {name: scored[f"scores.{name}"].combine_chunks().flatten().to_numpy() for name in ("t0", "t1")}
    expected = Ensemble({name: RunFusion() for name in raw}).combine(raw)
    assert (scored["teacher_scores"].combine_chunks().flatten().to_numpy() == expected).all()


def test_bm25_in_parts_finds_what_one_index_finds(many, monkeypatch):
    texts = many.passages.to_pylist()
    asked = pa.array([*texts[:40:4], "漢字かな 漢字", "unheardof", "", "too few too"])
    [whole] = Bm25().search(many, range(len(many)), asked, 9)
    monkeypatch.setattr(searchers, "_INDEXED", 7)
    monkeypatch.setattr(searchers, "SEARCHED", 5)
    found = []
    for part in Bm25().parts(len(many)):
        hits = list(Bm25().search(many, part, asked, 9))
        found.append(tuple(np.concatenate([getattr(h, name) for h in hits]) for name in ("scores", "rows")))
    scores, rows = merge_hits(found, 9)
    assert len(found) > 80 and np.array_equal(scores, whole.scores)
    alone = np.array([[(line == value).sum() == 1 and n < 8 for n, value in enumerate(line)] for line in scores])
    assert alone.sum() > 40 and np.array_equal(rows[alone], whole.rows[alone])
    assert ((rows < 0) == np.isinf(scores)).all()
