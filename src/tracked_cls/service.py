"""`serve` as a use case: a registered model, or an export, that answers over HTTP until it is told to end."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tracked_cls.config import ServeConfig
from tracked_cls.console import say
from tracked_cls.data.encode import to_png
from tracked_cls.finding import Found
from tracked_cls.host import open_more_files
from tracked_cls.provenance import num_cores
from tracked_cls.serving import listener
from tracked_cls.serving.address import reached
from tracked_cls.serving.classifier import Classifier
from tracked_cls.serving.gateway import Gateway, Scorer
from tracked_cls.serving.limits import Limits
from tracked_cls.serving.packaging import Bundle
from tracked_cls.serving.scoring import mlflow_app

_ANSWER_SECONDS = 30.0  # for its own first question


def run(cfg: ServeConfig, bound: socket.socket, find: Callable[[], Found], on_end: Callable[[], None]) -> None:
    """Serve the model that `find` waits for until SIGINT or SIGTERM; call `on_end` after the last answer."""
    found, limits, address = find(), limits_of(cfg), reached(bound)
    bundle = Bundle(found.folder)
    classifier = Classifier.load(bundle.onnx, bundle.meta, threads=1)  # requests share the cores
    open_more_files()
    gateway = make_gateway(classifier, limits, cfg.serve.threshold, about(found, classifier))
    listener.listen(gateway, bound, limits, lambda: _announce(address, cfg, found, classifier), on_end)


def limits_of(cfg: ServeConfig) -> Limits:
    """Return what a request may cost."""
    serve = cfg.serve
    return Limits(
        max_body_bytes=serve.max_body_bytes,
        max_images=serve.max_images,
        max_pixels=serve.max_pixels,
        max_waiting=serve.max_waiting,
        timeout_seconds=serve.timeout_seconds,
        at_once=num_cores(),
    )


def make_gateway(classifier: Classifier, limits: Limits, threshold: float, about: dict[str, Any]) -> Gateway:
    """Return the ASGI application that answers for a classifier."""
    scorer = Scorer(classifier, limits, threshold)
    return Gateway(scorer, mlflow_app(scorer.table, limits.timeout_seconds), limits, about)


def about(found: Found, classifier: Classifier) -> dict[str, Any]:
    """Return what ``/health`` tells: enough to find the training run and the data."""
    meta = classifier.meta
    known = {key: meta.get(key) for key in ("weights_digest", "run_id", "data")}
    return {"ready": True, "model": found.exact, "address": found.address, **known, "num_classes": len(classifier.classes)}


# ---- the first question ----------------------------------------------------------------------------------------------


def _announce(address: tuple[str, int], cfg: ServeConfig, found: Found, classifier: Classifier) -> None:
    _wait_until(lambda: _health(address))
    for line in lines(address, cfg, found, classifier):
        say(line)


def _wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + _ANSWER_SECONDS
    while not is_so():
        if time.monotonic() > until:
            raise RuntimeError(f"the server does not answer itself within {_ANSWER_SECONDS:g} s")
        time.sleep(0.05)


def _health(address: tuple[str, int]) -> bool:
    connection = http.client.HTTPConnection(*address, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/health")
        return bool(json.load(connection.getresponse())["ready"])
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def lines(address: tuple[str, int], cfg: ServeConfig, found: Found, classifier: Classifier) -> list[str]:
    """Return what a person wants to know once requests are answered."""
    (host, port), meta = address, classifier.meta
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    text = [
        f"serve: {found.exact} answers at {url} (Ctrl-C ends it)",
        f"  weights {meta['weights_digest']}, {len(classifier.classes)} classes, run {meta.get('run_id')}",
        f"  a file: curl -s -H 'Content-Type: image/png' --data-binary @FILE.png '{url}/predict?top_k=3'",
        f"  try it: curl -s -H 'Content-Type: application/json' -d '{_example(classifier)}' {url}/invocations",
    ]
    if cfg.serve.host not in ("127.0.0.1", "localhost", "::1"):
        text.append(f"  warning: whoever reaches {cfg.serve.host}:{port} may ask: nobody is asked who they are")
    return text


def _example(classifier: Classifier) -> str:
    """Return a request for the label of a plain image, as short as JSON allows."""
    geometry = classifier.preprocess.geometry
    image = to_png(np.full((geometry.image_size, geometry.image_size, 1), 128, np.uint8))
    rows = {"columns": ["image"], "data": [[base64.b64encode(image).decode()]]}
    return json.dumps({"dataframe_split": rows, "params": {"top_k": 3}})
