"""``weighbridge new-recipe``, and ``build.py --new-recipe``: a recipe for a model that nobody has written one for."""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path

from weighbridge.base.source import MADE, open_source
from weighbridge.checkpoint.hub import HubId, parse_hub_id, read_beginning
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.cli.complete import complete, locks
from weighbridge.cli.run import HOLDS, Parser, add_follow_option, command, keep, program, suggest
from weighbridge.errors import RecipeError
from weighbridge.linting.drafting import DATA_FREE
from weighbridge.report.terminal import tinted

DEFAULT_SCHEME = "FP8_DYNAMIC"
LONGEST_CARD = 1_000_000
EPILOG = """\
examples:
  %(prog)s Qwen/Qwen3-30B-A3B
  %(prog)s Qwen/Qwen3-30B-A3B --scheme NVFP4A16 --output qwen.yaml

exit codes: 0 written; 2 could not draft or write it
"""


def _parser() -> Parser:
    parser = Parser("new-recipe", description="Draft a recipe from a model's headers.", epilog=EPILOG)
    parser.add_argument("new_recipe", metavar="ORG/MODEL", help="the model that the recipe is for, by its hub id")
    model = parser.add_argument("--model", metavar="PATH", help="where its headers are, if not on the hub")
    complete(model, lambda: MADE, locks)
    add_follow_option(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where the recipe goes (default: recipes/ORG/MODEL/SCHEME.yaml)"
    )
    _add_own_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of a draft, beside those of a build."""
    options = parser.add_argument_group("a new recipe (--new-recipe)")
    options.add_argument(
        "--new-recipe",
        metavar="ORG/MODEL",
        help="look at the model's headers and write a recipe with the roles that are recognised, to --output or "
        "recipes/ORG/MODEL/SCHEME.yaml; --model says where the headers are, if not on the hub",
    )
    _add_own_options(options)


def _add_own_options(options: argparse._ActionsContainer) -> None:
    options.add_argument(
        "--scheme",
        choices=DATA_FREE,
        default=DEFAULT_SCHEME,
        metavar="SCHEME",
        help=f"its scheme, of those that need no data: {', '.join(DATA_FREE)} (default: {DEFAULT_SCHEME})",
    )
    options.add_argument("--licence", metavar="SPDX", help="its licence (default: what the model's card declares)")


def draft(options: argparse.Namespace) -> int:
    """Write the recipe and print it; gives the exit code.

    Raises:
        RecipeError: no such model, no licence, a file that is there already, or nothing to recognise.
    """
    from weighbridge.linting.drafting import draft_recipe

    hub_id = parse_hub_id(options.new_recipe)
    if hub_id is None:
        raise RecipeError(
            "is no hub id org/name", where=options.new_recipe, remedy="--model says where its headers are"
        )
    path = options.output or Path("recipes") / hub_id.repository / f"{options.scheme.lower().replace('_', '-')}.yaml"
    if path.exists():
        raise RecipeError("is there already", where=str(path), remedy="name another file with --output")
    source = open_source(options.model or options.new_recipe, follow=options.follow_links)
    licence = options.licence or _licence(hub_id, source)
    drafted = draft_recipe(source, model=hub_id.repository, licence=licence, path=path, scheme=options.scheme)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        keep(path, drafted.text.encode())
    except OSError as error:
        raise RecipeError(f"cannot be written ({error.strerror})", where=str(path)) from error
    sys.stdout.write(drafted.text)
    sys.stderr.write(f"written to {path}\n")
    for finding in drafted.findings:
        sys.stderr.write(tinted(f"{finding.severity}: {finding.where} {finding.message}\n", sys.stderr))
    model = options.model or options.new_recipe
    suggest(options, f"{program('build')} {shlex.quote(str(path))} --plan --model {shlex.quote(model)}")
    return HOLDS


def _licence(hub_id: HubId, source: Checkpoint) -> str:
    """What the model's own card declares."""
    from weighbridge.base.model_card import CARD, card_metadata, declared_licence

    declared: object = None
    if source.directory is not None:
        found = declared_licence(source.directory)
        declared = None if found is None else found.licence
    elif CARD in source.files and source.origin.repository:
        origin = HubId(source.origin.repository, source.origin.revision or hub_id.revision)
        card = read_beginning(origin, CARD, LONGEST_CARD)
        declared = card_metadata(card, where=CARD).get("license")
    if not isinstance(declared, str) or not declared:
        raise RecipeError("declares no licence", where=source.label, remedy="say which with --licence")
    return declared


main = partial(command, _parser, draft)

if __name__ == "__main__":
    sys.exit(main())
