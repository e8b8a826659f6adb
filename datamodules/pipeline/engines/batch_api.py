"""Batches of an OpenAI-compatible web API: files of requests, which are answered within a day at a lower price."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datamodules.storage.files import json_lines, read_json, write_json
from retriever.errors import InputError, shown
from retriever.web import WebClient

log = logging.getLogger(__name__)
_ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "expired", "cancelled", "failed")
_FULL = "token_limit_exceeded"  # the server takes no more before others have ended


@dataclass
class Batch:
    """A file of requests, and what the server calls it.

    Beside ``0001.jsonl``, the requests, is ``0001.json``, this record. The requests are removed once their answers are
    kept; the record stays.

    Attributes:
        path: of the requests.
        file: the uploaded file's id.
        tried: whether a submission may have reached the server, whose answer may be lost.
        batch: the batch's id.
        done: of its requests, as the server last said.
    """

    path: Path
    file: str | None = None
    tried: bool = False
    batch: str | None = None
    done: int = 0

    @classmethod
    def unfinished(cls, folder: Path) -> "list[Batch]":
        """Batches that a process before has submitted, and whose answers are not kept; others' files are removed."""
        found = []
        for path in sorted(folder.glob("*.jsonl")):
            record = path.with_suffix(".json")
            batch = cls(path, **(read_json(record) if record.is_file() else {}))
            if batch.tried:
                found.append(batch)
            else:  # sizes and the budget may be others now
                path.unlink()
        return found

    def save(self) -> None:
        """Write the record."""
        write_json(self.path.with_suffix(".json"), {k: v for k, v in asdict(self).items() if k != "path"})

    def bodies(self) -> dict[str, dict[str, Any]]:
        """Name → body of each request."""
        return {line["custom_id"]: line["body"] for _, line in json_lines(self.path)}


def request_line(name: str, body: dict[str, Any]) -> bytes:
    """Write a request as a line of a batch's file."""
    line = {"custom_id": name, "method": "POST", "url": _ENDPOINT, "body": body}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


class BatchApi:
    """Uploads, submits, asks for and fetches batches.

    Args:
        client: its URL is the API's, for example ``https://host/v1``.
        window: within which batches are answered; the API knows ``24h``.
    """

    def __init__(self, client: WebClient, window: str) -> None:
        self.client, self.window = client, window

    def submit(self, batch: Batch) -> None:
        """Submit a batch, unless it is submitted; a process that was killed in between has submitted it once."""
        if batch.batch is not None:
            return
        if batch.file is None:
            content = {"file": (batch.path.name, batch.path.read_bytes(), "application/jsonl")}
            batch.file = self._object("POST", "files", files=content, data={"purpose": "batch"})["id"]
            batch.save()
        found = self._find(batch.file) if batch.tried else None
        if found is None:
            batch.tried = True
            batch.save()
            asked = {"input_file_id": batch.file, "endpoint": _ENDPOINT, "completion_window": self.window}
            # to ask twice would pay twice
            found = self._object("POST", "batches", once=True, json=asked)
        batch.batch = found["id"]
        batch.save()
        log.info("generate: batch %s is submitted", batch.batch)

    def state(self, batch: Batch) -> dict[str, Any]:
        """What the server says of a batch."""
        found = self._object("GET", f"batches/{batch.batch}")
        batch.done = (found.get("request_counts") or {}).get("completed") or batch.done
        return found

    def is_too_early(self, state: dict[str, Any]) -> bool:
        """Whether a batch has failed because too many requests are waiting already."""
        return state["status"] == "failed" and any(error.get("code") == _FULL for error in _errors(state))

    def require_valid(self, batch: Batch, state: dict[str, Any]) -> None:
        """Refuse a batch that the server refuses; its requests are written anew when the command is started again.

        Raises:
            InputError: with the server's reason.
        """
        if state["status"] == "failed":
            self.forget(batch)
            said = next((error.get("message") for error in _errors(state)), None)
            raise InputError(f"{self.client.url} refuses batch {state['id']}: {shown(said)}. {self.client.doubt}")

    def forget(self, batch: Batch) -> None:
        """Take a batch as not submitted."""
        batch.batch, batch.tried = None, False
        batch.save()

    def results(self, state: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
        """Fetch the answers to a batch, in any order.

        Yields:
            A request's name; its chat completion, or None; then what is wrong.
        """
        for key in ("output_file_id", "error_file_id"):
            if state.get(key):
                content = self.client.send("GET", f"files/{state[key]}/content").content
                for line in filter(None, content.split(b"\n")):
                    yield _result(line, f"{self.client.url}/files/{state[key]}")

    def _find(self, file: str) -> dict[str, Any] | None:
        """The batch of an uploaded file, among the latest."""
        after = ""
        while True:
            page = self._object("GET", f"batches?limit=100{after}")
            for found in page["data"]:
                if found["input_file_id"] == file and found["status"] != "failed":
                    return found
            if not page.get("has_more"):
                return None
            after = f"&after={page['data'][-1]['id']}"

    def _object(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self.client.send(method, path, **options)
        try:
            found = answer.json()
            if not ("data" in found if path.startswith("batches?") else "id" in found):
                raise LookupError
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{self.client.url}/{path} answered {shown(answer.text)}; expected an object with an id, or a list of "
                f"batches. {self.client.doubt}"
            ) from error
        return found


def _errors(state: dict[str, Any]) -> list[dict[str, Any]]:
    return (state.get("errors") or {}).get("data") or []


def _result(line: bytes, where: str) -> tuple[str, Any, str]:
    try:
        found = json.loads(line)
        name, response, error = found["custom_id"], found.get("response") or {}, found.get("error")
        if response.get("status_code") == 200 and not error:
            return name, response["body"], ""
        said = error or (response.get("body") or {}).get("error") or response
        return name, None, str(said.get("message") or said)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{where} has the line {shown(line.decode(errors='replace'))}; expected a result.") from error
