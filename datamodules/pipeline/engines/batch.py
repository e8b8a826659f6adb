"""Batch files of an OpenAI-compatible web API: slower than its chat completions, and often at half their price."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from datamodules.pipeline.engines.batch_api import ENDED, Batch, BatchApi, request_line
from datamodules.pipeline.engines.engine import Answer, Conversation
from datamodules.pipeline.engines.journal import Paid, request_id
from datamodules.pipeline.engines.server import Request, ServerEngine
from datamodules.storage.files import atomic_path
from retriever.chat import read_completion
from retriever.errors import InputError, require_positive, shown
from retriever.web import GO_ON, WebClient

log = logging.getLogger(__name__)
_MORE_RETRIES = 5  # than of a chat completion
_AT_A_TIME = 1024  # requests whose tokens are counted together


class BatchEngine(ServerEngine):
    """Asks as :class:`ServerEngine` does, for the same answers, by batch files.

    All that is asked for is written, uploaded and submitted, then waited for. A process that is killed goes on with
    what it has submitted. Of the server's options those of the address, the key and a single call count.

    Args:
        model: what the API calls it.
        sampling: of the chat completion.
        requests: of a batch, at most.
        megabytes: of a batch's file, at most.
        poll: seconds between two looks at the batches.
        retries: batches that a request which failed or expired is put into, beyond the first.
        window: within which a batch is to be answered.
        **server: options of :class:`ServerEngine`.
    """

    asks_ahead = True

    def __init__(
        self,
        model: str,
        sampling: Mapping[str, Any],
        *,
        requests: int = 10_000,
        megabytes: float = 100.0,
        poll: float = 30.0,
        retries: int = 3,
        window: str = "24h",
        server: Mapping[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(model, sampling, **common, **(server or {}))
        numbers = {"requests": requests, "megabytes": megabytes, "poll": poll}
        require_positive(**{f"generator.batch.{name}": value for name, value in numbers.items()})
        if retries < 0:
            raise InputError(f"generator.batch.retries is {retries}; it must be at least 0.")
        self.requests, self.bytes, self.poll, self.retries = requests, megabytes * 10**6, poll, retries
        chat = self.client.web
        url = chat.url.removesuffix("/chat/completions")
        # hours of waiting are to survive minutes without a network
        retried = chat.retries + _MORE_RETRIES
        doubt = f"Does it offer batches, and {model!r}?"
        web = WebClient(url, chat.group, chat.key_variable, 1, retried, chat.timeout, doubt)
        self.api = BatchApi(web, window)
        self.folder: Path | None = None

    def open(self, folder: Path) -> None:
        """See :class:`Engine`."""
        super().open(folder)
        self.folder = folder / "batches"
        self.folder.mkdir(exist_ok=True)

    def answer(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], advance: Callable[[int], None]
    ) -> list[Answer]:
        """See :class:`Engine`."""
        bodies = self._bodies(conversations, seeds)
        self.journal.refresh()
        if any(request_id(body) not in self.journal.answers for body in bodies):
            self.ask_ahead([(conversations, seeds)])
        advance(len(bodies))
        return [self.journal.answers[request_id(body)] for body in bodies]

    def ask_ahead(self, blocks: Iterable[tuple[Sequence[Conversation], Sequence[int]]]) -> None:
        """See :class:`Engine`.

        Raises:
            InputError: requests still fail after all retries, the budget is reached, or the API refuses something.
        """
        if self.folder is None:
            raise ValueError("a folder is needed, in which batches are kept: call open() first")
        with FileLock(self.folder / "lock"):  # who comes next finds the answers
            self.journal.refresh()
            _Round(self, self.folder, (request for block in blocks for request in self._split(*block))).run()

    def _split(self, conversations: Sequence[Conversation], seeds: Sequence[int]) -> Iterator[Request]:
        for start in range(0, len(seeds), _AT_A_TIME):
            stop = start + _AT_A_TIME
            yield from self._missing(self._bodies(conversations[start:stop], seeds[start:stop]))


class _Round:
    """All batches of one call: what is left of those before, then what is asked for, then what has failed."""

    def __init__(self, engine: BatchEngine, folder: Path, asked: Iterator[Request]) -> None:
        self.engine, self.folder, self.api = engine, folder, engine.api
        self.under_way: list[Batch] = []
        self.costs: dict[Path, float] = {}
        self.failures: Counter[str] = Counter()  # request → how often it has failed
        self.given_up: dict[str, str] = {}  # request → what was wrong last
        self.written = Batch.unfinished(folder)  # to be submitted, unless that is done
        waiting = set()
        for batch in self.written:
            bodies = batch.bodies()
            waiting |= set(bodies)
            estimates = (estimate for _, estimate, _ in engine._missing(list(bodies.values())))
            self._reserve(batch, sum(map(engine._most, estimates)))
        self.asked = (request for request in asked if request[0] not in waiting)
        self.again: deque[Request] = deque()  # taken before those that are asked for

    def run(self) -> None:
        """Answer all."""
        wait, said = False, ""
        while True:
            # where the server takes no more, one has to end first
            while not (wait and self.under_way):
                batch = self.written.pop(0) if self.written else self._write()
                if batch is None:
                    break
                self.api.submit(batch)
                self.under_way.append(batch)
            if not self.under_way:
                break
            for batch in list(self.under_way):
                state = self.api.state(batch)
                if state["status"] not in ENDED:
                    continue
                self.under_way.remove(batch)
                wait = self.api.is_too_early(state) and bool(self.under_way)
                if wait:
                    self.api.forget(batch)
                    self.written.append(batch)
                    break
                self.api.require_valid(batch, state)
                self._fetch(batch, state)
            said = self._say(said)
            if self.under_way:
                time.sleep(self.engine.poll)
        if self.given_up:
            said = next(iter(self.given_up.values()))
            raise InputError(
                f"{len(self.given_up):,} requests have no answer after {self.engine.retries} retries; the first: "
                f"{shown(said)}. {GO_ON}"
            )
        if self.again:
            raise self.engine.budget.reached(self.engine._most(self.again[0][1]))

    def _say(self, before: str) -> str:
        """Say how far all batches are, where that has changed."""
        done = sum(batch.done for batch in self.under_way)
        kept = len(self.engine.journal.answers)
        now = f"batches under way: {len(self.under_way)}, with {done:,} answers; {kept:,} answers kept"
        if now != before:
            log.info("generate: %s", now)
        return now

    def _reserve(self, batch: Batch, cost: float) -> None:
        self.costs[batch.path] = cost
        self.engine.budget.add(cost)

    def _write(self) -> Batch | None:
        """Write the next file of requests; None where none is left, or none that the budget has room for."""
        lines: list[bytes] = []
        size, cost = 0, 0.0
        while (request := self.again.popleft() if self.again else next(self.asked, None)) is not None:
            name, estimate, body = request
            line, most = request_line(name, body), self.engine._most(estimate)
            is_full = len(lines) >= self.engine.requests or (lines and size + len(line) > self.engine.bytes)
            if is_full or not self.engine.budget.fits(cost + most):
                self.again.appendleft(request)
                break
            lines.append(line)
            size, cost = size + len(line), cost + most
        if not lines:
            return None
        number = max((int(path.stem) for path in self.folder.glob("*.json*")), default=0) + 1
        batch = Batch(self.folder / f"{number:04d}.jsonl")
        with atomic_path(batch.path) as temporary:
            temporary.write_bytes(b"".join(lines))
        self._reserve(batch, cost)
        return batch

    def _fetch(self, batch: Batch, state: dict[str, Any]) -> None:
        """Keep the answers of a batch that has ended; what has none comes into a batch once more."""
        requests = {request[0]: request for request in self.engine._missing(list(batch.bodies().values()))}
        answered, wrong = [], {}
        for name, content, error in self.api.results(state):
            if name not in requests:
                continue
            try:
                if content is None:
                    raise ValueError(error)
                answered.append(Paid.of(name, read_completion(content), requests[name][1]))
            except (ValueError, LookupError, TypeError) as found:
                wrong[name] = str(found) or f"no chat completion, but {shown(content)}"
        self.engine.journal.add(answered)
        batch.path.unlink()
        self.engine.budget.release(self.costs.pop(batch.path))
        kept = {paid.request for paid in answered}
        left = {name: request for name, request in requests.items() if name not in kept}
        log.info(
            "generate: batch %s is %s: %d answers, %d requests without",
            batch.batch,
            state["status"],
            len(kept),
            len(left),
        )
        if state["status"] == "cancelled" and left:
            raise InputError(
                f"Batch {batch.batch} was cancelled; {len(left):,} of its requests have no answer. {GO_ON}"
            )
        for name, request in left.items():
            self.failures[name] += 1
            if self.failures[name] > self.engine.retries:
                self.given_up[name] = wrong.get(name, f"the batch is {state['status']}, and has no line of it")
            else:
                self.again.append(request)
