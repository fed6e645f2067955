"""``validate.py``: any checkpoint against itself, a recipe, references; by headers and config alone."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from weighbridge import api
from weighbridge.base.references import NO_REFERENCE
from weighbridge.base.source import MADE, fetch, open_model, open_source
from weighbridge.checkpoint.lock import write_lock
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.cli import capacity
from weighbridge.cli.audit import add_options, audited_by, compare_section
from weighbridge.cli.complete import complete, locks, recipes
from weighbridge.cli.log import check_outside
from weighbridge.cli.run import (
    Parser,
    add_follow_option,
    add_report_options,
    check_writable,
    command,
    hand_over,
    keep,
    refuse,
)
from weighbridge.errors import EvidenceError, WeighbridgeError
from weighbridge.progress import Progress
from weighbridge.report import Report, Section

if TYPE_CHECKING:
    from weighbridge.evidence.signing import Verifier

EPILOG = """\
examples:
  %(prog)s builds/x --recipe fp8-dynamic
  %(prog)s builds/x --source mini --recipe fp8-dynamic
  %(prog)s builds/x --evidence --key key.pub.pem --source mini
  %(prog)s builds/x --gpu 24GB --kv-dtype fp8
  %(prog)s RedHatAI/gemma-4-26B-A4B-it-NVFP4 --write-lock lock.yaml

CHECKPOINT and REF are a directory, a hub id org/name[@revision] (its headers
alone are read), or a structure lock.

exit codes: 0 holds; 1 judged, and failed; 2 could not judge
"""


def _validate(options: argparse.Namespace) -> int:
    from weighbridge.checks.capacity.report import capacity_section

    check_outside(Path(options.checkpoint), report=options.report, write_lock=options.write_lock)
    check_writable(options.report)
    check_writable(options.write_lock)
    if options.evidence:
        return _verify(options)
    if options.key or options.identity or options.issuer:
        raise EvidenceError("are about evidence", where="--key, --identity and --issuer", remedy="add --evidence")
    if not options.source:
        refuse(options, "sample", "seed", "recompute", without="--source")
    if not options.recompute:
        refuse(options, "calibration", without="--recompute")
    checkpoint = api.open_checkpoint(options.checkpoint, follow_links=options.follow_links)
    source = open_source(options.source, follow=options.follow_links) if options.source else None
    # What cannot be read is said before weights are read.
    sides = api.sides_of(checkpoint, recipe=options.recipe, source=source, references=options.reference)
    context: list[Section] = []
    audited: Report | None = None
    if source is not None:
        audited = audited_by(sides, options)
        context += audited.sections
    elif checkpoint.shards:
        context.append(
            Section("weights-unread", "the weights", "not read, only the scales of whole tensors", judges=False)
        )
    demand = capacity.demand_of(options)
    if demand is not None:
        context.append(capacity_section(checkpoint, demand))
    if options.compare:
        context.append(compare_section(checkpoint, options))
    report = api.validate_sides(sides, context=context)
    if audited is not None:
        report = replace(report, metrics={**audited.metrics, **report.metrics})
    if options.write_lock is not None:
        planned = "" if sides.expected is None else sides.expected.plan.predicted.origin.base
        _write_lock(checkpoint, options.write_lock, base=planned)
    return hand_over(report, options)


def _verify(options: argparse.Namespace) -> int:
    if options.recipe or options.reference or options.write_lock:
        what = "holds a checkpoint against the recipe in its own evidence"
        raise EvidenceError(what, where="--evidence", remedy="give --recipe, --reference and --write-lock without it")
    refuse(options, "compare", "sample", "seed", "recompute", "calibration", "gpu", beside="--evidence")
    verifier, progress = _verifier(options), Progress()
    source = fetch(open_model(options.source, follow=options.follow_links), progress) if options.source else None
    report = api.verify(Path(options.checkpoint), signed_by=verifier, source=source, progress=progress)
    return hand_over(report, options)


def _verifier(options: argparse.Namespace) -> Verifier | None:
    from weighbridge.evidence.signing import SigstoreVerifier, open_verifier

    if (options.identity is None) != (options.issuer is None) or (options.key and options.identity):
        what = "either --key, or --identity with --issuer, says who is expected to have signed"
        raise EvidenceError(what, where="--evidence")
    if options.identity is not None:
        return SigstoreVerifier(options.identity, options.issuer)
    return open_verifier(options.key) if options.key else None


def _write_lock(checkpoint: Checkpoint, path: Path, *, base: str) -> None:
    origin = replace(checkpoint.origin, base=checkpoint.origin.base or base)
    if origin.basis == "read" and origin.revision:
        origin = replace(origin, basis="seen", note="read from the headers on the hub")
    try:
        keep(path, write_lock(replace(checkpoint, origin=origin)).encode())
    except OSError as error:
        raise WeighbridgeError(f"the lock cannot be written ({error.strerror})", where=str(path)) from error


def _parser() -> Parser:
    parser = Parser(
        "validate",
        description="Check a checkpoint's names, dtypes, shapes and quantization, without reading a weight; "
        "with --source, the numbers "
        "too; or with --evidence, every byte of it and what its evidence says.",
        epilog=EPILOG,
    )
    checkpoint = parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a directory, a hub id or a structure lock"
    )
    complete(checkpoint, locks)
    reference = parser.add_argument(
        "--reference",
        metavar="REF",
        action="append",
        default=[],
        help=f"compare its structure with this checkpoint (can be given again; {NO_REFERENCE}: with none, not even the "
        "recipe's own)",
    )
    complete(reference, lambda: (NO_REFERENCE,), locks)
    recipe = parser.add_argument(
        "--recipe", help="compare its structure with what this recipe plans, and with the recipe's references"
    )
    complete(recipe, recipes)
    parser.add_argument(
        "--evidence",
        action="store_true",
        help="check the checkpoint's evidence: read every byte, compare digests, statements, signatures, card and "
        "tensors with each other, and say what only the builder can know",
    )
    parser.add_argument("--key", type=Path, metavar="PUB.pem", help="with --evidence: the key that must have signed it")
    parser.add_argument("--identity", metavar="WHO", help="with --evidence: who must have signed it through Sigstore")
    parser.add_argument("--issuer", metavar="URL", help="with --identity: who vouches for that identity")
    source = parser.add_argument(
        "--source",
        metavar="BASE",
        help="the base model: audit the checkpoint, that is, compute every weight again from this base and compare; "
        "with --evidence: compare the base's files, by digest, with those that the evidence names",
    )
    complete(source, lambda: MADE)
    add_follow_option(parser)
    add_report_options(parser)
    parser.add_argument("--write-lock", type=Path, metavar="FILE", help="write the checkpoint's structure lock")
    add_options(parser)
    capacity.add_options(parser)
    return parser


main = partial(command, _parser, _validate)

if __name__ == "__main__":
    sys.exit(main())
