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
from datamodules.storage.files import lock_beside, read_json, write_json
from experiments.settings.precision import AUTO
from experiments.settings.walk import rebuilt
from retriever.encoder.encoding import device_of
from retriever.encoder.precision import BFLOAT16, FLOAT32
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError, choose
from retriever.teachers.transformers_teacher import TransformersTeacher, load_pretrained


class Precisions:
    """What ``auto`` takes in one preparation: the fastest where it began, for every machine that goes on with it.

    Stages would not find the output of the ones before otherwise, and shards would not find each other's.

    Args:
        config: of a preparation; ``precision.json`` in its folder ``work`` keeps what was chosen, by corpus and model.
        corpus: the corpus' SHA-256.
    """

    def __init__(self, config: DictConfig, corpus: str) -> None:
        self.asked, self.cache_dir, self.corpus = config.precision, config.cache_dir, corpus
        self.file = Path(config.work) / "precision.json"
        self._chosen: dict[str, Precision] = {}

    def of(self, encoder: TextEncoder) -> Precision:
        """Return the precision that is asked for by its name, or the fastest for an encoder on its device."""
        if self.asked != AUTO:
            return Precision(self.asked)
        return self.fastest(f"encoder {encoder.fingerprint()[:12]}", encoder, device_of(encoder))

    def fastest(self, role: str, model: Any, device: torch.device) -> Precision:
        """Return what was kept for a model in this preparation, or else what is fastest here.

        Args:
            role: what the model is here.
            model: as :func:`~datamodules.precision.fastest_precision` takes it.
            device: where it runs.
        """
        key = f"corpus {self.corpus[:12]}, {role}"
        if key not in self._chosen:
            name = self._kept().get(key)
            self._chosen[key] = self._as_kept(name) if name else fastest_precision(model, device, self.cache_dir)
        return self._chosen[key]

    def keep(self) -> bool:
        """Write down what was chosen; return whether another process was first, and chose otherwise."""
        chosen = {key: precision.name for key, precision in self._chosen.items()}
        if chosen.items() <= self._kept().items():
            return False
        with lock_beside(self.file):
            kept = self._kept()
            write_json(self.file, chosen | kept)  # who was first counts
        others = {key: name for key, name in kept.items() if chosen.get(key, name) != name}
        self._chosen |= {key: self._as_kept(name) for key, name in others.items()}
        return bool(others)

    def _kept(self) -> dict[str, str]:
        kept = read_json(self.file, "Remove it; auto then chooses anew.") if self.file.is_file() else {}
        return {key: choose(f"{self.file}: {key}", name, (FLOAT32, BFLOAT16)) for key, name in kept.items()}

    def _as_kept(self, name: str) -> Precision:
        return Precision(name, f"kept in {self.file}")


def with_dtypes(config: DictConfig, precisions: Precisions) -> DictConfig:
    """Return the configuration of a preparation's teacher, with the types that ``dtype: auto`` takes.

    That is float32 where ``precision`` names it, what is faster for a teacher under transformers, and for the teacher
    itself to say elsewhere.

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
    kind = get_object(teacher["_target_"])
    if not (isinstance(kind, type) and issubclass(kind, TransformersTeacher)):
        return teacher
    on_gpu = torch.cuda.is_available() if teacher.get("device") is None else teacher["device"] != "cpu"
    with suppress(InputError):  # of a model that is not there, which the teacher itself tells of
        source = teacher["model"], teacher.get("revision"), teacher.get("trust_remote_code", False)
        model = SimpleNamespace(config=load_pretrained(AutoConfig, *source).get_text_config())
        role = f"teacher {teacher['model']}" + (f"@{source[1]}" if source[1] else "")
        fastest = precisions.fastest(role, model, torch.device("cuda" if on_gpu else "cpu"))
        return teacher | {"dtype": "bfloat16" if fastest.name == BFLOAT16 else "float32"}
    return teacher
