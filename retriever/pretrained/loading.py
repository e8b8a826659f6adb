"""Loads what ``transformers`` saved; a damaged, incomplete or foreign folder ends in one sentence."""

import logging
import re
import textwrap
from collections.abc import Callable, Mapping
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedTokenizerBase

from retriever.errors import InputError, shown

_log = logging.getLogger(__name__)
_UNFIT = re.compile(r"^(\S+)\s*\|\s*(?:MISMATCH|CONVERSION)\s*\|\s*(.*?)\s*$", re.MULTILINE)


class _LoadReport(logging.Filter):
    """Keeps transformers' table of weights that are new, unused or unfit from the log, for errors to quote.

    What is new and may not be is refused below.
    """

    last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """Hold back a report."""
        text = record.getMessage()
        if " LOAD REPORT" not in text:
            return True
        self.last = text
        return False

    def unfit(self) -> str | None:
        """Say of the last report's first weight that does not fit, what is wrong with it; None where all fit."""
        found = _UNFIT.search(re.sub(r"\x1b\[[0-9;]*m", "", self.last))
        return found and f"the weight {shown(found[1])} does not fit config.json: {found[2]}"


_report = _LoadReport()
logging.getLogger("transformers.modeling_utils").addFilter(_report)
# encoder-decoders whose encoder transformers loads alone, and sentence-transformers, too
_ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
}
NO_LIMIT = 10**9
_OF_ATTENTION = re.compile("attn_implementation|attention implementation|flash.?att|flex_attention", re.IGNORECASE)
_OF_LIBRARIES = (
    OSError,
    ValueError,
    ImportError,
    RuntimeError,
    KeyError,
    AttributeError,
    TypeError,
    UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)


def load(auto_class: Any, source: str, advice: str, group: str = "encoder", **options: Any) -> Any:
    """Call ``auto_class.from_pretrained(source, **options)``.

    Args:
        auto_class: ``AutoModel``, ``AutoTokenizer``, …
        source: a folder or a hub name.
        advice: a sentence on what to do where loading fails.
        group: the settings that name the model: ``encoder``, ``teacher`` or ``generator``.
        **options: for ``from_pretrained``.

    Raises:
        InputError: whatever the library finds wrong with the folder.
    """
    _report.last = ""
    try:
        return auto_class.from_pretrained(source, **options)
    except Exception as error:
        # the tokenizers library raises the bare class for a damaged tokenizer.json
        if not isinstance(error, _OF_LIBRARIES) and type(error) is not Exception:
            raise
        _refuse_own_code(source, group, options, error)
        asked = options.get("attn_implementation")
        if asked is not None and _OF_ATTENTION.search(str(error)):
            raise InputError(
                f"{group}.attention is {asked!r}, which {source!r} cannot be loaded with: "
                f"{_reason(error).split('. ')[0]}. Say {group}.attention=null for the best that it offers, or eager."
            ) from error
        what = "tokenizer" if "Tokenizer" in auto_class.__name__ else "model"
        reason = _report.unfit() or _reason(error)
        raise InputError(
            f"The {what} of {source!r} could not be loaded as {auto_class.__name__}: {reason}. {advice}"
        ) from error


def load_telling(auto_class: Any, source: str, advice: str, **options: Any) -> tuple[Any, list[str]]:
    """Load a model as :func:`load` does, and name the weights that its files lack, which are random then."""
    loaded = load(auto_class, source, advice, output_loading_info=True, **options)
    # Python code in a model folder may return the model alone
    model, info = loaded if isinstance(loaded, tuple) else (loaded, {"missing_keys": ()})
    return model, sorted(info["missing_keys"])


def load_whole(auto_class: Any, source: str, advice: str, may_lack: Callable[[str, str], bool], **options: Any) -> Any:
    """Load a model as :func:`load` does, and refuse a folder that lacks weights, which would be random.

    Where ``attn_implementation`` is None and the model has none better than ``eager``, a warning says so.

    Args:
        auto_class: of a model.
        source: a folder or a hub name.
        advice: a sentence on what to do where loading fails.
        may_lack: called with a weight's name and the prefix of the backbone's weights; true where it may be new.
        **options: for ``from_pretrained``.
    """
    model, new = load_telling(auto_class, source, advice, **options)
    missing = [name for name in new if not may_lack(name, f"{model.base_model_prefix}.")]
    if missing:
        _refuse_own_code(source, "encoder", options)
        raise InputError(
            f"The model of {source!r} lacks {len(missing)} weights, {shown(missing[0])} among them: they are those of "
            f"another model, or config.json is. {advice}"
        )
    if options.get("attn_implementation") is None and model.config._attn_implementation == "eager":
        _log.warning("%s does not support torch's attention (sdpa): eager is used, which is slower", source)
    return model


def load_backbone(source: str, advice: str, attention: str | None, **options: Any) -> Any:
    """Load a model that gives token embeddings, in float32; of a T5, only its encoder.

    Args:
        source: a folder or a hub name.
        advice: a sentence on what to do where loading fails.
        attention: of ``transformers``; None takes the best that the model has.
        **options: ``revision`` and ``trust_remote_code``.

    Raises:
        InputError: as :func:`load_whole`; or another model of an encoder and a decoder.
    """
    config = load(AutoConfig, source, advice, **options)
    auto_class: Any = AutoModel
    if config.model_type in _ENCODERS:
        auto_class = getattr(transformers, _ENCODERS[config.model_type])
    elif is_pair(config):
        raise InputError(
            f"{source!r} is a model of encoder and decoder ({config.model_type}), and sentence-transformers would run "
            "both in an exported model: it would not encode as trained. Of these, encoders of "
            f"{', '.join(_ENCODERS)} are supported. Name one of them, or a model that is an encoder or a decoder alone."
        )
    return load_whole(
        auto_class,
        source,
        advice,
        lambda name, _: name.startswith("pooler."),  # unused
        dtype=torch.float32,
        attn_implementation=attention,
        **options,
    )


def is_pair(config: PreTrainedConfig) -> bool:
    """Tell whether a configuration is that of an encoder and a decoder, or of the encoder of such a pair."""
    return config.model_type in _ENCODERS or bool(getattr(config, "is_encoder_decoder", False))


def readable_length(positions: int | None, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens that a model reads, by its positions and by what its tokenizer says."""
    said = tokenizer.model_max_length  # 10^30 where it says nothing
    return min(positions or NO_LIMIT, said if said is not None and said >= 3 else NO_LIMIT)


def _refuse_own_code(source: str, group: str, options: Mapping[str, Any], error: Exception | None = None) -> None:
    """Raise an InputError where loading failed because a model's Python code was not allowed to run."""
    if options.get("trust_remote_code"):
        return
    says_so = error is not None and "trust_remote_code" in str(error)
    if not says_so:
        try:
            config, _ = PreTrainedConfig.get_config_dict(source, revision=options.get("revision"))
        except _OF_LIBRARIES:
            return
        says_so = "auto_map" in config
    if says_so:
        raise InputError(
            f"{source!r} brings Python code (auto_map in its config.json), which is run only if you ask for "
            f"it: read the *.py files of the model, then say {group}.trust_remote_code=true."
        ) from error


def _reason(error: Exception) -> str:
    """Return an error's first line, cut short where it is long."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(first, 300, placeholder=" …").rstrip(".:")
