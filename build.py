#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Build a quantized checkpoint from a recipe. See ``python build.py --help``."""

import sys

if __name__ == "__main__":
    try:
        from weighbridge.cli.build import main
        from weighbridge.cli.process import as_process

        sys.exit(as_process(main))
    except ModuleNotFoundError as error:
        sentence = f"{error.name} is not installed; run 'make env', then .venv/bin/python build.py"
    except KeyboardInterrupt:
        sentence = "interrupted before anything was begun"
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
