"""The precision of a preparation: of its encoders, and of teachers whose ``dtype`` is ``auto``."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig

from datamodules.precision import Precision, fastest_precision
from datamodules.storage.files import lock_beside, read_kept, write_json
from experiments.settings.precision import AUTO
from experiments.settings.walk import rebuilt
from retriever.encoder.encoding import device_of
from retriever.encoder.precision import BFLOAT16, FLOAT32, LayerShape
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError
from retriever.teachers.transformers_teacher import TransformersTeacher, load_pretrained


class Precisions:
    """What ``auto`` takes in one preparation: the fastest where it began, kept for every machine that goes on with it.

    The shards of a stage would look for different hits otherwise, and a stage would not find those of the one before.

    Args:
        config: of a preparation; ``precision.json`` in its folder ``work`` keeps what was chosen.
    """

    def __init__(self, config: DictConfig) -> None:
        self.asked, self.cache_dir = config.precision, config.cache_dir
        self.file = Path(config.work) / "precision.json"
        self._chosen: dict[str, Precision] = {}

    def of(self, encoder: TextEncoder) -> Precision:
        """Return the precision that is asked for by its name, or the fastest for an encoder on its device."""
        return self.fastest(encoder, device_of(encoder)) if self.asked == AUTO else Precision(self.asked)

    def fastest(self, model: Any, device: torch.device) -> Precision:
        """Return what this preparation took for models of this shape, or else what is fastest here."""
        shape = str(LayerShape.of(model))
        if shape not in self._chosen:
            with lock_beside(self.file):
                kept = read_kept(self.file)
                if shape in kept:
                    self._chosen[shape] = Precision(kept[shape], f"as {self.file.parent} began with")
                else:
                    self._chosen[shape] = fastest_precision(model, device, self.cache_dir)
                    write_json(self.file, kept | {shape: self._chosen[shape].name})
        return self._chosen[shape]


def with_dtypes(config: DictConfig, precisions: Precisions) -> DictConfig:
    """Return the configuration of a preparation's teacher, with the types that ``dtype: auto`` takes.

    That is float32 where ``precision`` names it, on a CPU what is faster for a teacher under transformers, and for the
    teacher itself to say elsewhere.

    Args:
        config: of a preparation.
        precisions: which it takes.
    """
    teacher = OmegaConf.to_container(config.teacher, resolve=True)
    return OmegaConf.create({"teacher": rebuilt(teacher, partial(_with_dtype, config.precision, precisions))}).teacher


def _with_dtype(asked: str, precisions: Precisions, teacher: Any, name: str) -> Any:
    if not isinstance(teacher, dict) or teacher.get("dtype") != AUTO:
        return teacher
    if asked == FLOAT32:
        return teacher | {"dtype": "float32"}
    on_gpu = torch.cuda.is_available() if teacher.get("device") is None else teacher["device"] != "cpu"
    kind = get_object(teacher["_target_"])
    is_measured = isinstance(kind, type) and issubclass(kind, TransformersTeacher)
    if on_gpu or not is_measured:
        return teacher
    with suppress(InputError):  # of a model that is not there, which the teacher itself tells of
        source = (teacher[key] for key in ("model", "revision", "trust_remote_code"))
        model = SimpleNamespace(config=load_pretrained(AutoConfig, *source).get_text_config())
        fastest = precisions.fastest(model, torch.device("cpu"))
        return teacher | {"dtype": "bfloat16" if fastest.name == BFLOAT16 else "float32"}
    return teacher
