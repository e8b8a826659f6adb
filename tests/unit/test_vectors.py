"""Smaller vectors: searches by int8 numbers, bits and fewer dimensions against plain NumPy."""

import numpy as np
import pytest

from callbacks.evaluation.vectors import RESCORED, PassageIndex, Vectors
from retriever.errors import InputError


def embeddings(count, width=24, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


QUERIES, PASSAGES = embeddings(7, seed=1), embeddings(300)


def ordered(scores, k):
    return np.take_along_axis(scores, np.argsort(-scores, axis=1, kind="stable")[:, :k], 1)


@pytest.mark.parametrize(
    ("name", "vectors"),
    [
        ("int8", Vectors("int8")),
        ("binary", Vectors("binary")),
        ("binary_rescored", Vectors("binary_rescored")),
        ("128", Vectors("float32", 128)),
        (128, Vectors("float32", 128)),
        ("128_int8", Vectors("int8", 128)),
        ("float32", Vectors()),
    ],
)
def test_names_are_read_and_given_back(name, vectors):
    assert Vectors.of(name) == vectors and vectors.name == str(name)


@pytest.mark.parametrize("name", ["int4", "", "0", "0_int8", "-3", "int8_128", "1.5", None, "128_", "128int8"])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match="is no form of vectors; write int8, binary"):
        Vectors.of(name)


def test_passages_as_they_are_are_searched_exactly():
    index = PassageIndex(PASSAGES, first_row=1000)
    scores, rows = index.search(QUERIES, 5)
    assert np.allclose(scores, ordered(QUERIES @ PASSAGES.T, 5), atol=1e-6)
    assert (rows >= 1000).all() and np.allclose(scores, (QUERIES[:, None] * PASSAGES[rows - 1000]).sum(2), atol=1e-6)
    assert index.costs()["bytes_per_passage"] == 96 and index.queries == 7 and index.seconds > 0
    assert PassageIndex(PASSAGES.astype(np.float16)).bytes_per_passage == 48


def test_fewer_dimensions_are_cut_and_made_unit_length_again():
    def cut(rows):
        return rows[:, :8] / np.linalg.norm(rows[:, :8], axis=1, keepdims=True)

    index = PassageIndex(PASSAGES, Vectors("float32", 8))
    assert np.allclose(index.search(QUERIES, 5)[0], ordered(cut(QUERIES) @ cut(PASSAGES).T, 5), atol=1e-6)
    assert index.bytes_per_passage == 32
    plain = PassageIndex(PASSAGES, Vectors("float32", 8), normalize=False)
    assert np.allclose(plain.search(QUERIES, 5)[0], ordered(QUERIES[:, :8] @ PASSAGES[:, :8].T, 5), atol=1e-6)
    with pytest.raises(InputError, match="25 dimensions are more than the 24"):
        PassageIndex(PASSAGES, Vectors("float32", 25))


def test_int8_is_256_steps_of_each_dimension():
    index = PassageIndex(PASSAGES, Vectors("int8"))
    low, high = PASSAGES.min(0), PASSAGES.max(0)
    steps = np.floor((PASSAGES - low) / (high - low) * 255)
    stored = low + (steps + 0.5) / 255 * (high - low)
    assert np.allclose(index.search(QUERIES, 300)[0], ordered(QUERIES @ stored.T, 300), atol=2e-3)
    assert index.bytes_per_passage == 24 and PassageIndex(PASSAGES, Vectors("int8", 8)).bytes_per_passage == 8


@pytest.mark.parametrize("width", [24, 20])
def test_bits_are_compared_by_hamming_distance_and_rescored_by_signs(width):
    queries, passages = QUERIES[:, :width], PASSAGES[:, :width]
    distances = ((queries[:, None] > 0) != (passages[None] > 0)).sum(2)
    index = PassageIndex(passages, Vectors("binary"))
    scores, rows = index.search(queries, 300)
    assert (scores == -np.take_along_axis(distances, rows, 1)).all() and (np.diff(scores, axis=1) <= 0).all()
    assert index.bytes_per_passage == 3
    signs = np.where(passages > 0, 1.0, -1.0)
    again, found = PassageIndex(passages, Vectors("binary_rescored")).search(queries, 300)
    assert (np.sort(found[:, :RESCORED]) == np.sort(rows[:, :RESCORED])).all(), "the same hits"
    assert (found[:, RESCORED:] == rows[:, RESCORED:]).all() and (np.diff(again, axis=1) <= 0).all()
    products = np.take_along_axis(queries @ signs.T, found[:, :RESCORED], 1)
    assert np.allclose(np.diff(again[:, :RESCORED]), np.diff(products), atol=1e-5)
    few = PassageIndex(passages[:9], Vectors("binary_rescored")).search(queries, 300)
    assert few[0].shape == (7, 9) and (few[0] > 0).all()


@pytest.mark.slow
def test_bits_are_those_of_sentence_transformers():
    from sentence_transformers.util import quantize_embeddings

    theirs = quantize_embeddings(PASSAGES, precision="ubinary")
    assert (PassageIndex(PASSAGES, Vectors("binary")).stored == theirs).all()
