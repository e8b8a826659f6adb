"""What a configuration may say of a file of lists and of an evaluation set."""

import pytest

from datamodules.specs import (
    EvaluationSpec,
    ListFile,
    SampleSpec,
    TrainFile,
    read_evaluation_specs,
    read_list_files,
)
from retriever.errors import InputError

FILE = {"path": "lists.parquet", "corpus": "corpus"}


def test_a_file_of_lists_is_read_and_says_its_passes():
    [plain, typed] = read_list_files(
        TrainFile, [FILE, {**FILE, "weight": {"human": 2, "claim": 0.5}, "types": ["human"], "draw": 3}], "data.train"
    )
    assert plain == TrainFile("lists.parquet", "corpus") and (plain.passes("human"), plain.types) == (1.0, None)
    assert [typed.passes(kind) for kind in ("human", "claim", "other")] == [2.0, 0.5, 0.0] and typed.draw == 3
    assert read_list_files(ListFile, [plain, FILE], "data.dev")[0] is plain, "a train file is a file of lists"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (ListFile, {"draw": 3}, r"'draw' is no setting here; there are path, corpus, weight\."),
        (TrainFile, {"wieght": 1}, r"'wieght' is no setting here; .* Did you mean 'weight'\?"),
        (TrainFile, {"path": 3}, r"path is 3; it must be text\. For the text '3' quote it twice"),
        (TrainFile, {"weight": -1}, "weight is -1; it must be a finite number of at least 0"),
        (TrainFile, {"weight": {"human": "x"}}, "weight of human is 'x'; it must be a finite number of at least 0"),
        (TrainFile, {"types": "a"}, "types is 'a'; it must be a list, each of it text or null"),
        (TrainFile, {"types": []}, "types is .*; it must be a list of query types, each once"),
        (TrainFile, {"types": ["a", "a"], "draw": 4}, "types is .*; it must be a list of query types, each once"),
        (TrainFile, {"types": ["a", "b"], "draw": 1}, "draw is 1; it must be a whole number of at least 2"),
        (TrainFile, {"draw": 2.5}, "draw is 2.5; it must be a whole number"),
        (TrainFile, {"draw": 0}, "draw is 0; it must be a whole number of at least 1"),
    ],
)
def test_wrong_files_are_named(kind, change, message):
    with pytest.raises(InputError, match=rf"^data\.train\[1\](\.|: ){message}"):
        read_list_files(kind, [FILE, FILE | change], "data.train")


@pytest.mark.parametrize("value", ["lists.parquet", FILE, 3])
def test_a_file_alone_is_no_list_of_files(value):
    with pytest.raises(InputError, match=r"^data\.train is .*; it must be a list of mappings"):
        read_list_files(TrainFile, value, "data.train")
    with pytest.raises(InputError, match=r"data\.dev\[0\]: corpus is missing; it must have path and corpus"):
        read_list_files(ListFile, [{"path": "x"}], "data.dev")


def test_an_evaluation_set_is_read_with_its_split_its_name_and_its_sample():
    test, dev, lists = read_evaluation_specs(
        [
            {"path": "some/nfcorpus"},
            {"path": "some/nfcorpus", "split": "train", "name": "dev", "queries": "dev", "sample": {"size": 9}},
            {"path": "some/scifact", "lists": "l.parquet", "types": ["claim"]},
        ]
    )
    assert test == EvaluationSpec("some/nfcorpus", "test") and (test.shown_name, test.source) == ("nfcorpus", "test")
    assert (dev.shown_name, dev.source, dev.chooses) == ("dev", "dev lists", True)
    assert dev.sample == SampleSpec(size=9, depth=100, seed=1)
    assert (lists.split, lists.source, lists.chooses) == (None, "l.parquet", False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"split": "test"}, ": path is missing; it must have path"),
        ({"path": "a", "splitt": "dev"}, r": 'splitt' is no setting here; .* Did you mean 'split'\?"),
        ({"path": "a", "name": 3}, r"\.name is 3; it must be text or null\. For the text '3'"),
        ({"path": "a", "name": "b/c"}, r"\.name is 'b/c'; files are called by it"),
        ({"path": "a", "queries": "test"}, r"\.queries is 'test'; it must be 'dev' or null"),
        ({"path": "a", "split": "test", "lists": "l"}, r"\.split and lists are both given"),
        ({"path": "a", "types": ["x"]}, r"\.types are given, but no lists"),
        ({"path": "a", "lists": "l", "types": []}, r"\.types is \[\]; it must be a list of query types"),
        ({"path": "a", "sample": 5}, r"\.sample is 5; it must be a mapping with size or null"),
        ({"path": "a", "sample": {"depth": 5}}, r"\.sample: size is missing; it must have size"),
        ({"path": "a", "sample": {"size": 0}}, r"\.sample\.size is 0; it must be a whole number of at least 1"),
        ({"path": "a", "sample": {"size": 1.5}}, r"\.sample\.size is 1\.5; it must be a whole number"),
        ({"path": "a", "sample": {"size": 9, "dept": 1}}, r"\.sample: 'dept' is no .* Did you mean 'depth'\?"),
    ],
)
def test_wrong_evaluation_sets_are_named(spec, message):
    with pytest.raises(InputError, match=rf"^evaluation\.datasets\[1\]{message}"):
        read_evaluation_specs([{"path": "scifact"}, spec])


def test_two_sets_of_one_name_are_refused():
    for twins in (
        [{"path": "a/scifact"}, {"path": "b/scifact"}],
        [{"path": "scifact", "sample": {"size": 9}}, {"path": "scifact", "name": "scifact-sample"}],
    ):
        with pytest.raises(InputError, match=r"two sets have one name .* Give one a name: of its own"):
            read_evaluation_specs(twins)
