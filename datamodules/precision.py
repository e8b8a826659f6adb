"""The precision that ``auto`` takes on this machine; what was measured for it is kept in the cache's folder."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch

from datamodules.storage.files import lock_beside, read_kept, write_json
from retriever.encoder.precision import (
    BFLOAT16,
    FLOAT32,
    LayerShape,
    bfloat16_share,
    cpu_has_bfloat16,
    cpu_name,
    gpu_has_bfloat16,
)

log = logging.getLogger(__name__)
CALIBRATION = "calibration.json"  # in the cache's folder: what was measured → share of float32's time
_GAIN = 0.9  # of float32's time: above it, a gain is within the noise, and not worth other figures


class Precision(NamedTuple):
    """A precision, and why it is that.

    Attributes:
        name: as Lightning calls it.
        why: in words; None where it was asked for.
    """

    name: str
    why: str | None = None

    def said(self, setting: str) -> str:
        """Say it and, where it was chosen, how to get the other.

        Args:
            setting: which chooses the precision.
        """
        other = FLOAT32 if self.name != FLOAT32 else BFLOAT16
        return self.name if self.why is None else f"{self.name} (auto: {self.why}; else {setting}={other})"


def fastest_precision(model: Any, device: torch.device, cache_dir: str | Path) -> Precision:
    """Choose bfloat16 where it is faster than float32, by at least a tenth on a CPU.

    The same for every command on a machine, for base and tuned model, in training and in evaluation: it depends on the
    device and on the shape of the model's layers, and what was measured is measured once. A GPU takes bfloat16 where it
    computes in it; a processor without instructions for it is not measured.

    Args:
        model: a ``transformers`` model, or what holds one as ``backbone``.
        device: where it runs.
        cache_dir: the cache's folder, where ``calibration.json`` keeps what was measured on which processor.
    """
    if device.type == "cuda":
        return (
            Precision(BFLOAT16, "this GPU has it")
            if gpu_has_bfloat16()
            else Precision(FLOAT32, "no bfloat16 in this GPU")
        )
    if device.type != "cpu" or not cpu_has_bfloat16():
        return Precision(FLOAT32, "no bfloat16 in this processor")
    share = _kept_share(LayerShape.of(model), Path(cache_dir) / CALIBRATION)
    faster = share <= _GAIN
    return Precision(BFLOAT16 if faster else FLOAT32, f"bfloat16 takes {share:.2f} of float32's time, as measured")


def _kept_share(shape: LayerShape, file: Path) -> float:
    """What was measured of this shape on this processor; measured where it was not."""
    # threads are left out: commands that have more or fewer of them must agree
    key = f"bfloat16, attention of training in float32: {shape}; {cpu_name()}, torch {torch.__version__}"
    with lock_beside(file):  # two measurements at once would disturb each other, and might disagree
        kept = read_kept(file)
        if key not in kept:
            log.info("Measuring bfloat16 against float32 on %s …", shape)
            kept[key] = round(bfloat16_share(shape), 3)
            write_json(file, kept)
    return kept[key]
