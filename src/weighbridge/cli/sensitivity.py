"""``make sensitivity``: which parts of a model cost how much when they are quantized."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from weighbridge.base.source import fetch, open_model
from weighbridge.checkpoint.opening import open_checkpoint
from weighbridge.cli.evaluate import add_options
from weighbridge.cli.run import Parser, add_work_options, check_writable, command, hand_over
from weighbridge.machine.resources import Resources
from weighbridge.progress import Progress
from weighbridge.report import Report

EPILOG = """\
The error of the weights by role and layer is the audit's. What a role costs is
measured: its weights are taken from the source and all else from the build, so
that an ignore list can be chosen without building anything. Further builds of
the same source join the table of bits against divergence.

examples:
  %(prog)s builds/x --source mini
  %(prog)s builds/x --source mini --beside builds/y --windows 8

exit codes: 0 measured; 2 could not measure
"""


def _parser() -> Parser:
    parser = Parser(
        "sensitivity",
        description="Measure which parts of a model cost how much when they are quantized.",
        epilog=EPILOG,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a build: a directory or a hub id")
    parser.add_argument(
        "--beside", action="append", default=[], metavar="CHECKPOINT", help="another build (can be given again)"
    )
    add_options(parser)
    add_work_options(parser, pieces="pieces of the audit", memory="memory that the audit may take")
    return parser


def _sensitivity(options: argparse.Namespace) -> int:
    from weighbridge.engines.devices import resolve_devices
    from weighbridge.extras.quality import assess, sensitivity

    check_writable(options.report)
    resolve_devices((options.device,))
    build, *others = (
        open_checkpoint(name, follow=options.follow_links) for name in (options.checkpoint, *options.beside)
    )
    progress = Progress()
    source = fetch(open_model(options.source, follow=options.follow_links), progress)
    assess.check_source(source, [build, *others])
    sensitivity.quantized_roles(build)
    windows = assess.windows_of(source, options.text, count=options.windows)
    resources = Resources(devices=("cpu",), workers=options.workers, memory=options.memory, digests=False)
    errors = sensitivity.error_section(build, source, resources=resources, progress=progress)
    own, beside = sensitivity.choices(
        build, source, others, windows, dtype=options.dtype, device=options.device, progress=progress
    )
    roles = sensitivity.roles_section(own)
    sections = (
        assess.text_section(windows, options.dtype),
        errors,
        roles,
        sensitivity.pareto_section([*own, *beside]),
    )
    report = Report("sensitivity", build.label, f"{build.label}: {roles.summary}", sections)
    return hand_over(report, options)


main = partial(command, _parser, _sensitivity)

if __name__ == "__main__":
    sys.exit(main())
