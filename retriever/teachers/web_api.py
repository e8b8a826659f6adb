"""A teacher behind a web API, which scores the documents of one query in one request."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from retriever.errors import InputError, require_positive, shown
from retriever.teachers.base import Teacher, check_pairs

_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may be gone at the next try


class WebApi(Teacher):
    """Posts ``{"query": str, "documents": [str, …]}``; the answer is ``{"scores": [float, …]}``, one each, in order.

    Args:
        url: where to post; it stands in manifests, so no key belongs in it.
        name: what the scores are kept under, and used again; None: the address.
        key_variable: environment variable that holds the key, sent as ``Authorization: Bearer …`` where it is set; the
            key itself stands in no file.
        documents_per_request: of one query, at most.
        parallel: requests under way at once.
        retries: of one request, with growing pauses, where the server is out of reach, busy or failing.
        timeout: of one try, in seconds without a byte of an answer.
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
        if not url.startswith(("http://", "https://")) or "@" in url:
            said = "an address with a user in it" if "@" in url else shown(url)
            raise InputError(
                f"teacher.url is {said}; it must be http://… or https://…, and the key in the environment variable "
                f"{key_variable} (teacher.key_variable)."
            )
        require_positive(
            **{
                "teacher.documents_per_request": documents_per_request,
                "teacher.parallel": parallel,
                "teacher.timeout": timeout,
            }
        )
        if retries < 0:
            raise InputError(f"teacher.retries is {retries}; it must be at least 0.")
        self.url = url
        self.name = name
        self.key_variable = key_variable
        self.documents_per_request = documents_per_request
        self.parallel = parallel
        self.retries = retries
        self.timeout = timeout

    def description(self) -> dict[str, Any]:
        """See :class:`Teacher`."""
        # an API may read the documents of a request together
        return {
            "kind": "web API",
            "name": self.name or self.url,
            "documents_per_request": self.documents_per_request,
        }

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """Score n pairs, float64 [n]; those of one query go together, wherever they stand.

        Raises:
            InputError: no answer after all retries, a refusal, or an answer of another form.
        """
        check_pairs(queries, passages)
        pairs_of: dict[str, list[int]] = {}
        for pair, query in enumerate(queries):
            pairs_of.setdefault(query, []).append(pair)
        size = self.documents_per_request
        parts = [(q, pairs[i : i + size]) for q, pairs in pairs_of.items() for i in range(0, len(pairs), size)]
        scores = np.zeros(len(queries))
        with self._session() as session, ThreadPoolExecutor(self.parallel) as pool:
            found = pool.map(lambda part: self._ask(session, part[0], [passages[p] for p in part[1]]), parts)
            for (_, pairs), values in zip(parts, found, strict=True):
                scores[pairs] = values
        return scores

    def _session(self) -> requests.Session:
        retry = Retry(
            self.retries,
            allowed_methods=None,  # a POST, too: to score twice does no harm
            status_forcelist=_PASSING,
            backoff_factor=0.5,
            raise_on_status=False,
        )
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=self.parallel, max_retries=retry))
        key = os.environ.get(self.key_variable)
        if key:
            session.auth = _Bearer(key)
        return session

    def _ask(self, session: requests.Session, query: str, documents: list[str]) -> list[float]:
        body = {"query": query, "documents": documents}
        try:
            # a POST that is redirected becomes a GET
            answer = session.post(self.url, json=body, timeout=self.timeout, allow_redirects=False)
        except requests.RequestException as error:
            raise InputError(
                f"{self.url}: {' '.join(str(error).split())[:300]} (after {self.retries} retries). Is the server "
                "there? What is done so far is kept; start again to go on."
            ) from error
        if answer.status_code != 200:
            key = "is set" if os.environ.get(self.key_variable) else "is not set"
            raise InputError(
                f"{self.url} answered with status {answer.status_code}: {shown(answer.text)} (the key's variable "
                f"{self.key_variable} {key}). What is done so far is kept; start again to go on."
            )
        try:
            scores = answer.json()["scores"]
            fits = len(scores) == len(documents) and all(type(score) in (int, float) for score in scores)
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise InputError(
                f"{self.url} answered {shown(answer.text)} for {len(documents)} documents; expected "
                '{"scores": [a number for each]}.'
            )
        return scores


class _Bearer(requests.auth.AuthBase):
    """The key of a request; as ``auth``, for else requests takes what ~/.netrc says of that host."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.key}"
        return request
