"""What a resumed run takes over of its earlier parts' tables: each step's work once."""

import pytest

from callbacks.reporting.logged_before import logged_before
from retriever.errors import InputError

HEAD = "step,train/loss,val/d/ndcg@10\n"


def table(steps, validated=(), of=0.0):
    """Lines as a part logs them: validations before their step's checkpoint, train rows of each step."""
    lines = {step: f"{step},{step + of},\n" for step in steps}
    return HEAD + "".join((f"{s},,{s / 100}\n" if s in validated else "") + line for s, line in lines.items())


def steps(rows):
    return [(step, *row) for step, row in rows]


def test_rows_behind_the_checkpoint_are_left_out(tmp_path):
    (tmp_path / "metrics-part1.csv").write_text(table(range(6), (0, 4)))
    rows = logged_before(tmp_path, 4)
    train, val = "train/loss", "val/d/ndcg@10"
    assert steps(rows) == [(0, val), *((s, train) for s in range(4)), (4, val)]
    assert rows[-1] == (4, {val: 0.04}) and rows[2] == (1, {train: 1.0})
    assert logged_before(tmp_path, 0) == [(0, {val: 0.0})] and logged_before(tmp_path / "none", 4) == []


def test_what_a_second_part_did_again_counts_once(tmp_path):
    (tmp_path / "metrics-part1.csv").write_text(table(range(6), (0, 4)))
    (tmp_path / "metrics-part2.csv").write_text(table(range(4, 11), (8,), of=0.5))
    (tmp_path / "metrics-part10.csv").write_text(HEAD)  # killed before it logged anything
    rows = logged_before(tmp_path, 8)
    train = [(step, row["train/loss"]) for step, row in rows if "train/loss" in row]
    assert train == [*((s, float(s)) for s in range(4)), *((s, s + 0.5) for s in range(4, 8))]
    assert [step for step, row in rows if "val/d/ndcg@10" in row] == [0, 4, 8]
    (tmp_path / "metrics-part11.csv").write_text(table(range(3), (0,)))  # a run anew in the old folder
    assert [step for step, row in logged_before(tmp_path, 2) if "val/d/ndcg@10" in row] == [0]


def test_a_line_that_a_full_disk_has_cut_is_left_out(tmp_path):
    (tmp_path / "metrics-part1.csv").write_text(HEAD + "0,1.0,\n1,2.")
    assert logged_before(tmp_path, 5) == [(0, {"train/loss": 1.0})]
    (tmp_path / "metrics-part1.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match=r"metrics-part1\.csv"):
        logged_before(tmp_path, 5)
