"""A server of OpenAI's protocol on this machine, which plays a model by a function of the request."""

import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serving(answer: Callable[[str, dict[str, Any]], tuple[int, Any]]) -> Iterator[str]:
    """Serve by POST, as long as the block runs; yield the address.

    Args:
        answer: path and JSON of a request → status and JSON of the answer.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = answer(self.path, request)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def chat(text: str, logprobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Write a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice | ({"logprobs": {"content": logprobs}} if logprobs else {})]}


def token(text: str, **probabilities: float) -> dict[str, Any]:
    """Write a token as a chat completion's ``logprobs`` do, with its alternatives (``g2`` for the token ``2``)."""
    likely = [{"token": name.lstrip("g"), "logprob": math.log(p)} for name, p in probabilities.items()]
    return {"token": text, "logprob": 0.0, "top_logprobs": likely}


def common_words(query: str, passage: str) -> int:
    """What a model that counts words thinks of a pair."""
    return len(set(query.lower().split()) & set(passage.lower().split()))


def ranker(request: dict[str, Any]) -> dict[str, Any]:
    """Order the passages ``[1] …`` of a prompt by the words that they share with the query."""
    prompt = request["messages"][0]["content"]
    query = re.search(r"search query: (.*)", prompt)[1]
    texts = {int(n): text for n, text in re.findall(r"^\[(\d+)\] (.*)$", prompt, re.MULTILINE)}
    best_first = sorted(texts, key=lambda n: -common_words(query, texts[n]))
    return chat(" > ".join(f"[{n}]" for n in best_first))


def grade(query: str, passage: str) -> int:
    """Grade by the share of the query's words that are in the passage, 0 to 3."""
    return 3 * common_words(query, passage) // len(set(query.lower().split()))


def grader(request: dict[str, Any]) -> dict[str, Any]:
    """Grade the pair of a prompt."""
    prompt = request["messages"][0]["content"]
    query, passage = re.search(r"Search query: (.*)\nPassage: ((?s:.*))\n\nAnswer", prompt).groups()
    return chat(str(grade(query, passage)))
