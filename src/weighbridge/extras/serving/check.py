"""The serving check: a checkpoint in a server's own loader, and its log-probabilities beside our own.

headers -> request -> client inside the serving environment -> answer -> findings, agreement -> report
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.readable import check_read_by_transformers
from weighbridge.errors import Argument
from weighbridge.extras.serving.answer import Answer, Request, ServingError
from weighbridge.extras.serving.client import ask
from weighbridge.extras.serving.loaded import harmless_parameters, loading_findings
from weighbridge.progress import Progress
from weighbridge.report import Finding, Report, Section, SectionId, Severity, Table
from weighbridge.text.names import compact

if TYPE_CHECKING:
    from weighbridge.extras.quality.forward import Dtype
    from weighbridge.extras.serving.agreement import Agreement, Scores

GENERATED = 16
"""Tokens that the server generates after each text."""

TOWER_FILES = ("processor_config.json", "preprocessor_config.json")
"""One of these says how images are cut up, without which a server cannot make a vision tower."""

SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Arithmetic:
    """In what our own forward computes beside a server.

    Attributes:
        own: as the server does.
        higher: in which rounding is as good as none beside it.
        inputs_quantized: whether linears quantize their inputs, where the scheme says so.
    """

    own: Dtype
    higher: Dtype
    inputs_quantized: bool


SERVED = Arithmetic(own="bfloat16", higher="float32", inputs_quantized=True)
EXACT = Arithmetic(own="float32", higher="float64", inputs_quantized=False)


@dataclass(frozen=True)
class ServingCheck:
    """What is to be checked, and how.

    Attributes:
        checkpoint: on disk.
        source: its base, on disk, or None.
        python: of the serving environment.
        token_ids: texts whose tokens are scored.
        log: where the server's own log goes.
    """

    checkpoint: Checkpoint
    source: Checkpoint | None
    python: Path
    token_ids: Sequence[Sequence[int]]
    log: Path


def check(request: ServingCheck, *, progress: Progress) -> Report:
    """Load, generate, score, compare.

    Raises:
        ServingError: the server or transformers gave no answer.
        StructureError: our own forward does not read the checkpoint.
    """
    checkpoint = request.checkpoint
    answer = ask_server(checkpoint, request, exact=False)
    server = _server(answer)
    sections = [loading_section(checkpoint, answer, log=request.log)]
    if answer.log_probabilities:
        sections.append(_generation_section(answer))
        sections.append(_exact_section(request, progress))
        exact, rounded = own_scores(checkpoint, request.token_ids, SERVED, progress)
        served = served_scores(answer)
        client = f"{server} as it serves, in BFloat16"
        sections.append(agreement_section(client, served, exact, rounded, id="agreement-served"))
        if request.source is not None:
            sections.append(_source_section(request, served, progress))
        sections.append(_transformers_section(request, exact, rounded))
    holds = all(section.holds for section in sections)
    return Report(
        "serve-check",
        checkpoint.label,
        f"{checkpoint.label} {'is served by' if holds else 'is not served as it should be by'} {server}"
        + ("" if answer.log_probabilities else "; nothing was generated"),
        tuple(sections),
    )


def loads_towers(checkpoint: Checkpoint) -> bool:
    """Whether a server can load a checkpoint's vision and audio towers: it has the files that they ask for."""
    return any(name in checkpoint.files for name in TOWER_FILES)


def loading_section(checkpoint: Checkpoint, answer: Answer, *, log: Path | None = None) -> Section:
    """What the server's loader made of a checkpoint."""
    findings = loading_findings(checkpoint, answer, towers=loads_towers(checkpoint))
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    filled = f"all {len(answer.parameters):,} parameters are filled or need not be"
    facts: dict[str, str | int] = {
        "model": answer.model or "none was made",
        "parameters": len(answer.parameters),
        "tensors of the checkpoint": len(checkpoint.structure),
        "tensors used": len({key for key, _, _ in answer.writes}),
        "device": answer.device,
    }
    if errors and log is not None:
        facts["the server's log"] = str(log)
    summary, tables = f"{errors} things are wrong" if errors else filled, _harmless_tables(checkpoint, answer)
    return Section("loading", f"loading into {_server(answer)}", summary, tuple(findings), facts, tables)


def agreement_section(client: str, served: Scores, exact: Scores, rounded: Scores, *, id: SectionId) -> Section:
    """A client's log-probabilities beside those of our own forward."""
    from weighbridge.extras.serving.agreement import agreement

    found = agreement(served, exact, rounded)
    findings = () if found.holds else (_disagreement(client, found),)
    summary = (
        f"{found.tokens:,} tokens; differences of {found.difference:.3g} nats (root mean square), "
        f"where rounding alone makes {found.noise:.3g} and {found.allowed:.3g} are allowed"
    )
    return Section(id, f"{client}, against our own forward", summary, findings, {}, (_agreement_table(found),))


def token_windows(checkpoint: Checkpoint, text: str, *, windows: int, length: int) -> list[list[int]]:
    """Stretches of a text in a checkpoint's tokens, spread evenly over it, each with what the tokenizer puts first.

    Raises:
        ServingError: it has no tokenizer, or the text is too short.
        StructureError: transformers cannot load it, with which the server is compared.
    """
    from tokenizers import Tokenizer

    check_read_by_transformers(checkpoint)
    assert checkpoint.directory is not None
    path = checkpoint.directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        raise ServingError(f"its tokenizer cannot be read ({error})", where=checkpoint.label) from error
    tokenizer.no_truncation()
    before = list(tokenizer.encode("").ids)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    taken = length - len(before)
    if len(ids) < windows * taken:
        what = f"the text has {len(ids):,} tokens, and {windows} windows of {taken} are asked for"
        raise ServingError(what, where=Argument("text"), remedy="name a longer text, or fewer or shorter windows")
    step = (len(ids) - taken) // max(windows - 1, 1)
    return [before + ids[start * step : start * step + taken] for start in range(windows)]


def ask_server(checkpoint: Checkpoint, request: ServingCheck, *, exact: bool, log: Path | None = None) -> Answer:
    """The server's answer about one of a request's checkpoints.

    Args:
        exact: as in `weighbridge.extras.serving.answer.Request`.
        log: instead of the request's own.

    Raises:
        ServingError: the checkpoint lies on no disk, or the client gave no answer.
    """
    if checkpoint.directory is None:
        raise ServingError("lies on no disk", where=checkpoint.label, remedy="download it and name its directory")
    return ask(
        Request(
            checkpoint=str(checkpoint.directory.resolve()),
            exact=exact,
            token_ids=request.token_ids,
            length=max(map(len, request.token_ids)) + GENERATED,
            harmless=[each.pattern for each in harmless_parameters(checkpoint)],
            towers=loads_towers(checkpoint),
            generate=GENERATED,
            threads=len(os.sched_getaffinity(0)),
        ),
        python=request.python,
        log=request.log if log is None else log,
    )


def _server(answer: Answer) -> str:
    return f"vLLM {answer.versions['vllm']}" if "vllm" in answer.versions else "vLLM"


def _harmless_tables(checkpoint: Checkpoint, answer: Answer) -> tuple[Table, ...]:
    """What stays unfilled harmlessly, with the reason."""
    rows: list[tuple[str | int | float, ...]] = []
    for each in harmless_parameters(checkpoint):
        names = [name for name in answer.unfilled if re.fullmatch(each.pattern, name)]
        if names:
            rows.append((str(compact(names)[0]), len(names), each.reason))
    return (Table(("left unfilled, harmlessly, such as", "parameters", "because"), tuple(rows)),) if rows else ()


def _generation_section(answer: Answer) -> Section:
    shown = [repr(text)[:SHOWN_CHARACTERS] for text in answer.text[:3]]
    return Section(
        "generation",
        "generation",
        f"{sum(map(len, answer.generated)):,} tokens after {len(answer.generated)} texts",
        facts={f"after text {number}": text for number, text in enumerate(shown, 1)},
    )


def served_scores(answer: Answer) -> Scores:
    """The server's log-probabilities of all texts' tokens, one text after another."""
    import numpy as np

    return np.concatenate([np.asarray(scores, np.float64) for scores in answer.log_probabilities])


def own_scores(
    checkpoint: Checkpoint, token_ids: Sequence[Sequence[int]], arithmetic: Arithmetic, progress: Progress
) -> tuple[Scores, Scores]:
    """Our own forward's log-probabilities in two precisions, the higher first; the difference is rounding noise."""
    from weighbridge.extras.quality.forward import open_forward, open_weights_forward
    from weighbridge.extras.serving.agreement import scores_of

    def scores(dtype: Dtype) -> Scores:
        opened = open_forward if arithmetic.inputs_quantized else open_weights_forward
        forward = opened(checkpoint, dtype=dtype, progress=progress)
        return scores_of([forward.log_probabilities(tokens) for tokens in token_ids], token_ids)

    return scores(arithmetic.higher), scores(arithmetic.own)


def _exact_section(request: ServingCheck, progress: Progress) -> Section:
    """The server with references in place of all kernels, in float32: what it made of the weights, and nothing else."""
    answer = ask_server(request.checkpoint, request, exact=True)
    title = f"{_server(answer)} in float32, inputs as they are"
    if not answer.log_probabilities:
        what = f"cannot be run in float32: {answer.refused}"
        remedy = "the comparison in BFloat16 stands alone; it is less sharp"
        finding = Finding("serve/not-exact", Severity.WARNING, "the server", what, remedy=remedy)
        return Section("agreement-exact", title, "could not be compared", (finding,))
    higher, own = own_scores(request.checkpoint, request.token_ids, EXACT, progress)
    return agreement_section(title, served_scores(answer), higher, own, id="agreement-exact")


def _disagreement(client: str, found: Agreement) -> Finding:
    what = f"computes something else than the checkpoint means: its log-probabilities differ by {_by_how_much(found)}"
    remedy = "docs/explanation/serving.md says what the bounds mean; suspect how the client reads scales first"
    return Finding("serve/disagrees", Severity.ERROR, client, what, remedy=remedy)


def _source_disagreement(source: str, found: Agreement) -> Finding:
    what = f"is computed otherwise by the server, too: its log-probabilities differ by {_by_how_much(found)}"
    remedy = "suspect how the server or transformers computes this architecture, or what config.json leaves out, "
    remedy += "before you suspect the build"
    return Finding("serve/source-disagrees", Severity.WARNING, source, what, remedy=remedy)


def _by_how_much(found: Agreement) -> str:
    return f"{found.difference:.3g} nats (root mean square) where {found.allowed:.3g} are allowed"


def _agreement_table(found: Agreement) -> Table:
    rows: list[tuple[str | int | float, ...]] = [
        ("differences, root mean square", f"{found.difference:.4g} nats", f"{found.allowed:.4g} nats"),
    ]
    rows += [
        (f"tokens that differ by more than {2 * level.noise:.3g} nats", f"{level.beyond:.2%}", f"{level.allowed:.2%}")
        for level in found.levels
    ]
    return Table(("figure", "found", "allowed"), tuple(rows))


def _source_section(request: ServingCheck, served: Scores, progress: Progress) -> Section:
    """The source in the same server: what quantization changed, and whether the server computes the source itself.

    Quantization is meant to change something, so that the former is for information.
    """
    from weighbridge.extras.serving.agreement import agreement

    assert request.source is not None
    log = request.log.with_name(f"{request.log.stem}-source{request.log.suffix}")
    answer = ask_server(request.source, request, exact=False, log=log)
    label, title = request.source.label, "the source in the same server"
    if not answer.log_probabilities:
        what = f"cannot be compared with: {answer.refused or 'it does not load whole'}"
        refused = Finding("serve/source-refused", Severity.WARNING, label, what, remedy=f"see {log}")
        return Section("source-served", title, "it gave no log-probabilities", (refused,))
    source = served_scores(answer)
    difference = served - source
    exact, rounded = own_scores(request.source, request.token_ids, SERVED, progress)
    found = agreement(source, exact, rounded)
    rows = (
        ("mean log-probability, source", f"{source.mean():.4f} nats"),
        ("mean log-probability, checkpoint", f"{served.mean():.4f} nats"),
        ("difference, root mean square", f"{float((difference**2).mean()) ** 0.5:.4f} nats"),
    )
    return Section(
        "source-served",
        title,
        f"quantization changes log-probabilities by {difference.mean():+.4f} nats a token on average (for information)",
        () if found.holds else (_source_disagreement(label, found),),
        tables=(Table(("figure", "value"), rows),),
    )


def _transformers_section(request: ServingCheck, exact: Scores, rounded: Scores) -> Section:
    """transformers as the second client."""
    from weighbridge.extras.serving.agreement import scores_of
    from weighbridge.extras.serving.transformers_client import distributions

    checkpoint = request.checkpoint
    assert checkpoint.directory is not None
    title = "transformers (with llm-compressor's loader for experts)"
    if checkpoint.declaration is not None and checkpoint.declaration.quant_method != "compressed-tensors":
        return Section(
            "agreement-transformers", title, f"was not asked: it does not read {checkpoint.declaration.quant_method}"
        )
    try:
        found = distributions(checkpoint.directory, request.token_ids, where=checkpoint.label)
    except ServingError as error:
        finding = Finding("serve/second-client", Severity.WARNING, "transformers", str(error), remedy="serve with vLLM")
        return Section("agreement-transformers", title, "does not load it", (finding,))
    served = scores_of(found, request.token_ids)
    return agreement_section(title, served, exact, rounded, id="agreement-transformers")
