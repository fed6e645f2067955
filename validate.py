#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Check a checkpoint against itself, a recipe and references. See ``python validate.py --help``."""

import sys

if __name__ == "__main__":
    try:
        from weighbridge.commands.validate import main
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed; run 'make env', then .venv/bin/python validate.py", file=sys.stderr
        )
        sys.exit(2)
    sys.exit(main())
