"""Build and check a list of models, and write the figures that a dashboard wants: one line of JSON a model.

    python examples/nightly.py [RECIPE=MODEL ...]

Without arguments it takes the miniature, which is made on the spot. Exit code 1 if one does not hold.
"""

import json
import sys
import tempfile
from pathlib import Path

import weighbridge as wb

MODELS = ("fp8-dynamic=mini", "nvfp4a16=mini")


def check(recipe: str, model: str, output: Path) -> dict[str, object]:
    """Plan, build with an audit, and verify; what is found, as numbers and words."""
    loaded = wb.load_recipe(recipe)
    line: dict[str, object] = {"recipe": recipe, "recipe_sha256": loaded.sha256, "model": model}
    plan = wb.lint(wb.plan(loaded, model))
    if not plan.holds:
        return {**line, "holds": False, "verdict": plan.verdict}
    built = wb.build(loaded, model, output, audit=True, progress=wb.Progress(shown=False))
    if not built.holds:
        return {**line, "holds": False, "verdict": built.verdict}
    verified = wb.verify(output)
    payload = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    return {**line, "holds": verified.holds, "verdict": verified.verdict, "bytes": payload}


def main() -> int:
    """Check each, and say so."""
    lines = []
    for item in sys.argv[1:] or MODELS:
        recipe, _, model = item.partition("=")
        with tempfile.TemporaryDirectory() as place:
            try:
                line = check(recipe, model, Path(place) / "build")
            except wb.WeighbridgeError as error:
                line = {"recipe": recipe, "model": model, "holds": False, "verdict": str(error)}
        print(json.dumps(line), flush=True)
        lines.append(line)
    return 0 if all(line["holds"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
