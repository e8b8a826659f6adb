"""Posts JSON to a web API, many requests at a time, and again where the server is out of reach, busy or failing."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from retriever.errors import InputError, require_positive, shown

_PASSING = (408, 409, 429, 500, 502, 503, 504)  # statuses that may be gone at the next try
_NOT_BEGUN = (429, 503)  # of these, those of a server that has done nothing yet
GO_ON = "What is done so far is kept; start again to go on."


@dataclass(frozen=True)
class WebClient:
    """One address of a web API.

    Attributes:
        url: where to post.
        group: the settings that these are, for messages: ``teacher`` or ``generator.server``.
        key_variable: environment variable that holds the key, sent as ``Authorization: Bearer …`` where it is set; the
            key itself stands in no file.
        parallel: requests under way at once.
        retries: of one request, with growing pauses.
        timeout: of one try, in seconds without a byte of an answer.
        doubt: what to ask oneself where no good answer comes, a sentence.
    """

    url: str
    group: str
    key_variable: str
    parallel: int
    retries: int
    timeout: float
    doubt: str = "Is the server there?"

    def __post_init__(self) -> None:
        """Check the values."""
        require_positive(**{f"{self.group}.{name}": getattr(self, name) for name in ("parallel", "timeout")})
        if self.retries < 0:
            raise InputError(f"{self.group}.retries is {self.retries}; it must be at least 0.")

    def post(
        self,
        bodies: Sequence[Any],
        around: Callable[[Callable[[Any], requests.Response], Any], requests.Response] | None = None,
    ) -> Iterator[requests.Response]:
        """Post each of some JSON values; yield the answers, all of status 200, in this order.

        Args:
            bodies: the values.
            around: called in place of each post, by many threads, with what posts a value, and one of ``bodies``.

        Raises:
            InputError: no answer after all retries, or one of another status.
        """
        with self._session() as session, ThreadPoolExecutor(self.parallel) as pool:

            def post(body: Any) -> requests.Response:
                return self._send(session, "POST", self.url, json=body)

            yield from pool.map(partial(around, post) if around else post, bodies)

    def send(self, method: str, path: str, once: bool = False, **options: Any) -> requests.Response:
        """Send one request.

        Args:
            method: ``GET`` or ``POST``.
            path: below the URL.
            once: try again only where the server cannot have done anything yet.
            **options: of ``requests.request``: ``json``, ``files``, …

        Raises:
            InputError: as :meth:`post`.
        """
        with self._session(once) as session:
            return self._send(session, method, f"{self.url}/{path}", **options)

    def _session(self, once: bool = False) -> requests.Session:
        retry = Retry(
            self.retries,
            read=0 if once else None,
            other=0 if once else None,
            allowed_methods=None,  # a POST, too: to ask twice does no harm
            status_forcelist=_NOT_BEGUN if once else _PASSING,
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

    def _send(self, session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
        try:
            # a POST that is redirected becomes a GET
            answer = session.request(method, url, timeout=self.timeout, allow_redirects=method == "GET", **options)
        except requests.RequestException as error:
            raise InputError(
                f"{url}: {' '.join(str(error).split())[:300]} (after {self.retries} retries). {self.doubt} {GO_ON}"
            ) from error
        if answer.status_code != 200:
            key = "is set" if os.environ.get(self.key_variable) else "is not set"
            raise InputError(
                f"{url} answered with status {answer.status_code}: {shown(answer.text)} (the key's variable "
                f"{self.key_variable} {key}). {self.doubt} {GO_ON}"
            )
        return answer


def check_address(setting: str, url: str, key_variable: str) -> None:
    """Raise an InputError where a setting of the teacher is no web address, or one with a user or a key in it."""
    if not url.startswith(("http://", "https://")) or "@" in url:
        said = "an address with a user in it" if "@" in url else shown(url)
        raise InputError(
            f"{setting} is {said}; it must be http://… or https://…, and the key in the environment variable "
            f"{key_variable} (teacher.key_variable)."
        )


class _Bearer(requests.auth.AuthBase):
    """The key of a request; as ``auth``, for else requests takes what ~/.netrc says of that host."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.key}"
        return request
