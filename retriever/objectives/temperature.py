"""A softmax temperature, fixed or learned."""

import math

import torch
from torch import Tensor, nn

from retriever.errors import require_positive


class Temperature(nn.Module):
    """A temperature above 0.

    Args:
        value: its first value, and its only one where it is not learned.
        learnable: learn its logarithm, so that it stays positive.

    Raises:
        InputError: ``value`` is not above 0.
    """

    def __init__(self, value: float, learnable: bool = False) -> None:
        super().__init__()
        require_positive(temperature=value)
        self.value = float(value)
        self.log = nn.Parameter(torch.tensor(math.log(value))) if learnable else None

    def forward(self) -> float | Tensor:
        """Return the temperature: a number, or, where it is learned, a scalar tensor with gradient."""
        return self.value if self.log is None else self.log.exp()
