"""Which floating type an encoder's products are computed in, and how long bfloat16 takes beside float32 here."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from retriever.encoder.budget import attention_heads, hidden_size, intermediate_size

FLOAT32, BFLOAT16, FLOAT16 = "32-true", "bf16-mixed", "16-mixed"  # as Lightning calls them
_DTYPES = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
_HALF = (torch.bfloat16, torch.float16)
_SHORT = 512  # tokens of a text up to which attention is trained in float32
_TEXT, _TOKENS = 128, (128, 16_384)  # tokens of each text that is measured; the fewest and the most of all
_MEASURED, _ROUNDS = 0.1, 5  # seconds that a measurement in float32 should last at least, and their number


class LayerShape(NamedTuple):
    """The sizes of a transformer layer, which decide how fast it is in which precision."""

    width: int
    intermediate: int
    heads: int

    @classmethod
    def of(cls, model: Any) -> "LayerShape":
        """Read those of a ``transformers`` model, or of what holds one as ``backbone``."""
        width, heads = hidden_size(model), attention_heads(model)
        return cls(width, intermediate_size(model), heads if width % heads == 0 else 1)

    def __str__(self) -> str:
        return f"a layer of width {self.width}, {self.intermediate} within, {self.heads} heads"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Make the context in which an encoder runs; float32 needs none.

    Args:
        precision: as Lightning calls it, ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        device: where it runs.
    """
    return torch.autocast(device.type, _DTYPES[precision]) if precision in _DTYPES else nullcontext()


class Float32Attention(TorchFunctionMode):
    """While it is entered, torch's attention over short texts on a CPU is computed in float32, whatever the precision.

    On a CPU its backward pass in bfloat16 takes many times as long: 138 ms against 12 for 256 texts of 16 tokens, 80
    against 27 for 32 of 128 tokens (12 heads of 32 dimensions, two cores with AMX); level at 512 tokens.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, as it is but for attention."""
        named = kwargs or {}
        query: Any = args[0] if args else named.get("query")
        if func is not scaled_dot_product_attention or query.shape[-2] > _SHORT:
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            result = func(*map(_as_float, args), **{name: _as_float(value) for name, value in named.items()})
        return result.to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype)


def _as_float(value: Any) -> Any:
    """A tensor of half precision in float32; anything else as it is."""
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in _HALF else value


def training_attention(device: torch.device, trains: bool = True) -> AbstractContextManager:
    """Make the context in which an encoder computes attention where it is trained; elsewhere one that does nothing."""
    return Float32Attention() if trains and device.type == "cpu" else nullcontext()


def gpu_has_bfloat16() -> bool:
    """Tell whether the GPU computes in bfloat16, and does not only store it."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


@cache
def cpu_has_bfloat16() -> bool:
    """Tell whether the processor has instructions for products in bfloat16; without them these take many times as long.

    An older torch does not say what the processor has: the answer is then no.
    """
    return any(_capabilities().get(name) for name in _INSTRUCTIONS)


def cpu_instructions() -> list[str]:
    """Name the processor's instructions that decide how fast products are."""
    return [name for name in ("avx2", "avx512_f", "avx512_vnni", *_INSTRUCTIONS) if _capabilities().get(name)]


def cpu_name() -> str:
    """Return what the processor is called."""
    return str(_capabilities().get("cpu_name") or "a processor without a name")


def _capabilities() -> Mapping[str, Any]:
    return getattr(torch.cpu, "get_capabilities", dict)()


def bfloat16_share(shape: LayerShape) -> float:
    """Measure how long a layer takes on this CPU in bfloat16, as a share of the time that it takes in float32.

    Passes of one random layer without and with gradient, in both precisions in turn, for a second or two; the median
    of five rounds. Nothing is drawn from torch's global random generator.
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        layer = _Layer(shape)
        tokens, seconds = _TOKENS[0] // 2, 0.0
        while seconds < _MEASURED and tokens < _TOKENS[1]:
            tokens *= 2
            hidden = torch.randn(tokens // _TEXT, _TEXT, shape.width)
            for precision in (BFLOAT16, FLOAT32):  # chooses kernels, too
                seconds = _timed(layer, hidden, precision)
        shares = []
        for _ in range(_ROUNDS):
            seconds = _timed(layer, hidden, FLOAT32)
            shares.append(_timed(layer, hidden, BFLOAT16) / seconds)
    return statistics.median(shares)


class _Layer(nn.Module):
    """A transformer layer as backbones have it: what torch fuses, it fuses in float32 alone."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.projected = nn.Linear(shape.width, 3 * shape.width)
        self.mixed = nn.Linear(shape.width, shape.width)
        self.inner = nn.Linear(shape.width, shape.intermediate)
        self.outer = nn.Linear(shape.intermediate, shape.width)
        self.norms = nn.ModuleList(nn.LayerNorm(shape.width) for _ in range(2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute hidden states, [n, L, width], from those of the layer below."""
        split = self.projected(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        hidden = self.norms[0](hidden + self.mixed(attended))
        return self.norms[1](hidden + self.outer(gelu(self.inner(hidden))))


def _timed(layer: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, precision: str) -> float:
    begin = time.perf_counter()
    with torch.enable_grad(), autocast(precision, hidden.device), training_attention(hidden.device):
        output = layer(hidden)
    output.float().sum().backward()
    with torch.no_grad(), autocast(precision, hidden.device):
        layer(hidden)
    return time.perf_counter() - begin
