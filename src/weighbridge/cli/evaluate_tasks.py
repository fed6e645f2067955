"""``make evaluate-tasks``: tasks of the evaluation harness against a running server, source beside build."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from weighbridge.cli import endpoints
from weighbridge.cli.run import Parser, add_report_options, check_writable, command, hand_over, positive
from weighbridge.extras.endpoint.harness import PUBLISHED, Harness, HarnessError, Setting, evaluate
from weighbridge.extras.endpoint.harness_report import report_scores

EPILOG = """\
examples:
  %(prog)s http://127.0.0.1:8000
  %(prog)s http://127.0.0.1:8000 \\
    --tasks ifeval --limit 20 --max-gen-toks 2048
  %(prog)s http://127.0.0.1:8000 \\
    --source-endpoint http://127.0.0.1:8001

exit codes: 0 evaluated; 2 could not evaluate
"""
DEFAULT = "gsm8k_platinum_cot_llama,ifeval,mmlu_pro"


def _evaluate(options: argparse.Namespace) -> int:
    check_writable(options.report)
    if not options.harness.is_file():
        raise HarnessError("there is no such file", where=f"--harness {options.harness}", remedy="name a Python")
    if options.include is not None and not options.include.is_dir():
        where = f"--include {options.include}"
        raise HarnessError("there is no such directory", where=where, remedy="name one with tasks")
    harness = Harness(
        python=options.harness,
        concurrency=options.concurrency,
        tokenizer=options.tokenizer,
        tasks=options.include,
        limit=options.limit,
        max_gen_toks=options.max_gen_toks,
    )
    build, source = endpoints.opened(options)
    settings = [PUBLISHED.get(task, Setting(task)) for task in options.tasks]
    tasks = [
        (setting, evaluate(build, setting, harness), None if source is None else evaluate(source, setting, harness))
        for setting in settings
    ]
    report = report_scores(build, tasks, harness)
    return hand_over(report, options)


def _names(text: str) -> tuple[str, ...]:
    """Names between commas, each once."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError("must be names with commas between them")
    return names


def _parser() -> Parser:
    parser = Parser(
        "evaluate-tasks",
        description="Ask a running server with OpenAI's API the tasks of the Language Model Evaluation Harness.",
        epilog=EPILOG,
    )
    endpoints.add_options(parser)
    parser.add_argument(
        "--tasks",
        type=_names,
        default=_names(DEFAULT),
        metavar="TASK,TASK,…",
        help=f"any of the harness's; {', '.join(PUBLISHED)} as published cards have them (default: {DEFAULT})",
    )
    parser.add_argument("--include", type=Path, metavar="DIR", help="a directory with further tasks, as YAML files")
    parser.add_argument("--limit", type=positive, metavar="N", help="ask only the first N questions: for trying out")
    parser.add_argument(
        "--max-gen-toks", type=positive, metavar="N", help="tokens to generate at most (default: as the task is set up)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR|ID",
        help="ask by plain text through /v1/completions, for tasks that need log-probabilities; the model's tokenizer",
    )
    parser.add_argument(
        "--concurrency", type=positive, default=128, metavar="N", help="requests at once (default: 128)"
    )
    parser.add_argument(
        "--harness",
        type=Path,
        default=Path(sys.executable),
        metavar="PYTHON",
        help="of the environment that has lm_eval (default: this one, with the extra 'eval')",
    )
    add_report_options(parser)
    return parser


main = partial(command, _parser, _evaluate)

if __name__ == "__main__":
    sys.exit(main())
