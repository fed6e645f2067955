"""What the site has beside docs/: pages and files of the repository, and references made from the code they describe.

A hook of mkdocs (mkdocs.yml names it). Links between docs/ and the rest of the repository are written as they hold in
the repository; here they are turned to where the site has the same thing.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES: Mapping[str, str] = {
    "README.md": "index.md",
    "recipes/README.md": "reference/recipes.md",
    "references/README.md": "reference/locks.md",
    "benchmarks/README.md": "reference/benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Pages of the repository outside of docs/ -> where the site has them."""
RECIPE_SCHEMA = ROOT / "recipes/recipe.schema.json"
REPORT_SCHEMA = ROOT / "src/weighbridge/report/report.schema.json"
PROGRESS_SCHEMA = ROOT / "src/weighbridge/progress/progress.schema.json"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)\s#]+")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of docs/, and every file that a page links to."""
    for path, uri in PAGES.items():
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for page in files.documentation_pages():
        for path in _targets(page.content_string, page.src_uri):
            uri = _uri(path)
            if (ROOT / path).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turn links to where the site has what they name, and complete the references."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri)
    turned = LINK.sub(lambda link: posixpath.relpath(_uri(_path(link[0], uri)), folder or "."), markdown)
    match uri:
        case "reference/commands.md":
            return turned + "\n".join(_commands())
        case "reference/recipe-schema.md":
            return turned + "\n".join(_tables(RECIPE_SCHEMA))
        case "reference/json-report.md":
            return turned + "\n".join(_tables(REPORT_SCHEMA))
        case "reference/json-progress.md":
            return turned + "\n".join(_tables(PROGRESS_SCHEMA))
    return turned


def _targets(markdown: str, uri: str) -> Iterator[str]:
    yield from (_path(link, uri) for link in LINK.findall(markdown))


def _path(link: str, uri: str) -> str:
    """The file of the repository that a link on a page of the site names."""
    here = next((path for path, page in PAGES.items() if page == uri and path != "README.md"), f"docs/{uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), link))


def _uri(path: str) -> str:
    """Where the site has a file of the repository."""
    return PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}")


def _commands() -> Iterator[str]:
    """What ``make help`` lists, and every command's own help."""
    from weighbridge.__main__ import COMMANDS

    yield from ("", "## make", "", "| target | what it does |", "|---|---|")
    for target, does in re.findall(r"^([a-z0-9-]+):.*?## (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE):
        yield f"| `{target}` | {does} |"
    for name, module in [(name, module) for name, (module, first, _) in COMMANDS.items() if not first]:
        yield from ("", f"## {name}", "", "```text", help_of(module).rstrip(), "```")


def help_of(module: str) -> str:
    """What a command of `weighbridge.cli` prints when it is asked for help."""
    out = io.StringIO()
    with patch.dict(os.environ, {"COLUMNS": "80", "NO_COLOR": "1"}), redirect_stdout(out), suppress(SystemExit):
        importlib.import_module(f"weighbridge.cli.{module}").main(["--help"])
    return out.getvalue()


def _tables(path: Path) -> Iterator[str]:
    """A JSON Schema as tables: one for the whole, one for each of its parts.

    What a key is for is said in the schema, by its type's docstring, or by the catalogue's table of keys.
    """
    schema = json.loads(path.read_text())
    catalogue = (path.parent / "README.md").read_text() if path == RECIPE_SCHEMA else ""
    keys = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", re.sub(r" \(\[.+?\)\)", "", catalogue), flags=re.MULTILINE))
    for title, part in {schema["title"]: schema, **schema.get("$defs", {})}.items():
        summary, _, attributes = part.get("description", "").partition("Attributes:")
        yield from ("", f"## {title}", "", " ".join(summary.split()), "")
        if "properties" not in part:
            yield f"{_kind(part)}"
            continue
        said = keys | dict(re.findall(r"^    (\w+): ((?:.|\n {5,})*)", attributes, flags=re.MULTILINE))
        required = part.get("required") or part.get("anyOf", [{}])[0].get("required", ())
        yield from ("| key | what it is | needed | what it says |", "|---|---|---|---|")
        for key, value in part["properties"].items():
            needed = "yes" if key in required else _default(value)
            text = value.get("description") or said.get(key, "")
            yield _row(f"`{key}`", _kind(value), needed, " ".join(text.split()).replace("``", "`"))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    return "no" if default in (None, [], {}, "") else f"no: `{json.dumps(default)}`"


def _kind(value: Mapping[str, Any]) -> str:  # noqa: PLR0911
    """What values a part of a schema allows, in a few words."""
    match value:
        case {"$ref": str(name)}:
            name = name.rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        case {"anyOf": options} | {"oneOf": options}:
            return " or ".join(_kind(option) for option in options if option != {"type": "null"})
        case {"enum": choices}:
            return ", ".join(f"`{choice}`" for choice in choices)
        case {"const": only}:
            return f"`{only}`"
        case {"type": "array", "prefixItems": items}:
            return "list of " + ", ".join(_kind(item) for item in items)
        case {"type": "array", "items": items}:
            return f"list of {_kind(items)}"
        case {"type": "object", "additionalProperties": dict(items)}:
            return f"names to {_kind(items)}"
    return {"object": "mapping", "string": "text", "boolean": "true or false"}.get(
        str(value.get("type", "")), str(value.get("type", "anything"))
    )
