"""Every request goes through here: limits first, then MLflow's scoring server or a plain image, then an answer without data.

A pure ASGI application. What goes wrong is one line of JSON, ``{"error": "..."}``: 4xx for the client's mistake, 5xx for ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import pandas as pd

from tracked_cls.errors import UserError
from tracked_cls.redaction import redacted
from tracked_cls.serving import limits as limit
from tracked_cls.serving.classifier import Classifier
from tracked_cls.serving.limits import Body, Gone, Limits, Memory, Message, Places, Receive, Refusal
from tracked_cls.serving.payload import Payload, parse
from tracked_cls.serving.pyfunc import COLUMN, Wanted, rows, table_of

Send = Callable[[Message], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

_JSON = "application/json"
_LARGE_BYTES = 1 << 16  # JSON of this size is looked at in a thread, while others are answered
_PARAMETERS = {"top_k": limit.whole_number, "threshold": limit.number}
_ENDING = "the server is ending; ask the next one"


class _Late(Exception):  # noqa: N818 - says when, not what
    """Nobody waits for this answer any more."""


@dataclass
class _Asked:
    """The request that a thread works for: its images, until when, and what went wrong there."""

    until: float = float("inf")
    cells: list[Any] = field(default_factory=list)
    error: Exception | None = None

    def check_time(self) -> None:
        if time.monotonic() > self.until:
            raise _Late


_asked: ContextVar[_Asked] = ContextVar("asked")  # MLflow's server passes nothing on, but it keeps the context


@dataclass(frozen=True)
class Answer:
    """Status, body and headers."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Scorer:
    """The classifier as requests use it, in any thread."""

    def __init__(self, classifier: Classifier, limits: Limits, threshold: float) -> None:
        self._classifier, self._max_pixels, self._threshold = classifier, limits.max_pixels, threshold

    def table(self, data: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        """Answer a table of the numbers of images, noting what went wrong for the gateway: MLflow would say it as text."""
        asked = _asked.get()
        try:
            images = pd.DataFrame({COLUMN: pd.Series([asked.cells[int(number)] for number in data[COLUMN]], dtype=object)})
            options = {"max_pixels": self._max_pixels, "before_each": asked.check_time}
            return table_of(self._classifier, images, self._wanted(params), **options)
        except Exception as error:
            asked.error = error
            raise

    def row(self, image: bytes, params: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one encoded image."""
        return rows(self._classifier, [image], self._wanted(params), self._max_pixels)[0]

    def check(self, params: Mapping[str, Any]) -> None:
        """Raise `UserError` where these are no parameters, or out of range."""
        self._wanted(params)

    def _wanted(self, params: Mapping[str, Any]) -> Wanted:
        return Wanted.of({"threshold": self._threshold, **params})


class Gateway:
    """The ASGI application that is served.

    ``POST /predict`` takes one image file as its body, ``POST /invocations`` what MLflow's scoring server takes; ``GET
    /health`` answers `about`.
    """

    def __init__(self, scorer: Scorer, app: App, limits: Limits, about: Mapping[str, Any]) -> None:
        self._scorer, self._app, self._limits = scorer, app, limits
        self._about = json.dumps(about).encode()
        self._places, self._memory = Places(limits), Memory(limits)
        self._desk = asyncio.Semaphore(1)  # where a large JSON is taken apart: it is in memory three times then
        self._routes: dict[str, tuple[str, Callable[[dict[str, Any], Body], Awaitable[Answer]]]] = {
            "/predict": ("POST", self._predict),
            "/invocations": ("POST", self._invocations),
            "/health": ("GET", self._health),
            "/ping": ("GET", self._plain),
            "/version": ("GET", self._plain),
        }

    @property
    def is_busy(self) -> bool:
        """Whether a thread is still computing."""
        return self._places.is_busy

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http", "neither websockets nor lifespan are served"
        body = Body(_headers(scope), receive, self._limits, self._memory)
        try:
            answer = await self._answer(scope, body)
            body.release()  # what is still to come of one that was refused is dropped
            await _send(answer, body, send)
        except Gone:
            return
        finally:
            body.release()

    async def _answer(self, scope: dict[str, Any], body: Body) -> Answer:
        try:
            return await self._route(scope)(scope, body)
        except Refusal as refusal:
            return _refused(refusal)
        except Gone:
            raise
        except asyncio.CancelledError:  # the time for requests under way is over
            body.abandon()
            return _refused(Refusal(503, _ENDING))
        except Exception as error:
            return _refused(_failure(error, self._limits))

    def _route(self, scope: dict[str, Any]) -> Callable[[dict[str, Any], Body], Awaitable[Answer]]:
        if scope["path"] not in self._routes:
            raise Refusal(404, f"there is no such address here; there are {', '.join(self._routes)}")
        method, route = self._routes[scope["path"]]
        if scope["method"] != method and (scope["method"], method) != ("HEAD", "GET"):
            raise Refusal(405, f"this address takes {method}", {"allow": method})
        return route

    # ---- routes ------------------------------------------------------------------------------------------------------

    async def _health(self, scope: dict[str, Any], body: Body) -> Answer:
        return Answer(200, self._about)

    async def _plain(self, scope: dict[str, Any], body: Body) -> Answer:
        return await self._from_app(
            {**scope, "method": "GET"}, b""
        )  # of HEAD, which MLflow does not take, the body is not sent

    async def _predict(self, scope: dict[str, Any], body: Body) -> Answer:
        kind = _headers(scope).get("content-type", "").partition(";")[0].strip().lower()
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise Refusal(
                415, "the body must be an image file, with its type: -H 'Content-Type: image/png' --data-binary @FILE"
            )
        params = limit.values_of(_query(scope), _PARAMETERS)
        await body.read()
        until = limit.deadline(self._limits)
        row = await self._places.run(lambda: asyncio.to_thread(self._scorer.row, body.taken(), params), until)
        if row["error"] is not None:
            raise Refusal(422, row["error"])
        return Answer(200, json.dumps(row).encode())

    async def _invocations(self, scope: dict[str, Any], body: Body) -> Answer:
        if not _is_json(_headers(scope).get("content-type", "")):
            raise Refusal(
                415, f"the body must be {_JSON}, in UTF-8: -H 'Content-Type: {_JSON}'; an image file goes to /predict"
            )
        await body.read()
        until = limit.deadline(self._limits)
        return await self._places.run(lambda: self._labelled(scope, body, until), until)

    async def _labelled(self, scope: dict[str, Any], body: Body, until: float) -> Answer:
        """Ask MLflow's scoring server, and put its errors in our words.

        It is given the numbers of the images: of the images themselves it would make six copies, and none where one of them
        is null or no text.
        """
        payload = await self._parsed(body, until)
        self._scorer.check(payload.params)
        asked = _Asked(until, payload.cells)
        _asked.set(asked)
        numbers = {"columns": [COLUMN], "data": [[str(number)] for number in range(len(payload.cells))]}
        content = json.dumps({"dataframe_split": numbers, "params": payload.params}).encode()
        as_json = {**scope, "headers": [(b"content-type", _JSON.encode())]}
        answer = await self._from_app(as_json, content)
        if asked.error is not None:
            raise asked.error
        if answer.status >= 400:
            raise RuntimeError(f"MLflow's scoring server answered {answer.status}: {answer.body[:500]!r}")
        return answer

    async def _parsed(self, body: Body, until: float) -> Payload:
        if body.num_bytes < _LARGE_BYTES:
            return parse(body.taken(), self._limits)
        async with self._desk:
            _Asked(until).check_time()
            return await asyncio.to_thread(lambda: parse(body.taken(), self._limits))

    async def _from_app(self, scope: dict[str, Any], content: bytes) -> Answer:
        """Return what MLflow's application answers to a request whose body is known."""
        messages: list[Message] = []
        sent = iter([{"type": "http.request", "body": content, "more_body": False}])

        async def receive() -> Message:
            if (message := next(sent, None)) is not None:
                return message
            await asyncio.Event().wait()  # it listens whether the client goes away: that is not its business
            raise AssertionError

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, keep)
        start, *parts = messages
        return Answer(start["status"], b"".join(part.get("body", b"") for part in parts))


def _headers(scope: dict[str, Any]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _is_json(content_type: str) -> bool:
    """Whether a header says JSON, in the one letter set that JSON has."""
    kind, *options = (part.strip() for part in content_type.lower().split(";"))
    return kind == _JSON and all(option in ("", "charset=utf-8", 'charset="utf-8"') for option in options)


def _query(scope: dict[str, Any]) -> dict[str, list[str]]:
    try:
        text = scope["query_string"].decode("ascii")
        return parse_qs(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=8)
    except ValueError:
        raise Refusal(400, "what follows the ? in the address cannot be read; like ?top_k=3&threshold=0.8") from None


def _refused(refusal: Refusal) -> Answer:
    return Answer(refusal.status, json.dumps({"error": refusal.reason}).encode(), refusal.headers)


def _failure(error: Exception, limits: Limits) -> Refusal:
    """Return what to say of an exception: a mistake of the client, or one of ours, which only the log explains."""
    if isinstance(error, UserError):
        return Refusal(400, str(error))
    if isinstance(error, _Late):
        return limit.late(limits)
    mark = uuid.uuid4().hex[:8]
    trace = "".join(traceback.format_exception(error))
    print(f"error {mark}: {redacted(trace)}", end="", file=sys.stderr, flush=True)
    return Refusal(500, f"this is the server's mistake, not yours; its log tells more of error {mark}")


async def _send(answer: Answer, body: Body, send: Send) -> None:
    """Send an answer; where the request has not been read to its end, the connection ends with it."""
    headers = {"content-type": _JSON, "content-length": str(len(answer.body)), **answer.headers}
    if not body.is_complete:
        headers["connection"] = "close"
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    await body.drain()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
