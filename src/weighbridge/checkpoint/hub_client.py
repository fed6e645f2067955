"""Requests to the hub through huggingface_hub's own client: bounded in bytes and time, refused in one sentence.

What is asked of the client by doors that it does not document stands here and nowhere else. Each was read in version
1.33.0, which pyproject.toml pins: `default_client_factory` of ``utils._http`` (a client of one's own must keep the hook
that heeds ``HF_HUB_OFFLINE``), `abort_xet_session` of ``utils._xet`` (what the client itself does on an interrupt), and
the layout of the store that the repositories of a cache share, ``utils._shared_blobs``.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from weighbridge.errors import HubError, first_line
from weighbridge.progress import Progress

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

#: A header may come slowly, but not for ever; neither may the connection, nor the next byte.
DEADLINE_SECONDS = 120.0
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
#: Nor may a file's next byte; but Xet's transport, left alone, asks again after 300 seconds of silence, many times.
STALL_SECONDS = 400.0

_CONTENT_RANGE = re.compile(r"bytes (?P<begin>[0-9]{1,18})-[0-9]{1,18}/(?P<size>[0-9]{1,18})")
_PLAIN_ETAG = re.compile(r'(?:W/)?"?[0-9A-Za-z][\w.:+=-]{0,200}"?', re.ASCII)
_ELSEWHERE = "name a directory that holds the checkpoint (with make: MODEL=path; 'make demo' needs no network)"
_WITHOUT_XET = "where the hub's Xet storage is blocked, set HF_HUB_DISABLE_XET=1"
_REFUSALS = {
    "GatedRepo": ("access to it must be asked for on the hub", "accept its terms there and set HF_TOKEN"),
    "RepoNotFound": ("the hub has no such repository, or not for this token", "check the id, or set HF_TOKEN"),
    "RevisionNotFound": ("the repository has no such revision", "check the branch, tag or commit"),
    "EntryNotFound": ("the repository has no such file", "take another revision"),
}
"""What the hub's ``X-Error-Code`` means, and what to do. The codes: ``hf_raise_for_status`` of huggingface_hub 1.33."""

_T = TypeVar("_T")

_MARKER_BYTES = 16


class HubUnreachable(HubError):
    """The hub gave no answer, or could not: no network, no time, trouble of its own."""


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` keeps the hub's client, and so everybody, from asking the hub."""
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())


def cached_commit(repository: str, revision: str | None) -> str | None:
    """The commit that a branch, tag or commit is, as far as the hub client's cache knows.

    Raises:
        HubError: the client refuses the name, or its cache cannot be read.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    with explained(repository):
        try:
            return str(HfApi().resolve_revision(repository, revision=revision, local_files_only=True).resolved)
        except RevisionResolutionError:
            return None


def cached_file(repository: str, name: str, *, commit: str) -> Path | None:
    """Where the hub client's cache has a file of a commit, as it would find it itself; None where it has not.

    Raises:
        HubError: the client refuses the name, or its cache cannot be read.
    """
    from huggingface_hub import try_to_load_from_cache

    with explained(f"{repository}@{commit[:7]}"):
        found = try_to_load_from_cache(repository, name, revision=commit)
    if not isinstance(found, str):
        return None
    # Of a hub that serves another commit than is asked for, the client keeps that this commit is the other one.
    served = Path(found).parents[name.count("/")].name
    return Path(found) if served == commit else None


def remember_revision(repository: str, revision: str, *, commit: str) -> None:
    """Let the hub client's cache know which commit a branch or tag is, so that it is found by its name offline.

    Files are asked for by their commit, so nothing but this tells it. If it fails, the download stands all the same.
    """
    from huggingface_hub import HfApi

    try:
        if cached_commit(repository, revision) != commit:
            with explained(repository), hushed():
                _in_time(lambda: HfApi().resolve_revision(repository, revision=revision), where=repository)
    except HubError as error:
        log.warning("the hub client's cache does not know which commit %s is: %s", revision, error)


def shared_blob(blob: Path) -> Path | None:
    """Where a repository's blob lies in the store that its cache's repositories share; None if it is no such link.

    Files that came by Xet lie in ``<cache>/blobs/<2 hex>/<hash>``, and ``<repository>/blobs/<etag>`` is a link to it.

    Args:
        blob: ``<cache>/<repository>/blobs/<etag>``, a path without links up to the last part.
    """
    from huggingface_hub.utils import _shared_blobs as shared

    cache = blob.parents[2]
    store = shared.shared_blobs_dir(cache)
    marker = store / shared.SHARED_BLOBS_MARKER_NAME
    try:
        if marker.lstat().st_size > _MARKER_BYTES or not shared.is_shared_blobs_dir(store):  # it would be read whole
            return None
        target: Path | None = shared.shared_blob_target(blob, cache)
    except (OSError, ValueError):
        return None
    return target if target is not None and target.resolve() == target else None


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
                raise _refusal(response, where=where)
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
        raise HubUnreachable(what, where=where, remedy=f"try again, or {_ELSEWHERE}")
    return future.result()


def wary_client() -> httpx.Client:
    """The hub client's own connection, and a check that the hub client lacks.

    huggingface_hub 1.33 names files of its cache after ETags as they come: ``ETag: "/home/me/.profile"`` writes there.
    Of its requests, those that give no time limit wait for ever.
    """
    import httpx
    from huggingface_hub.utils._http import default_client_factory

    client: httpx.Client = default_client_factory()
    client.timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
    client.event_hooks = {**client.event_hooks, "response": [_check_etag]}
    return client


def _check_etag(response: httpx.Response) -> None:
    for header in ("etag", "x-linked-etag"):
        etag = response.headers.get(header)
        if etag is not None and response.request.method == "HEAD" and not _PLAIN_ETAG.fullmatch(etag):
            raise HubError(f"the hub calls its content {etag[:80]!r}, which is no digest", where=response.url.path)


class _Silence:
    """For how long no byte of a file has come; while no file is on its way, that is no time at all."""

    def __init__(self) -> None:
        self._since: float | None = None

    def heard(self) -> None:
        """A byte has come, or a file is asked for."""
        self._since = time.monotonic()

    def over(self) -> None:
        """The file is there."""
        self._since = None

    @property
    def seconds(self) -> float:
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


@contextmanager
def downloads(progress: Progress, *, where: str) -> Iterator[type[Any]]:
    """Let downloads of the hub's client move a bar, and end one of which no byte comes any more.

    Over HTTP the client itself gives up (``HF_HUB_DOWNLOAD_TIMEOUT``); by Xet it does not.

    Returns:
        What the client takes for the class of a file's bar.

    Raises:
        HubUnreachable: nothing came for `STALL_SECONDS`.
    """
    from huggingface_hub.utils._xet import abort_xet_session

    silence, finished, stalled = _Silence(), threading.Event(), threading.Event()

    def watch() -> None:
        while not finished.wait(min(1.0, STALL_SECONDS / 4)):
            if silence.seconds > STALL_SECONDS:
                stalled.set()
                abort_xet_session()  # the call that waits for Xet ends with an error
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield _advancing(progress, silence)
    except RuntimeError as error:  # as which Xet's transport raises everything
        if not stalled.is_set():
            raise
        what = f"the download has stalled: no byte came for {STALL_SECONDS:g} seconds"
        raise HubUnreachable(what, where=where, remedy=f"try again; {_WITHOUT_XET}") from error
    finally:
        finished.set()
        watcher.join()


def _advancing(progress: Progress, silence: _Silence) -> type[Any]:
    """What the hub's client takes for the bar of a file: it shows none, and moves that of the whole download."""
    from tqdm import tqdm

    class Advancing(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            silence.heard()
            progress.advance(options.get("initial", 0))

        def update(self, n: float | None = 1) -> None:
            silence.heard()
            progress.advance(int(n or 0))

        def update_transfer(self, n: float) -> None:  # noqa: ARG002  (the client's own name)
            """Bytes on their way, which Xet's storage tells apart from those written."""
            silence.heard()

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Their rate, likewise."""

        def close(self) -> None:
            silence.over()
            super().close()

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
        raise _explanation(error, where=where) from error


def _explanation(error: BaseException, *, where: str) -> HubError:
    import httpx
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # "not in the cache": because of what?
    reason = first_line(error)[:200]
    match error:
        case errors.HfHubHTTPError():
            return _refusal(error.response, where=where)
        case errors.OfflineModeIsEnabled():
            what = "HF_HUB_OFFLINE is set and this is not in the cache"
            return HubError(what, where=where, remedy=f"unset it, {_ELSEWHERE}")
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.ProxyError() | httpx.UnsupportedProtocol():
            what = f"{_host(error.request)} cannot be reached ({reason})"
            return HubUnreachable(what, where=where, remedy=f"{_ELSEWHERE}, or try again where the hub can be reached")
        case httpx.RequestError():
            what = f"{_host(error.request)} sent an incomplete response ({reason})"
            return HubUnreachable(what, where=where, remedy="try again")
        case httpx.InvalidURL() | ValueError():
            what = f"the hub's client cannot ask for it ({reason})"
            return HubError(what, where=where, remedy="check HF_ENDPOINT and proxy settings")
        case _:
            what = f"the download failed ({reason})"
            return HubError(what, where=where, remedy=f"check disk and network; {_WITHOUT_XET}")


def _refusal(response: httpx.Response, *, where: str) -> HubError:
    """What an answer that is no success means, and what to do. Its text is left alone: it is a stranger's."""
    code, status = response.headers.get("x-error-code", ""), response.status_code
    if code in _REFUSALS:
        what, remedy = _REFUSALS[code]
        return HubError(what, where=where, remedy=remedy)
    remedy = "check HF_TOKEN, or what it may read" if status in (401, 403) else "try again later"
    kind = HubUnreachable if status >= 500 else HubError
    return kind(f"{_host(response.request)} answered with status {status}", where=where, remedy=remedy)


def _host(request: httpx.Request) -> str:
    return request.url.netloc.decode() or "the hub"
