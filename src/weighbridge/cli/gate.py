"""``weighbridge gate``: may this checkpoint be served, by a policy."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from weighbridge import api
from weighbridge.cli.log import check_outside
from weighbridge.cli.run import Parser, add_report_options, check_writable, command, hand_over, keep, refuse
from weighbridge.errors import WeighbridgeError
from weighbridge.progress import Progress

EPILOG = """\
docs/how-to/gate.md says what each key of a policy protects from.

examples:
  %(prog)s builds/x --policy policy.yaml
  %(prog)s builds/x --policy policy.yaml --report gate.sarif
  %(prog)s builds/x --policy policy.yaml --vsa vsa.json --sign key.pem

exit codes: 0 it may be served; 1 it must not be; 2 could not judge
"""


def _parser() -> Parser:
    description = (
        "Judge whether a checkpoint may be served: verify its evidence, every byte of it, and hold it against a policy."
    )
    parser = Parser("gate", description=description, epilog=EPILOG)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a directory")
    parser.add_argument("--policy", type=Path, required=True, metavar="FILE", help="what is asked of it, in YAML")
    add_report_options(parser)
    parser.add_argument(
        "--svr", type=Path, metavar="FILE", help="write the result as in-toto's Simple Verification Result"
    )
    parser.add_argument("--vsa", type=Path, metavar="FILE", help="write the result as SLSA's Verification Summary")
    parser.add_argument("--sign", metavar="KEY.pem|sigstore", help="with --svr or --vsa: sign it")
    parser.add_argument(
        "--verifier", metavar="URI", help="with --svr or --vsa: who is said to have judged (default: this program)"
    )
    return parser


def _gate(options: argparse.Namespace) -> int:
    from weighbridge.evidence.signing import open_signer
    from weighbridge.evidence.statements import write_statement
    from weighbridge.policy.summary import FORMS, VERIFIER

    wanted = {form: path for form in FORMS if (path := getattr(options, form)) is not None}
    if not wanted:
        refuse(options, "sign", "verifier", without="--svr or --vsa")
    check_outside(options.checkpoint, report=options.report, **wanted)
    for path in (options.report, *wanted.values()):
        check_writable(path)
    signer = open_signer(options.sign) if options.sign else None
    judged = api.gate(options.checkpoint, options.policy, progress=Progress())
    for form, path in wanted.items():
        payload = write_statement(FORMS[form](judged, verifier=options.verifier or VERIFIER))
        line = payload if signer is None else signer.sign_statement(payload)
        try:
            keep(path, line + b"\n")
        except OSError as error:
            raise WeighbridgeError(f"the summary cannot be written ({error.strerror})", where=str(path)) from error
    return hand_over(judged.report, options)


main = partial(command, _parser, _gate)

if __name__ == "__main__":
    sys.exit(main())
