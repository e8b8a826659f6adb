"""Loading what ``transformers`` saved, with a damaged, incomplete or foreign folder as one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from retriever.errors import InputError, shown

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


def load(auto_class: Any, source: str, advice: str, **options: Any) -> Any:
    """``auto_class.from_pretrained(source, **options)``.

    Args:
        auto_class: ``AutoModel``, ``AutoTokenizer``, …
        source: a folder or a hub name.
        advice: what to do where it fails, a sentence.
        **options: for ``from_pretrained``.

    Raises:
        InputError: whatever the library finds wrong with the folder.
    """
    try:
        return auto_class.from_pretrained(source, **options)
    except Exception as error:
        # the tokenizers library raises the bare class for a damaged tokenizer.json
        if not isinstance(error, _OF_LIBRARIES) and type(error) is not Exception:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:300]
        what = "tokenizer" if "Tokenizer" in auto_class.__name__ else "model"
        raise InputError(
            f"The {what} of {source!r} could not be loaded as {auto_class.__name__}: {reason}. {advice}"
        ) from error


def load_telling(auto_class: Any, source: str, advice: str, **options: Any) -> tuple[Any, list[str]]:
    """As :func:`load`; the model, and the names of its weights that its files lack, which are random then."""
    loaded = load(auto_class, source, advice, output_loading_info=True, **options)
    # a model folder's own code may give back the model alone
    model, info = loaded if isinstance(loaded, tuple) else (loaded, {"missing_keys": ()})
    return model, sorted(info["missing_keys"])


def load_whole(auto_class: Any, source: str, advice: str, may_lack: Callable[[str, str], bool], **options: Any) -> Any:
    """As :func:`load`, and refuse a folder without all weights: the library would begin with random ones there.

    Args:
        auto_class: of a model.
        source: a folder or a hub name.
        advice: what to do where it fails, a sentence.
        may_lack: asked about a weight's name and the prefix of the backbone's weights; true where it may be new.
        **options: for ``from_pretrained``.
    """
    model, new = load_telling(auto_class, source, advice, **options)
    missing = [name for name in new if not may_lack(name, f"{model.base_model_prefix}.")]
    if missing:
        raise InputError(
            f"The model of {source!r} lacks {len(missing)} weights, {shown(missing[0])} among them: they are those of "
            f"another model, or config.json is. {advice}"
        )
    return model
