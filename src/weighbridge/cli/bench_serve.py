"""``make bench-serve``: how fast a running server answers, source beside build."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from weighbridge.cli import endpoints
from weighbridge.cli.run import Parser, add_report_options, check_writable, command, hand_over, positive
from weighbridge.extras.endpoint.server import EndpointError
from weighbridge.extras.endpoint.throughput import Client, Load, measure, stream_load, vllm_load
from weighbridge.extras.endpoint.throughput_report import BUILD, SOURCE, report_throughput

EPILOG = """\
examples:
  %(prog)s http://127.0.0.1:8000
  %(prog)s http://127.0.0.1:8000 \\
    --source-endpoint http://127.0.0.1:8001
  %(prog)s http://127.0.0.1:8000 \\
    --vllm .venv-vllm/bin/python --tokenizer builds/x

exit codes: 0 measured; 2 could not measure
"""


def _bench(options: argparse.Namespace) -> int:
    check_writable(options.report)
    client, name = _client(options)
    build, source = endpoints.opened(options)
    sides = {BUILD: build} if source is None else {SOURCE: source, BUILD: build}
    loads = [
        Load(at_once, options.requests * at_once, options.input_tokens, options.output_tokens, options.seed)
        for at_once in sorted({1, *options.concurrency})
    ]
    measured = measure(sides, loads, rounds=options.rounds, client=client)
    report = report_throughput(sides, measured, client=name)
    return hand_over(report, options)


def _client(options: argparse.Namespace) -> tuple[Client, str]:
    """Who puts the load on, and what that is called."""
    if options.vllm is None:
        return stream_load, "this project's own, streaming; prompts counted in words"
    if not options.vllm.is_file():
        raise EndpointError("there is no such file", where=f"--vllm {options.vllm}", remedy="name a Python with vLLM")
    if options.tokenizer is None:
        raise EndpointError("vLLM's client draws prompts by tokens", where="--vllm", remedy="add --tokenizer")
    return vllm_load(options.vllm, options.tokenizer), "vLLM's own (vllm bench serve)"


def _several(text: str) -> int:
    """A whole number of at least two: between two tokens there is a time."""
    number = positive(text)
    if number < 2:
        raise argparse.ArgumentTypeError("must be at least 2")
    return number


def _counts(text: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    return tuple(map(positive, text.split(",")))


def _parser() -> Parser:
    parser = Parser(
        "bench-serve",
        description="Measure time to the first token and tokens a second of a running server with OpenAI's API.",
        epilog=EPILOG,
    )
    endpoints.add_options(parser)
    parser.add_argument(
        "--concurrency",
        type=_counts,
        default=(1, 4, 16, 32, 128),
        metavar="N,N,…",
        help="requests at once; one at a time always comes first (default: 1,4,16,32,128)",
    )
    parser.add_argument(
        "--requests",
        type=positive,
        default=4,
        metavar="N",
        help="requests for each of the concurrent clients (default: 4)",
    )
    parser.add_argument(
        "--input-tokens", type=positive, default=512, metavar="N", help="tokens of a prompt (default: 512)"
    )
    parser.add_argument(
        "--output-tokens", type=_several, default=256, metavar="N", help="tokens of an answer (default: 256)"
    )
    parser.add_argument(
        "--rounds", type=positive, default=3, metavar="N", help="repetitions of each measurement (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts (default: 0)")
    parser.add_argument(
        "--vllm",
        type=Path,
        metavar="PYTHON",
        help="measure with vLLM's own benchmark client, from the environment of this Python",
    )
    parser.add_argument("--tokenizer", metavar="DIR|ID", help="with --vllm: the model's tokenizer")
    add_report_options(parser)
    return parser


main = partial(command, _parser, _bench)

if __name__ == "__main__":
    sys.exit(main())
