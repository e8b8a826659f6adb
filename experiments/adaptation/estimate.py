"""How long an adaptation takes on this machine, by a measurement of a few seconds."""

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datamodules.pipeline.free_queries import sentences
from datamodules.storage.files import lock_beside, read_kept, write_json
from experiments.adaptation.settings import HELD_OUT
from experiments.adaptation.survey import Survey
from experiments.plan.load import busy
from retriever.encoder.encoding import encode
from retriever.encoder.text_encoder import TextEncoder

log = logging.getLogger(__name__)
_KEPT = 3600.0  # seconds for which a measurement is taken again
_MEASURED = 1.5  # seconds of each kind of text
_BLOCK = 32
# seconds that are not the encoder's: of a command's start, and of a run; of a passage in BM25's index; of a query, and
# of a query and a passage. Measured on Cranfield's 1,400 and SciFact's 5,183 abstracts, one thread
_START, _ARM, _INDEX, _QUERY, _SEARCH = 15.0, 6.0, 5e-4, 1.5e-3, 4e-8
RANGE = 0.7, 1.5  # how far an estimate may be off, below and above


@dataclass(frozen=True)
class Speed:
    """Texts that are encoded in a second.

    Attributes:
        passages: that many of them.
        queries: likewise.
        busy: that other programs slowed the measurement down, in words; empty where they did not.
    """

    passages: float
    queries: float
    busy: str = ""


@dataclass(frozen=True)
class Work:
    """What is to be done, in numbers.

    Attributes:
        passages: of the corpus.
        elsewhere: passages of other corpora that are evaluated on.
        queries: that lists are made for.
        measured: evaluation queries.
        arms: runs.
        steps: of each.
        batch: lists of a step.
        validations: of each run.
    """

    passages: int
    elsewhere: int
    queries: int
    measured: int
    arms: int
    steps: int
    batch: int
    validations: int

    def seconds(self, speed: Speed) -> dict[str, float]:
        """Part → seconds. A step counts as three times the encoding of its queries; dev lists come beside.

        All queries are encoded twice: to find candidates, and to score the whole corpus.
        """
        encoded = self.steps * 3 * self.batch + (1 + self.validations) * (HELD_OUT * self.queries + self.measured)
        start = _START + self.passages * (_INDEX + _SEARCH * self.queries)
        return {
            "encoding the corpus once": self.passages / speed.passages,
            "making lists": start + self.queries * (_QUERY + 1 / speed.queries),
            "training and evaluating": start
            + self.queries / speed.queries
            + self.arms * (_ARM + encoded / speed.queries),
            **({"encoding other corpora once": self.elsewhere / speed.passages} if self.elsewhere else {}),
        }


def measured_speed(encoder: TextEncoder, found: Survey, file: Path, what: Sequence[Any]) -> Speed:
    """Measure, or take what was measured within the last hour, so that ``plan=true`` and the command after it agree.

    Args:
        encoder: on its device.
        found: the corpus.
        file: where it is kept; not what was measured while other programs ran.
        what: all that decides the speed: texts, model, lengths, precision, device, threads.
    """
    key, now = hashlib.sha256(repr(what).encode()).hexdigest()[:16], time.time()
    with lock_beside(file):
        kept = {name: one for name, one in read_kept(file).items() if now - one["at"] < _KEPT}
        if key in kept:
            return Speed(kept[key]["passages"], kept[key]["queries"])
        log.info("Measuring how fast this machine encodes %s", found.folder)
        speed = measure(encoder, found)
        if not speed.busy:
            write_json(file, kept | {key: {"at": now, "passages": speed.passages, "queries": speed.queries}})
    return speed


def measure(encoder: TextEncoder, found: Survey) -> Speed:
    """Encode some passages and some sentences of a corpus for a second or so each."""
    step = max(1, len(found.corpus) // 1000)
    texts = [text for text in found.corpus.passages.take(list(range(0, len(found.corpus), step))).to_pylist() if text]
    parts = [sentence for text in texts for sentence in sentences(text)] or texts
    load, begin, used = os.getloadavg()[0], time.perf_counter(), time.process_time()
    rates = _rate(encoder, texts, "passage"), _rate(encoder, parts, "query")
    share = (time.process_time() - used) / (time.perf_counter() - begin)
    return Speed(*rates, busy=busy(share, load, os.cpu_count() or 1))


def _rate(encoder: TextEncoder, texts: Sequence[str], kind: str) -> float:
    """Texts of each block are a draw over all lengths, and are encoded as the corpus is: by length."""
    blocks = [texts[start :: _stride(len(texts))] for start in range(_stride(len(texts)))]
    with torch.inference_mode():
        encode(encoder, encoder.tokenize(list(blocks[0][:2]), kind))  # the first call chooses kernels
        begin, count = time.perf_counter(), 0
        for block in blocks:
            encode(encoder, encoder.tokenize(list(block), kind)).cpu()  # waits for a GPU
            count += len(block)
            if time.perf_counter() - begin > _MEASURED:
                break
        return count / (time.perf_counter() - begin)


def _stride(count: int) -> int:
    return max(1, count // _BLOCK)
