"""How many floating-point operations an encoder needs."""

import numpy as np
from torch import nn


def forward_flops(backbone: nn.Module, lengths: np.ndarray) -> float:
    """Operations of one forward pass over texts without padding; a backward pass takes twice as many.

    Counted are the matrix products: 2 × weights of the linear layers for each token, and 4 × width × length per layer
    for each token of attention. Norms, activations and the loss are below 1% of these.

    Args:
        backbone: a ``transformers`` encoder.
        lengths: tokens of each text, [N].
    """
    weights = sum(part.weight.numel() for part in backbone.modules() if isinstance(part, nn.Linear))
    config = backbone.config
    tokens = np.asarray(lengths, dtype=np.float64)
    return float(2 * weights * tokens.sum() + 4 * config.hidden_size * config.num_hidden_layers * (tokens**2).sum())
