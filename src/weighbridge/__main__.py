"""``weighbridge COMMAND …``: every command of the repository, for an installation that has no Makefile."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module

COMMANDS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "build": ("build", (), "build a checkpoint from a recipe"),
    "plan": ("build", ("--plan",), "say what would be built, from headers alone"),
    "validate": ("validate", (), "check a checkpoint: structure, numbers, evidence"),
    "reproduce": ("reproduce", (), "build a checkpoint again from its evidence"),
    "publish": ("publish", (), "upload a checkpoint after checking its evidence"),
    "key": ("key", (), "make a pair of keys for trying out signatures"),
    "serve-env": ("serve_env", (), "make the environment that checkpoints are served in"),
    "serve-check": ("serve_check", (), "whether a server loads a checkpoint, and computes what it means"),
    "evaluate": ("evaluate", (), "how well builds answer beside their source"),
    "sensitivity": ("sensitivity", (), "what each role costs and saves"),
    "evaluate-tasks": ("evaluate_tasks", (), "what a server scores in tasks of lm-evaluation-harness"),
    "bench-serve": ("bench_serve", (), "how fast a server answers"),
}
"""Command -> the module below `weighbridge.commands` whose ``main`` it is, what it begins with, and what it does."""

_WIDTH = 16


def main() -> int:
    """Entry point; gives the exit code."""
    name, arguments = sys.argv[1] if len(sys.argv) > 1 else "--help", sys.argv[2:]
    if name in ("-h", "--help"):
        sys.stdout.write("usage: weighbridge COMMAND [OPTION...]\n\n")
        sys.stdout.write("".join(f"  {command:<{_WIDTH}}{does}\n" for command, (_, _, does) in COMMANDS.items()))
        sys.stdout.write("\n'weighbridge COMMAND --help' says more; 'weighbridge --version' which this is\n")
        return 0
    if name == "--version":
        from weighbridge import __version__

        sys.stdout.write(f"weighbridge {__version__}\n")
        return 0
    if name not in COMMANDS:
        sys.stderr.write(f"error: there is no command {name!r}; 'weighbridge --help' lists them\n")
        return 2
    module, first, _ = COMMANDS[name]
    code: int = import_module(f"weighbridge.commands.{module}").main([*first, *arguments])
    return code


if __name__ == "__main__":
    sys.exit(main())
