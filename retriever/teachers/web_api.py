"""A teacher behind a web API, which scores the documents of one query in one request."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from retriever.errors import InputError, require_positive, shown
from retriever.teachers.base import Teacher, check_pairs, numbers_by_text
from retriever.web import WebClient, check_address


class WebApi(Teacher):
    """Posts ``{"query": str, "documents": [str, …]}``; the answer is ``{"scores": [float, …]}``, one each, in order.

    Args:
        url: where to post; it stands in manifests, so no key belongs in it.
        name: what the scores are kept under, and used again; None: the address.
        key_variable: as for :class:`~retriever.web.WebClient`, as are the last three.
        documents_per_request: of one query, at most.
        parallel: requests under way at once.
        retries: of one request.
        timeout: of one try, in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        key_variable: str = "TEACHER_API_KEY",
        documents_per_request: int = 100,
        parallel: int = 8,
        retries: int = 5,
        timeout: float = 60.0,
    ) -> None:
        check_address("teacher.url", url, key_variable)
        require_positive(**{"teacher.documents_per_request": documents_per_request})
        self.client = WebClient(url, "teacher", key_variable, parallel, retries, timeout)
        self.name = name or url
        self.documents_per_request = documents_per_request

    def description(self) -> dict[str, Any]:
        """See :class:`Teacher`."""
        # an API may read the documents of a request together
        return {"kind": "web API", "name": self.name, "documents_per_request": self.documents_per_request}

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """Score n pairs, float64 [n]; those of one query go together, wherever they stand.

        Raises:
            InputError: no answer after all retries, a refusal, or an answer of another form.
        """
        check_pairs(queries, passages)
        size = self.documents_per_request
        parts = [
            (q, pairs[i : i + size])
            for q, pairs in numbers_by_text(queries).items()
            for i in range(0, len(pairs), size)
        ]
        bodies = [{"query": query, "documents": [passages[p] for p in pairs]} for query, pairs in parts]
        scores = np.zeros(len(queries))
        for (_, pairs), answer in zip(parts, self.client.post(bodies), strict=True):
            try:
                found = answer.json()["scores"]
                fits = len(found) == len(pairs) and all(type(score) in (int, float) for score in found)
            except (ValueError, KeyError, TypeError):
                fits = False
            if not fits:
                raise InputError(
                    f"{self.client.url} answered {shown(answer.text)} for {len(pairs)} documents; expected "
                    '{"scores": [a number for each]}.'
                )
            scores[pairs] = found
        return scores
