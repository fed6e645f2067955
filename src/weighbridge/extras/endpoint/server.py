"""A running server with OpenAI's API: where it is, what it serves, and answers as they stream from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from weighbridge.errors import Argument, Clause, StructureError, WeighbridgeError, first_line
from weighbridge.text.strict_json import parse_object

SILENCE = 600.0
"""Seconds without a byte after which a server is given up."""
MAX_LINE = 1 << 20
MAX_ANSWER = 1 << 24


class EndpointError(WeighbridgeError):
    """A server that cannot be reached, refuses a request, or answers something else than it was asked."""


@dataclass(frozen=True)
class Endpoint:
    """A server and the model that is asked for.

    Attributes:
        url: what comes before ``/v1``, without a slash at the end.
        model: the name under which it serves the model.
    """

    url: str
    model: str


def open_endpoint(url: str, model: str | None = None) -> Endpoint:
    """Ask a server what it serves.

    Args:
        url: with or without ``/v1``.
        model: the one to ask for; None for the only one that it serves.

    Raises:
        EndpointError: no such server, or it serves another model, or several and none was named.
    """
    base = url.rstrip("/").removesuffix("/v1")
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError("is no address of a server", where=url, remedy="write it as http://127.0.0.1:8000")
    response = _send(base, "GET", "/v1/models", None)
    served = _object(response.read(MAX_ANSWER), where=f"{base}/v1/models").get("data")
    names = [entry.get("id") for entry in served if isinstance(entry, dict)] if isinstance(served, list) else []
    if model is None and len(names) == 1 and isinstance(names[0], str):
        return Endpoint(base, names[0])
    if model is not None and model in names:
        return Endpoint(base, model)
    serves = ", ".join(map(str, names[:5])) or "no model"
    raise EndpointError(
        f"serves {serves}", where=base, remedy=Clause("name the model that is meant as ", Argument("model"))
    )


def stream(endpoint: Endpoint, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Ask for a completion and give each event of the answer as it arrives.

    Raises:
        EndpointError: the server refuses, breaks off, or sends what is no event.
    """
    where = f"{endpoint.url}/v1/completions"
    response = _send(endpoint.url, "POST", "/v1/completions", {"model": endpoint.model, "stream": True, **request})
    try:
        while line := response.readline(MAX_LINE):
            content = line.strip()
            if content == b"data: [DONE]":
                return
            if content.startswith(b"data:"):
                yield _object(content.removeprefix(b"data:"), where=where)
    except (OSError, HTTPException) as error:
        raise EndpointError(f"broke off ({first_line(error)})", where=where) from error
    finally:
        response.close()
    raise EndpointError("ended without [DONE]", where=where)


def _send(base: str, method: str, path: str, content: Mapping[str, Any] | None) -> HTTPResponse:
    """One request on a connection of its own, which the response closes."""
    parts = urlsplit(base)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=SILENCE)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        body = None if content is None else json.dumps(content).encode()
        connection.request(method, parts.path + path, body=body, headers=headers)
        response = connection.getresponse()
    except (OSError, ValueError, HTTPException) as error:
        raise EndpointError(
            f"cannot be reached ({first_line(error)})", where=base, remedy="start the server, or name another"
        ) from error
    if response.status != 200:
        said = response.read(MAX_LINE).decode(errors="replace")
        raise EndpointError(f"answers {response.status} to {method} {path}: {said[:200]}", where=base)
    return response


def _object(raw: bytes, *, where: str) -> dict[str, Any]:
    try:
        return parse_object(raw, where=where)
    except StructureError as error:
        raise EndpointError(error.what, where=where) from error
