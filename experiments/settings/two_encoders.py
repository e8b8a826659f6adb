"""What a run's configuration says of two encoders: one that is trained, and one that encodes passages or teaches."""

from collections.abc import Mapping
from typing import Any

from experiments.settings.encoders import SPECS, outline
from retriever.encoder.spec import EncoderSpec
from retriever.errors import InputError

_OF_TRAINING = ("lora", "trainable_layers")


def is_embedding_regression(module: Mapping[str, Any] | None) -> bool:
    """Tell by a module's configuration whether it draws embeddings to another encoder's."""
    return str((module or {}).get("_target_")) == "retriever.objectives.EmbeddingRegression"


def check_two_encoders(config: dict[str, Any]) -> None:
    """Refuse encoders that do not go with each other, or with the objective.

    Args:
        config: of a run, of plain containers.

    Raises:
        InputError: with the setting and what to do.
    """
    passages, guide = config.get("passage_encoder"), config["data"].get("guide")
    if passages is not None:
        _check_passage_encoder(passages, config)
    if not is_embedding_regression(config["module"]):
        return
    if passages is None and guide is None:
        raise InputError(
            "module=embedding_regression draws embeddings to another encoder's, and none is named: say "
            "encoder@passage_encoder=bge_base module.train_passage_encoder=false, where that one encodes the passages, "
            "or +encoder@data.guide=bge_base, where the trained one encodes both."
        )
    if passages is not None and guide is not None:
        raise InputError(
            "module=embedding_regression draws queries to the embeddings of passage_encoder, whose passages they are "
            "compared with: leave data.guide out."
        )
    if passages is None and config["module"].get("train_passage_encoder") is False:
        raise InputError(
            "module.train_passage_encoder=false keeps the passages of the base model, and the queries would be drawn "
            "to another encoder's. Say encoder@passage_encoder=… in the place of +encoder@data.guide=…, or train both "
            "sides."
        )


def _check_passage_encoder(passages: Any, config: dict[str, Any]) -> None:
    if not isinstance(passages, dict) or not passages.get("model"):
        raise InputError(
            f"passage_encoder is {passages!r}; name an encoder, encoder@passage_encoder=bge_base, or null for the one "
            "that is trained."
        )
    for name, part in {"passage_encoder": passages, "encoder": config["encoder"]}.items():
        if "CrossEncoder" in str(part.get("_target_")):
            raise InputError(
                f"{name}._target_ is {part['_target_']}, which scores pairs; with passage_encoder, both encode single "
                "texts."
            )
    if SPECS.get(str(passages.get("_target_"))) is EncoderSpec:
        try:
            outline(passages)
        except InputError as error:
            raise InputError(str(error).replace("encoder.", "passage_encoder.", 1)) from error
    given = [name for name in _OF_TRAINING if passages.get(name) is not None]
    if given:
        raise InputError(
            f"passage_encoder.{given[0]} is {passages[given[0]]!r}, and that encoder is not trained: leave it out."
        )
    if config["module"].get("train_passage_encoder", True):
        raise InputError(
            f"Passages are encoded by passage_encoder ({passages['model']}), which is not trained: say "
            "module.train_passage_encoder=false."
        )
