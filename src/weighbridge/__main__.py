# PYTHON_ARGCOMPLETE_OK
"""``weighbridge COMMAND …``: every command of the repository, for an installation that has no Makefile."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module

from weighbridge.cli.process import as_process

COMMANDS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "build": ("build", (), "build a checkpoint from a recipe"),
    "plan": ("build", ("--plan",), "say what would be built, from headers alone"),
    "new-recipe": ("draft", (), "draft a recipe from a model's headers"),
    "lint": ("lint", (), "what the rules say of recipes"),
    "recipes": ("recipes", (), "list the catalogue, for a model or a GPU"),
    "diff": ("diff", (), "what differs between two checkpoints"),
    "online": ("online", (), "vLLM's configuration for quantizing while it loads"),
    "explain": ("explain", (), "what a rule watches for"),
    "validate": ("validate", (), "check a checkpoint: structure, numbers, evidence"),
    "gate": ("gate", (), "whether a checkpoint may be served, by a policy"),
    "reproduce": ("reproduce", (), "build a checkpoint again from its evidence"),
    "publish": ("publish", (), "upload a checkpoint after checking its evidence"),
    "key": ("key", (), "make a pair of keys for trying out signatures"),
    "serve-env": ("serve_env", (), "make the environment that checkpoints are served in"),
    "serve-check": ("serve_check", (), "whether a server loads a checkpoint, and rightly"),
    "evaluate": ("evaluate", (), "how well builds answer beside their source"),
    "sensitivity": ("sensitivity", (), "what each role costs and saves"),
    "evaluate-tasks": ("evaluate_tasks", (), "what a server scores in tasks of lm-eval"),
    "bench-serve": ("bench_serve", (), "how fast a server answers"),
    "reference": ("reference", (), "re-pin structure locks of published checkpoints"),
    "schema": ("schema", (), "write the JSON Schema of recipes or of reports"),
}
"""Command -> the module below `weighbridge.cli` whose ``main`` it is, what it begins with, and what it does."""

_OPTIONS = {
    "audit": "'weighbridge validate CHECKPOINT --source BASE' audits",
    "evidence": "'weighbridge validate CHECKPOINT --evidence' checks it",
}
"""What is an option of another command -> how it is asked for."""

_WIDTH = 16


def main() -> int:
    """Entry point of the process; gives the exit code."""
    return as_process(command)


def command() -> int:
    """Run the command that was called; gives the exit code."""
    if "_ARGCOMPLETE" in os.environ:
        return _complete()
    name, arguments = sys.argv[1] if len(sys.argv) > 1 else "--help", sys.argv[2:]
    if name == "help":
        name, arguments = (arguments[0], ["--help"]) if arguments else ("--help", [])
        sys.argv = [sys.argv[0], name, *arguments]  # what the command is called in its own text
    if name in ("-h", "--help"):
        return _help()
    if name == "--version":
        from weighbridge.version import __version__

        sys.stdout.write(f"weighbridge {__version__}\n")
        return 0
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean {close[0]}?" if close else "'weighbridge --help' lists them"
        remedy = _OPTIONS.get(name, remedy)
        sys.stderr.write(f"error: there is no command {name!r}; {remedy}\n")
        return 2
    try:
        return _call(name, arguments)
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted before anything was begun\n")
        return 2


def _help() -> int:
    sys.stdout.write("usage: weighbridge COMMAND [OPTION...]\n\n")
    sys.stdout.write("".join(f"  {command:<{_WIDTH}}{does}\n" for command, (_, _, does) in COMMANDS.items()))
    sys.stdout.write("\nexamples:\n  weighbridge plan fp8-dynamic --model mini\n")
    sys.stdout.write("  weighbridge build fp8-dynamic --model mini --output builds/x\n")
    sys.stdout.write("  weighbridge validate builds/x --evidence\n")
    sys.stdout.write("\n'weighbridge help COMMAND' says more; 'weighbridge --version' its version\n")
    return 0


def _call(name: str, arguments: list[str]) -> int:
    module, first, _ = COMMANDS[name]
    code: int = import_module(f"weighbridge.cli.{module}").main([*first, *arguments])
    return code


def _complete() -> int:
    """Tell a shell what may come next: a command, or what the command that stands there takes."""
    import argparse

    import argcomplete
    from argcomplete.lexers import split_line

    start = int(os.environ["_ARGCOMPLETE"])
    words = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3][start:]
    if words and words[0] in COMMANDS:
        os.environ["_ARGCOMPLETE"] = str(start + 1)  # what belongs to the command begins one word further on
        return _call(words[0], [])
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=[*COMMANDS])
    argcomplete.autocomplete(parser)
    return 0


if __name__ == "__main__":
    sys.exit(main())
