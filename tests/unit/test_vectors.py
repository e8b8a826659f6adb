"""Smaller vectors: searches by int8 numbers, bits and fewer dimensions against plain NumPy."""

import tracemalloc

import numpy as np
import pytest
import torch.distributed as dist

from callbacks.evaluation.vectors import RESCORED, PassageIndex, Vectors
from helpers.processes import free_port, on_two_ranks
from retriever.errors import InputError
from retriever.search import merge_hits


def embeddings(count, width=24, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


QUERIES, PASSAGES = embeddings(7, seed=1), embeddings(300)
HALVES = (slice(0, 150), slice(150, 300))


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
    mixed = PassageIndex(PASSAGES, Vectors("float32", 8), normalize=False, normalize_queries=True)
    assert np.allclose(mixed.search(QUERIES, 5)[0], ordered(cut(QUERIES) @ PASSAGES[:, :8].T, 5), atol=1e-6)
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


def test_memory_of_rescoring_does_not_grow_with_the_queries():
    index, queries = PassageIndex(embeddings(300, 256), Vectors("binary_rescored")), embeddings(1024, 256)
    tracemalloc.start()
    found = index.search(queries, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1024 * 100 * 256 * 4 / 2, "the unpacked bits of all hits alone take twice that"
    assert (found[1][-7:] == index.search(queries[-7:], 100)[1]).all(), "blocks are put together in their order"


def test_rescored_hits_of_two_parts_are_on_one_scale():
    parts = [PassageIndex(PASSAGES[s], Vectors("binary_rescored"), first_row=s.start) for s in HALVES]
    rows = merge_hits([part.search(QUERIES, RESCORED) for part in parts], RESCORED)[1]
    products = np.take_along_axis(QUERIES @ np.where(PASSAGES > 0, 1.0, -1.0).T, rows, 1)
    assert (np.diff(products, axis=1) <= 1e-5).all()


def search_a_part(rank, folder, port):
    """One of two ranks, which have half the passages each, and then all and none."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name, parts in {"halves": HALVES, "none": (slice(0, 300), slice(300, 300))}.items():
        index = PassageIndex(PASSAGES[parts[rank]], Vectors("int8"), first_row=parts[rank].start)
        np.savez(f"{folder}/{name}{rank}", *index.search(QUERIES, 300))
    dist.destroy_process_group()


@pytest.mark.slow
def test_int8_figures_do_not_depend_on_the_number_of_ranks(tmp_path):
    on_two_ranks(search_a_part, tmp_path, free_port())
    scores, rows = PassageIndex(PASSAGES, Vectors("int8")).search(QUERIES, 300)
    for name in ("halves", "none"):
        found = [tuple(np.load(tmp_path / f"{name}{rank}.npz").values()) for rank in (0, 1)]
        merged = merge_hits([part for part in found if part[0].size], 300)
        assert np.allclose(merged[0], scores, atol=1e-6) and (merged[1] == rows).mean() > 0.99


@pytest.mark.slow
def test_bits_are_those_of_sentence_transformers():
    from sentence_transformers.util import quantize_embeddings

    theirs = quantize_embeddings(PASSAGES, precision="ubinary")
    assert (PassageIndex(PASSAGES, Vectors("binary")).stored == theirs).all()
