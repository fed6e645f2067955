"""The servers that a command asks: that of a build, and that of its source beside it."""

from __future__ import annotations

import argparse

from weighbridge.extras.endpoint.server import Endpoint, open_endpoint


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where the two are, and under which names they are served."""
    parser.add_argument("endpoint", metavar="ENDPOINT", help="where the build is served, e.g. http://127.0.0.1:8000")
    parser.add_argument("--model", help="the name under which it is served (default: the only one)")
    parser.add_argument("--source-endpoint", metavar="URL", help="where the source is served, for comparison")
    parser.add_argument("--source-model", metavar="MODEL", help="the name under which that is served")


def opened(options: argparse.Namespace) -> tuple[Endpoint, Endpoint | None]:
    """The build's server, and the source's if one was named.

    Raises:
        EndpointError: one of them does not answer, or not as such a server does.
    """
    build = open_endpoint(options.endpoint, options.model)
    if options.source_endpoint is None:
        return build, None
    return build, open_endpoint(options.source_endpoint, options.source_model)
