#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Build a quantized checkpoint from a recipe. See ``python build.py --help``."""

import sys

if __name__ == "__main__":
    try:
        from weighbridge.commands.build import main
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; run 'make env', then .venv/bin/python build.py", file=sys.stderr)
        sys.exit(2)
    sys.exit(main())
