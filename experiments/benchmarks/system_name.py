"""The names of what is measured: ``st``, ``ours_infonce``, ``ours_infonce@32-true``."""

from typing import NamedTuple


class SystemName(NamedTuple):
    """A system, and what it is to compute.

    Attributes:
        kind: ``ours``, ``st``, ``plain`` or ``beir``.
        loss: of a training step; empty in an evaluation.
        precision: the one asked for; empty: the system's own default.
    """

    kind: str
    loss: str
    precision: str

    @classmethod
    def parse(cls, name: str) -> "SystemName":
        """Take ``KIND_LOSS@PRECISION`` apart; loss and precision may be missing."""
        system, _, precision = name.partition("@")
        kind, _, loss = system.partition("_")
        return cls(kind, loss, precision)

    @property
    def default(self) -> str:
        """The name of the same system in its own default precision."""
        return f"{self.kind}_{self.loss}" if self.loss else self.kind

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's."""
        return self.kind == "ours"
