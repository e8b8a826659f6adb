"""Reading what a run wrote for Weights & Biases, without its server."""

import json
import time
from pathlib import Path

from wandb.proto import wandb_internal_pb2


def offline_records(folder):
    """All records of an offline run's file, once W&B's own process has written the last one."""
    [file] = Path(folder).glob("run-*.wandb")
    records, deadline = _records(file), time.time() + 60
    while not any(r.HasField("exit") for r in records) and time.time() < deadline:
        time.sleep(0.2)  # that process may lag behind on a busy machine
        records = _records(file)
    return records


def history(records):
    """One dictionary per logged row."""
    return [{key(i): json.loads(i.value_json) for i in r.history.item} for r in records if r.HasField("history")]


def summary(records):
    """Key → the last value."""
    return {key(i): json.loads(i.value_json) for r in records for i in r.summary.update}


def key(item):
    """The name of a history, summary or configuration item."""
    return "/".join(item.nested_key) or item.key


def _records(path):
    """LevelDB's log format (32 KiB blocks; crc, length, type) behind a 7-byte header."""
    data, position, record, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            records.append(message)
            record = b""
    return records
