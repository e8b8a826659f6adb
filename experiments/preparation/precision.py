"""The precision of a preparation: of its encoders, and of teachers whose ``dtype`` is ``auto``."""

from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig

from datamodules.precision import Precision, fastest_precision
from experiments.settings.precision import AUTO
from experiments.settings.walk import rebuilt
from retriever.encoder.encoding import device_of
from retriever.encoder.precision import BFLOAT16, FLOAT32, cpu_has_bfloat16
from retriever.encoder.text_encoder import TextEncoder
from retriever.errors import InputError
from retriever.teachers.transformers_teacher import TransformersTeacher, load_pretrained


def precision_of(encoder: TextEncoder, asked: str, cache_dir: str) -> Precision:
    """Return the precision that is asked for by its name, or the fastest for an encoder.

    Args:
        encoder: on its device.
        asked: the setting ``precision``.
        cache_dir: the cache's folder.
    """
    return fastest_precision(encoder, device_of(encoder), cache_dir) if asked == AUTO else Precision(asked)


def with_dtypes(config: DictConfig) -> DictConfig:
    """Return the configuration of a preparation's teacher, with the types that ``dtype: auto`` takes on this machine.

    That is float32 where ``precision`` names it, on a CPU what is faster for a teacher under transformers, and for the
    teacher itself to say elsewhere.

    Args:
        config: of a preparation.
    """
    teacher = OmegaConf.to_container(config.teacher, resolve=True)
    return OmegaConf.create({"teacher": rebuilt(teacher, partial(_with_dtype, config))}).teacher


def _with_dtype(config: DictConfig, teacher: Any, name: str) -> Any:
    if not isinstance(teacher, dict) or teacher.get("dtype") != AUTO:
        return teacher
    if config.precision == FLOAT32:
        return teacher | {"dtype": "float32"}
    on_gpu = torch.cuda.is_available() if teacher.get("device") is None else teacher["device"] != "cpu"
    kind = get_object(teacher["_target_"])
    is_measured = isinstance(kind, type) and issubclass(kind, TransformersTeacher)
    if on_gpu or not is_measured or not cpu_has_bfloat16():
        return teacher
    with suppress(InputError):  # of a model that is not there, which the teacher itself tells of
        source = (teacher[key] for key in ("model", "revision", "trust_remote_code"))
        model = SimpleNamespace(config=load_pretrained(AutoConfig, *source).get_text_config())
        fastest = fastest_precision(model, torch.device("cpu"), config.cache_dir)
        return teacher | {"dtype": "bfloat16" if fastest.name == BFLOAT16 else "float32"}
    return teacher
