"""Cross-encoders with a classification head: one logit, or the log-odds of two classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from retriever.errors import InputError
from retriever.teachers.pair_tokens import TokenizedPairs
from retriever.teachers.transformers_teacher import TransformersTeacher, project_in_float32


class SequenceClassifier(TransformersTeacher):
    """Any sequence classifier with one label (its logit) or two (the logit of one minus that of the other).

    Args:
        model: see :class:`TransformersTeacher`.
        positive_label: of two classes, the number of the relevant one.
        template: None joins query and passage as the tokenizer does (``[CLS] q [SEP] p [SEP]``); for
            decoders, a text with ``{query}`` and ``{passage}``, or several.
        **common: arguments of :class:`TransformersTeacher`.
    """

    kind = "sequence_classifier"
    meaning = "the logit of the one class, or the positive class's logit minus the other's"
    decides = ("positive_label",)

    def __init__(
        self, model: str, *, positive_label: int = 1, template: str | Sequence[str] | None = None, **common: Any
    ) -> None:
        super().__init__(model, **common)
        if positive_label not in (0, 1):
            raise InputError(f"teacher.positive_label is {positive_label}; it must be 0 or 1.")
        self.positive_label = positive_label
        self.template = template

    def _load_model(self) -> PreTrainedModel:
        model = self._pretrained(AutoModelForSequenceClassification, "sequence classifier")
        labels = model.config.num_labels
        if labels not in (1, 2):
            raise InputError(
                f"{self.name} has {labels} labels ({', '.join(map(str, model.config.id2label.values()))}); a teacher "
                "needs one label, or two. Choose another teacher.model."
            )
        if self.dtype != "float32":
            heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == labels]
            if not heads:
                raise InputError(f"{self.name}: its last projection was not found. Say teacher.dtype=float32.")
            project_in_float32(heads[-1])
        if getattr(model.config.get_text_config(), "pad_token_id", None) is None:
            # decoders find a row's last token by it
            if self.tokenizer.pad_token_id is None:
                raise InputError(f"{self.name} names no padding token. Set pad_token in its tokenizer_config.json.")
            model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        return model

    def _logits(self, ids: Tensor, mask: Tensor, pairs: TokenizedPairs, rows: np.ndarray) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask}
        # only where the model has several types: some tokenizers number them for models that have one or none
        if pairs.types is not None and (getattr(self.model.config, "type_vocab_size", None) or 0) > 1:
            inputs["token_type_ids"], _ = pairs.types.padded(rows, 0, self.device)
        logits = self.model(**inputs).logits.float()
        if logits.shape[1] == 1:
            return logits[:, 0]
        return logits[:, self.positive_label] - logits[:, 1 - self.positive_label]
