"""What every stage gets: blocks that any process may take, a manifest, and nothing done twice."""

import json
import logging

import pyarrow as pa
import pytest

from datamodules.pipeline.stages.stage import Shard, Stage, find_output, run_stage, stage_folder, table_writer
from retriever.errors import InputError

pytestmark = pytest.mark.slow

SCHEMA = pa.schema([("number", pa.int64())])


class Squares(Stage):
    """Blocks of squares; fails where told, as a kill would."""

    name = "squares"

    def __init__(self, blocks=5, fails_at=None, factor=1):
        self.blocks, self.fails_at, self.factor, self.done = blocks, fails_at, factor, []

    def settings(self):
        return {"blocks": self.blocks, "factor": self.factor}

    def inputs(self):
        return {"nothing": "0"}

    def block_sizes(self):
        return [2] * self.blocks

    def run_block(self, number, advance):
        if number == self.fails_at:
            raise KeyboardInterrupt
        self.done.append(number)
        advance(2)
        return pa.table({"number": [self.factor * number**2, self.factor * number**2 + 1]}, schema=SCHEMA)

    def finish(self, blocks, folder):
        rows = 0
        with table_writer(folder / "squares.parquet", SCHEMA) as append:
            for table in blocks:
                append(table)
                rows += len(table)
        return {"rows": rows}


def content(output):
    return output.file("squares.parquet").read_bytes()


@pytest.fixture
def whole(tmp_path):
    return content(run_stage(Squares(), tmp_path / "whole"))


def test_a_second_run_does_nothing_and_a_new_setting_gets_a_folder_of_its_own(tmp_path):
    first = run_stage(Squares(), tmp_path)
    again = Squares()
    assert run_stage(again, tmp_path).folder == first.folder and again.done == []
    other = run_stage(Squares(factor=3), tmp_path)
    assert other.folder != first.folder and content(first) != content(other)
    assert first.manifest["counts"] == {"rows": 10} and first.manifest["blocks"] == 5
    assert set(first.manifest) >= {"key", "settings", "inputs", "outputs", "versions", "seconds_of_work", "started"}


@pytest.mark.parametrize("fails_at", range(5))
def test_a_kill_loses_one_block(tmp_path, whole, fails_at):
    killed, resumed = Squares(fails_at=fails_at), Squares()
    with pytest.raises(KeyboardInterrupt):
        run_stage(killed, tmp_path)
    assert content(run_stage(resumed, tmp_path)) == whole
    assert sorted(killed.done + resumed.done) == list(range(5))


@pytest.mark.parametrize(
    "shards", [["0/3", "1/3", "2/3"], ["2/3", "0/3", "1/3"], ["0/7", *(f"{i}/7" for i in range(1, 7))]]
)
def test_shards_leave_the_same_file(tmp_path, whole, shards, caplog):
    caplog.set_level(logging.INFO)
    stages = [Squares() for _ in shards]
    outputs = [run_stage(stage, tmp_path, Shard.parse(s)) for stage, s in zip(stages, shards, strict=True)]
    assert sorted(number for s in stages for number in s.done) == list(range(5))
    finished = [o for o in outputs if o is not None]
    assert content(finished[0]) == whole
    assert outputs[0] is None  # the first one had left blocks to others
    assert "blocks are done already" in caplog.text and "cut off" not in caplog.text


def test_a_shard_without_a_count_takes_what_nobody_has(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run_stage(Squares(fails_at=3), tmp_path, Shard.parse(0))
    other = Squares()
    assert content(run_stage(other, tmp_path, Shard.parse(1))) == whole and sorted(other.done) == [3, 4]


def test_a_missing_or_torn_output_is_made_again(tmp_path, whole):
    output = run_stage(Squares(), tmp_path)
    output.file("squares.parquet").write_bytes(b"torn")
    assert find_output(Squares(), tmp_path) is None
    assert content(run_stage(Squares(), tmp_path)) == whole
    manifest = json.loads((stage_folder(Squares(), tmp_path) / "manifest.json").read_text())
    assert manifest["outputs"]["squares.parquet"]["bytes"] == len(whole)


@pytest.mark.parametrize("text", ["3/3", "a", "1/", "-1", "0/0", "1/2/3", 1.5])
def test_a_bad_shard_is_refused(text):
    with pytest.raises(InputError, match="shard is"):
        Shard.parse(text)


@pytest.mark.parametrize("blocks", [0, 1, 4, 11])
def test_every_block_has_its_turn(blocks):
    assert all(sorted(Shard(i).order(blocks)) == list(range(blocks)) for i in range(5))
    assert sorted(number for i in range(4) for number in Shard(i, 4).order(blocks)) == list(range(blocks))
