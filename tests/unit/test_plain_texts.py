"""Plain texts in the place of query lists."""

import pytest

from datamodules.corpus import load_corpus
from datamodules.dev_lists import dev_file_beside
from datamodules.query_lists import open_list_file, open_query_lists
from retriever.batch import BatchNeeds
from retriever.errors import InputError

NEEDS = BatchNeeds(guide=True, texts_alone=True)


def test_each_line_is_a_query_and_its_passages_go_round_the_corpus(small_scifact, tmp_path):
    corpus = load_corpus(small_scifact)
    (tmp_path / "a.train.txt").write_text("".join(f"text ü {n}\n\n" for n in range(70)), encoding="utf-8")
    lists, dropped = open_list_file(tmp_path / "a.train.txt", corpus, tmp_path, "error", NEEDS)
    assert lists.queries.to_pylist() == [f"text ü {n}" for n in range(70)] and not dropped
    assert set(lists.query_types.to_pylist()) == {"text"} and len(set(lists.query_ids.to_pylist())) == 70
    assert lists.rows.tolist() == [n % 120 for n in range(140)]
    assert dev_file_beside(tmp_path / "a.train.txt") is None


def test_a_file_of_lists_is_opened_as_ever(small_scifact, small_lists, tmp_path):
    corpus = load_corpus(small_scifact)
    ours, _ = open_list_file(small_lists, corpus, tmp_path, "error", BatchNeeds())
    theirs, _ = open_query_lists(small_lists, corpus, tmp_path)
    assert ours.query_ids == theirs.query_ids and ours.source == theirs.source == small_lists


def test_texts_that_no_objective_can_read_are_refused(small_scifact, tmp_path):
    corpus, path = load_corpus(small_scifact), tmp_path / "a.txt"
    path.write_text("a text\n")
    with pytest.raises(InputError, match=r"a\.txt: plain texts.*module=embedding_regression alone"):
        open_list_file(path, corpus, tmp_path, "error", BatchNeeds())
    path.write_text("\n \n")
    for _ in range(2):
        with pytest.raises(InputError, match="no text in it"):
            open_list_file(path, corpus, tmp_path, "error", NEEDS)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not in UTF-8"):
        open_list_file(path, corpus, tmp_path, "error", NEEDS)
