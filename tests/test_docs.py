"""Every command that the documentation shows is run here as it stands there: page by page, in the order of the page.

A command is a line of a block ``sh``; a backslash continues it, and ``# exit code 1`` at its end says how it ends, if
not with 0. A block ``text`` after it is what that prints, with ``…`` for what is left out. A block with a title is a
file of that name, which a reader writes before going on, and so does the test. Each page has a checkout of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from docs.generated import help_of
from tests.conftest import ROOT, environment
from tests.serving_answers import serving_python
from tests.vllm_server import serving
from weighbridge.extras.serving.answer import ServingError

EXAMPLE = "examples/build-and-publish.yml"
PAGES = [
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "recipes/README.md", "references/README.md"),
    *("benchmarks/README.md", EXAMPLE),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]

SUBSTITUTES: Mapping[str, str] = {
    # a reader has it in a place of their own
    "/models/gemma-4-26B-A4B-it-FP8": "builds/real",
    "/models/gemma-4-26B-A4B-it": "mini",
    # the machine of a test has none
    "cuda:0": "cpu",
    # the tests would run themselves; gigabytes would be fetched once more
    "make test": "make --dry-run test",
    "make check": "make --dry-run check",
    "make pictures": "make --dry-run pictures",
    "make serve-env": "make --dry-run serve-env",
    "pip download": "pip download --no-index",
    # the example asks for a recipe and a target, and has GitHub vouch for who signs
    '"${{ inputs.recipe }}"': "fp8-dynamic --model mini",
    '"${{ inputs.target }}"': "org/name",
    "--sign sigstore": "--sign key.pem",
    '--identity "${{ github.server_url }}/${{ github.workflow_ref }}"': "--key key.pub.pem",
    "--issuer https://token.actions.githubusercontent.com": "",
}
"""What a page has -> what is run here in its place."""

NO_NETWORK = ("HF_HUB_OFFLINE is set", "name a directory")
SERVER = "http://127.0.0.1:8000"
"""Where 'vllm serve' listens."""
NO_SERVER = (SERVER, "cannot be reached", "start the server")
LACKING: Mapping[str, tuple[int, Sequence[str]]] = {
    "make fp8-dynamic": (2, ("google/gemma-4-26B-A4B-it", "MODEL=", "make demo", *NO_NETWORK)),
    "make publish ": (2, ("org/name", *NO_NETWORK)),
    "make reference": (2, NO_NETWORK),
    "python validate.py RedHatAI/": (2, NO_NETWORK),
    "python -m pip download ": (1, ("No matching distribution found",)),
    "hf download ": (1, ("offline",)),
    f'make bench-serve ENDPOINT={SERVER} ARGS="--vllm ': (2, ("no such file", "name a Python with vLLM")),
    f"make bench-serve ENDPOINT={SERVER} ": (2, NO_SERVER),
    "make evaluate-tasks ": (2, NO_SERVER),
}
"""How commands begin that lack a network or a server here -> how they end, and words of the one line that says why."""

ASK_VLLM = ("serve-check", "vllm serve", "tests.serving", f"{SERVER}/")
CAMPAIGNS: Mapping[str, str] = {
    **dict.fromkeys(ASK_VLLM, "vLLM is an environment of its own"),
    "smollm2": "downloads a wheel",
    "trained-mini": "trains for a quarter of an hour",
    "--executor ray": "Ray is an extra",
    "make sensitivity": "measures a build again for each of its roles",
}
"""What a command that ``make test-all`` alone runs has in it, and why."""


@dataclass(frozen=True)
class Step:
    """What a page asks for: to run `text`, which ends with `code`; to write it as `file`; or to see it `printed`."""

    text: str
    file: str = ""
    code: int = 0
    printed: bool = False

    @property
    def reason(self) -> str:
        """Why only a campaign does it; empty if every run of the tests does."""
        of_command = (why for part, why in CAMPAIGNS.items() if part in self.text)
        return "" if self.file or self.printed else next(of_command, "")

    @property
    def lacks(self) -> tuple[int, Sequence[str]] | None:
        """How it ends for want of a network or a server, and what it then says."""
        full = f"{self.text} "
        # A build that is given its model needs no network.
        known = (end for start, end in LACKING.items() if full.startswith(start) and "MODEL=" not in full)
        return None if self.file or self.printed else next(known, None)


def steps_of(page: str) -> Iterator[Step]:
    """The steps of a page, in order."""
    text = (ROOT / page).read_text()
    if page == EXAMPLE:
        yield Step("make key")
        (job,) = yaml.safe_load(text)["jobs"].values()
        yield from (Step(step["run"]) for step in job["steps"] if "run" in step)
    for language, title, block in re.findall(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', text, flags=re.M | re.S):
        if title:
            yield Step(block, file=title)
        elif language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                ends = re.search(r"# exit code (\d)$", line)
                yield Step(line.strip(), code=int(ends[1]) if ends else 0)
        elif language == "text":
            yield Step(block, printed=True)


STEPS = {page: list(steps_of(page)) for page in PAGES}


@pytest.fixture
def checkout(tmp_path: Path, mini: Path) -> Path:
    """A copy of the repository in which a page's commands get into nobody's way, with an environment that is ready."""
    mine = shutil.ignore_patterns(".git", ".venv*", "builds", "site", "dist", "*.pem", "__pycache__", ".*_cache")
    directory = tmp_path / "checkout"
    shutil.copytree(ROOT, directory, ignore=mine)
    (directory / ".venv").mkdir()
    for path in (ROOT / ".venv").iterdir():
        if path.name != "installed":
            (directory / ".venv" / path.name).symlink_to(path)
    (directory / ".venv/installed").touch()
    return directory


def run(command: str, checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line of a page, in a shell, with what is in another place here."""
    for written, here in SUBSTITUTES.items():
        command = command.replace(written, here)
    path = f"{checkout / '.venv/bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=checkout,
        env=environment({"PATH": path, "COLUMNS": "100", **variables}),
        capture_output=True,
        text=True,
        check=False,
    )


def do(step: Step, checkout: Path, **variables: str) -> str:
    """Do what a page asks for; gives what that printed."""
    if step.file:
        (checkout / step.file).parent.mkdir(parents=True, exist_ok=True)
        (checkout / step.file).write_text(step.text)
        return ""
    done = run(step.text, checkout, **variables)
    said = f"{step.text}\n{done.stdout}{done.stderr}"
    code, words = step.lacks or (step.code, ())
    assert done.returncode == code, said
    if step.lacks:
        assert any(all(word in line for word in words) for line in done.stderr.splitlines()), said
    return done.stdout


def check_printed(shown: str, printed: str) -> None:
    """Find every line that a page shows in what was printed, however both are broken into lines."""
    whole = " ".join(printed.split())
    parts = [" ".join(part.split()) for line in shown.splitlines() for part in line.split("…")]
    assert [part for part in parts if part not in whole] == [], printed


@pytest.mark.parametrize("page", [page for page in PAGES if any(not step.reason for step in STEPS[page])])
def test_commands_of_a_page_do_what_it_says(page: str, checkout: Path) -> None:
    if page_has(page, "jq ") and shutil.which("jq") is None:
        pytest.skip("jq is not on this machine, and the page reads JSON with it")
    printed: list[str] = []
    for step in STEPS[page]:
        if step.printed:
            check_printed(step.text, "".join(printed))
        elif not step.reason:
            printed.append(do(step, checkout))


def page_has(page: str, *parts: str) -> bool:
    return any(part in step.text for step in STEPS[page] for part in parts)


def with_vllm(command: str, python: str, url: str) -> str:
    """A command that asks the vLLM of the tests: that of an environment elsewhere, a server at another port."""
    command = command.replace(SERVER, url)
    if "make serve-check" not in command:
        return command
    given = command if 'ARGS="' in command else f'{command} ARGS=""'
    return given.replace('ARGS="', f'ARGS="--serving-python {python} ')


def python_with_vllm() -> str:
    try:
        return str(serving_python())
    except ServingError as error:
        pytest.skip(str(error))


@pytest.mark.campaign
@pytest.mark.parametrize("page", [page for page in PAGES if any(step.reason for step in STEPS[page])])
def test_long_commands_of_a_page_do_what_it_says(page: str, checkout: Path, tmp_path: Path) -> None:
    python = python_with_vllm() if page_has(page, *ASK_VLLM) else ""
    if page_has(page, "--executor ray"):
        pytest.importorskip("ray")
    printed, url = list[str](), SERVER
    with ExitStack() as stack:
        for step in STEPS[page]:
            if step.printed:
                check_printed(step.text, "".join(printed))
            elif step.text.startswith("vllm serve "):
                _, _, checkpoint, *options = shlex.split(step.text)
                url = stack.enter_context(serving(checkout / checkpoint, tmp_path, *options)).url
            else:
                asked = replace(step, text=with_vllm(step.text, python, url))
                printed.append(do(asked, checkout, WEIGHBRIDGE_SERVING_PYTHON=python))


@pytest.mark.parametrize("page", [page for page in PAGES if page.endswith(".md")])
def test_commands_stand_in_blocks_that_are_run(page: str) -> None:
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```(\w*)(?: title=[^\n]+)?\n(.*?)^```$", text, flags=re.M | re.S)
    assert {language for language, _ in blocks} <= {"sh", "text", "yaml", "json", "python"}
    indented = re.findall(r"^    \S.*$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M)
    elsewhere = [line for language, block in blocks if language != "sh" for line in block.splitlines()]
    command = re.compile(r"\s*(\$ |(make|pip|git|curl|vllm|hf|mkdocs|python|weighbridge|\.venv/bin/\w+) [^|:=]*$)")
    assert [line for line in indented + elsewhere if command.match(line)] == []


@pytest.mark.parametrize("page", PAGES)
def test_targets_and_options_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"`make ([a-z0-9-]+)", text)) <= targets
    for script in ("build", "validate"):
        named = " ".join(re.findall(rf"`(?:python )?{script}\.py ([^`]*)`", text))
        assert set(re.findall(r"--[a-z-]+", named)) <= set(re.findall(r"--[a-z-]+", help_of(script)))


@pytest.mark.parametrize("start", LACKING)
def test_what_lacks_something_stands_on_a_page(start: str) -> None:
    assert any(step.lacks == LACKING[start] for steps in STEPS.values() for step in steps)


def test_the_demo_runs_twice_and_says_where_everything_lies(checkout: Path) -> None:
    for _ in range(2):
        done = run("make demo", checkout)
        assert done.returncode == 0, done.stderr
    for word in ("PASS", "the checkpoint:", "its recipe:", "its reference:"):
        assert word in done.stdout
