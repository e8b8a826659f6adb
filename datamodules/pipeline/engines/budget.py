"""A budget for answers, which no request passes."""

from threading import Condition

from datamodules.pipeline.engines.journal import AnswerJournal
from datamodules.pipeline.engines.tokens import Price
from retriever.errors import InputError, require_positive
from retriever.web import GO_ON


class Budget:
    """Money that requests may cost together; those under way count with the most that they can cost.

    Args:
        journal: of the answers that are there.
        price: of a million tokens; None where no budget is set.
        limit: in the price's currency; None: none.

    Raises:
        InputError: a limit without a price.
    """

    def __init__(self, journal: AnswerJournal, price: Price | None, limit: float | None) -> None:
        require_positive(**{"generator.budget": limit})
        if limit is not None and price is None:
            raise InputError("generator.budget needs generator.price: {input: …, output: …}, per million tokens.")
        self.journal, self.price, self.limit = journal, price, limit
        self._under_way: list[float] = []
        self._changed = Condition()

    @property
    def spent(self) -> float:
        """Cost of the answers that are there."""
        return self.price.of(self.journal.prompt_tokens, self.journal.answer_tokens) if self.price else 0.0

    def most(self, prompt_tokens: int, answer_tokens: int) -> float:
        """The most that a request can cost, by an estimate and what prompts so far had beyond theirs."""
        return self.price.of(prompt_tokens * self.journal.longer, answer_tokens) if self.price else 0.0

    def fits(self, cost: float) -> bool:
        """Whether a cost can be met beside what is spent and under way."""
        return self.limit is None or self.spent + sum(self._under_way) + cost <= self.limit

    def reserve(self, cost: float) -> None:
        """Count a request as under way; wait while those that are under way may leave too little for it.

        Raises:
            InputError: nothing is under way, and it would pass the limit.
        """
        with self._changed:
            while not self.fits(cost):
                if not self._under_way:
                    raise self.reached(cost)
                self._changed.wait()
            self.add(cost)

    def add(self, cost: float) -> None:
        """Count a request, or some, as under way, whatever is left."""
        self._under_way.append(cost)

    def release(self, cost: float) -> None:
        """Count what was added at this cost as ended."""
        with self._changed:
            self._under_way.remove(cost)
            self._changed.notify_all()

    def reached(self, cost: float) -> InputError:
        """What to say where the next request could pass the limit."""
        return InputError(
            f"generator.budget is {self.limit:g}, of which {self.spent:.4g} is spent for "
            f"{len(self.journal.answers):,} answers, and the next request can cost {cost:.2g}. {GO_ON} It needs a "
            "larger generator.budget."
        )
