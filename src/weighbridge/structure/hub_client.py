"""Requests to the hub through huggingface_hub's own client: bounded in bytes and time, refused in one sentence."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from weighbridge.errors import HubError
from weighbridge.progress import Progress

if TYPE_CHECKING:
    import httpx

#: A header may come slowly, but not for ever; neither may the connection, nor the next byte.
DEADLINE_SECONDS = 120.0
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0

_CONTENT_RANGE = re.compile(r"bytes (?P<begin>[0-9]{1,18})-[0-9]{1,18}/(?P<size>[0-9]{1,18})")
_PLAIN_ETAG = re.compile(r'(?:W/)?"?[0-9A-Za-z][\w.:+=-]{0,200}"?', re.ASCII)
_ELSEWHERE = "name a directory that holds the checkpoint (for a build --model or MODEL=path), or run 'make demo'"
_REFUSALS = {
    "GatedRepo": ("access to it must be asked for on the hub", "accept its terms there and set HF_TOKEN"),
    "RepoNotFound": ("the hub has no such repository, or not for this token", "check the id, or set HF_TOKEN"),
    "RevisionNotFound": ("the repository has no such revision", "check the branch, tag or commit"),
    "EntryNotFound": ("the repository has no such file", "take another revision"),
}
"""What the hub's ``X-Error-Code`` means, and what to do. The codes: ``hf_raise_for_status`` of huggingface_hub 1.33."""

_T = TypeVar("_T")


def fetch_bytes(url: str, *, begin: int = 0, end: int, where: str) -> tuple[bytes, int | None]:
    """Bytes `begin` to at most `end` of what lies at a URL, and the size of the whole if the answer says it.

    Redirects are followed; the token goes to the host that was asked alone, as httpx drops it for any other.

    Raises:
        HubError: no network, no access, nothing there, too slow, or an answer about other bytes.
    """
    import httpx
    from huggingface_hub.utils import build_hf_headers, get_session

    def read() -> tuple[bytes, int | None]:
        headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        content = bytearray()
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            if response.status_code not in (200, 206):
                what, remedy = _refusal(response)
                raise HubError(what, where=where, remedy=remedy)
            first, size = _extent(response, begin, where=where)
            stop = (end if size is None else min(end, size)) - first
            for chunk in response.iter_raw():
                content += chunk
                if len(content) >= stop:
                    break
        return bytes(content[begin - first : stop]), size

    with explained(where):
        return _in_time(read, where=where)


def _extent(response: httpx.Response, begin: int, *, where: str) -> tuple[int, int | None]:
    """Where in the file the body begins, and the size of the file: a server that ignores ranges sends the whole."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise HubError("the answer is compressed, which was not asked for", where=where)
    if response.status_code == 200:
        length = response.headers.get("content-length", "")
        return 0, int(length) if length.isascii() and length.isdigit() else None
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None or int(match["begin"]) != begin:
        raise HubError("the answer is about other bytes than were asked for", where=where, remedy="try again")
    return begin, int(match["size"])


def _in_time(read: Callable[[], _T], *, where: str) -> _T:
    """Run with a deadline for the whole: a socket's own timeout starts anew with every byte that drips in."""
    future: Future[_T] = Future()

    def work() -> None:
        try:
            future.set_result(read())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    if not wait([future], timeout=DEADLINE_SECONDS).done:
        what = f"{DEADLINE_SECONDS:g} seconds were not enough to read it"
        raise HubError(what, where=where, remedy=f"try again, or {_ELSEWHERE}")
    return future.result()


def wary_client() -> httpx.Client:
    """The hub client's own connection, and a check that the hub client lacks.

    huggingface_hub 1.33 names files of its cache after ETags as they come: ``ETag: "/home/me/.profile"`` writes there.
    """
    from huggingface_hub.utils._http import default_client_factory

    client: httpx.Client = default_client_factory()
    client.event_hooks = {**client.event_hooks, "response": [_check_etag]}
    return client


def _check_etag(response: httpx.Response) -> None:
    for header in ("etag", "x-linked-etag"):
        etag = response.headers.get(header)
        if etag is not None and response.request.method == "HEAD" and not _PLAIN_ETAG.fullmatch(etag):
            raise HubError(f"the hub calls its content {etag[:80]!r}, which is no digest", where=response.url.path)


def advancing(progress: Progress) -> type[Any]:
    """What the hub's client takes for the bar of a file: it shows none, and moves that of the whole download."""
    from tqdm import tqdm

    class Advancing(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            progress.advance(options.get("initial", 0))

        def update(self, n: float | None = 1) -> None:
            progress.advance(int(n or 0))

        def update_transfer(self, n: float) -> None:
            """Bytes on their way, which Xet's storage tells apart from those written."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Their rate, likewise."""

    return Advancing


@contextmanager
def hushed() -> Iterator[None]:
    """Leave out the hub client's warnings: they print signed addresses, and what matters stands in the error."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence.

    Raises:
        HubError: in place of the client's own errors.
    """
    import httpx

    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RuntimeError) as error:
        what, remedy = _explanation(error)
        raise HubError(what, where=where, remedy=remedy) from error


def _explanation(error: BaseException) -> tuple[str, str]:
    import httpx
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # "not in the cache": because of what?
    match error:
        case errors.HfHubHTTPError():
            return _refusal(error.response)
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set and this is not in the cache", f"unset it, {_ELSEWHERE}"
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.ProxyError() | httpx.UnsupportedProtocol():
            return f"{_host(error.request)} cannot be reached ({_first_line(error)})", _ELSEWHERE
        case httpx.RequestError():
            return f"{_host(error.request)} gave no whole answer ({_first_line(error)})", "try again"
        case httpx.InvalidURL() | ValueError():
            return f"the hub's client cannot ask for it ({_first_line(error)})", "check HF_ENDPOINT and proxy settings"
        case _:
            remedy = "check disk and network; where the hub's Xet storage is blocked, set HF_HUB_DISABLE_XET=1"
            return f"the download failed ({_first_line(error)})", remedy


def _refusal(response: httpx.Response) -> tuple[str, str]:
    """What an answer that is no success means, and what to do. Its text is left alone: it is a stranger's."""
    code, status = response.headers.get("x-error-code", ""), response.status_code
    if code in _REFUSALS:
        return _REFUSALS[code]
    remedy = "check HF_TOKEN, or what it may read" if status in (401, 403) else "try again later"
    return f"{_host(response.request)} answered with status {status}", remedy


def _host(request: httpx.Request) -> str:
    return request.url.netloc.decode() or "the hub"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
