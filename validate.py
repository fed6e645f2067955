#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Check a checkpoint against itself, a recipe and references. See ``python validate.py --help``."""

import sys

if __name__ == "__main__":
    try:
        from weighbridge.cli.process import as_process
        from weighbridge.cli.validate import main

        sys.exit(as_process(main))
    except ModuleNotFoundError as error:
        sentence = f"{error.name} is not installed; run 'make env', then .venv/bin/python validate.py"
    except KeyboardInterrupt:
        sentence = "interrupted before anything was begun"
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
