"""The door for programs: what the commands do, as typed functions from values to values.

Each takes names as a person would write them (a recipe of the catalogue, a directory, an id of the hub), or what
another function here gave. Whatever is raised on purpose is a `weighbridge.errors.WeighbridgeError`: it says what is
wrong, where, and what to do, and has arguments in backquotes (`weighbridge.errors.Argument`). What was judged and does
not hold is a report, no error.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from weighbridge.base.identity import identify, pinned_files, sampled
from weighbridge.base.references import NO_REFERENCE, AgainstReference, base_of, base_of_source, find_references
from weighbridge.base.source import MINIATURE, checked_source, fetch, open_model, open_source
from weighbridge.checkpoint.model import Checkpoint, open_directory
from weighbridge.checkpoint.modules import split_parameter
from weighbridge.errors import Argument, Clause, EvidenceError, RecipeError, StructureError
from weighbridge.formats.tensors import payload_bytes
from weighbridge.machine.installation import need
from weighbridge.machine.resources import Resources
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe
from weighbridge.report import Finding, Report, Section, Severity

if TYPE_CHECKING:
    from weighbridge.checks.capacity.accounting import Demand
    from weighbridge.checks.expectation import Expected
    from weighbridge.evidence import Signer
    from weighbridge.evidence.signing import Verifier
    from weighbridge.planning import Plan
    from weighbridge.planning.online import Online
    from weighbridge.policy import Judged

Name = str | os.PathLike[str]
ENGINES = ("streaming", "upstream")
RELATED = 20
"""One module in so many is called alike in a build and its base at the least: embeddings and norms keep their names."""


def load_recipe(recipe: Name) -> LoadedRecipe:
    """Read a recipe, and what it extends and uses.

    Args:
        recipe: its path, or its name in the catalogue, as in ``fp8-dynamic``.

    Raises:
        RecipeError: there is none, or it is no recipe; with file and line.
    """
    from weighbridge.recipe import load_recipe as load

    return load(_text(recipe, "recipe"))


def open_checkpoint(checkpoint: Name, *, follow_links: Sequence[Path] = ()) -> Checkpoint:
    """Open any checkpoint by its headers and its config; no weight is read.

    Args:
        checkpoint: a directory, a structure lock, an id of the hub ``org/name[@revision]``, or a model that is made on
            the spot (``mini``).
        follow_links: directories into which the links of a directory may lead.

    Raises:
        StructureError: it is none of these, or malformed.
        HubError: the hub could not be reached or did not give it.
    """
    return open_model(_text(checkpoint, "checkpoint"), follow=follow_links)


def plan(recipe: Name | LoadedRecipe, source: Name | Checkpoint | None = None, *, carry: Sequence[str] = ()) -> Plan:
    """Decide what becomes of every tensor of a model, from headers alone.

    Args:
        source: the model to quantize (for a conversion, the build to convert); None for the recipe's own.
        carry: names or patterns of files of the source that go along beside what a model needs.

    Raises:
        RecipeError, StructureError, HubError: recipe or source cannot be read.
        BuildError: the source is quantized already.
    """
    from weighbridge.checkpoint.needed import with_what_goes_along
    from weighbridge.planning import make_plan
    from weighbridge.planning.conversion_base import predict_base

    loaded = _loaded(recipe)
    if loaded.recipe.method == "convert" and source == MINIATURE:
        return make_plan(loaded, with_what_goes_along(predict_base(loaded), _several(carry)))
    return make_plan(loaded, with_what_goes_along(_source(loaded, source), _several(carry)))


def lint(plan: Plan, *, references: Sequence[str] = (), demand: Demand | None = None) -> Report:
    """Judge a plan: what lint's rules say of it, how it compares with references, and whether it fits a card.

    Args:
        references: what to compare with in place of the recipe's own, as `open_checkpoint` opens them, or ``none``.
        demand: the card that the result is to be served on.

    Raises:
        StructureError, HubError: a reference cannot be opened.
    """
    from weighbridge.checks.plan_report import report_plan
    from weighbridge.planning import Plan as PlanType

    if not isinstance(plan, PlanType):
        raise StructureError("is no plan", where=Argument("plan"), remedy="make one of a recipe and a source")
    base = base_of(plan.loaded, plan.source)
    report = report_plan(plan, find_references(plan.loaded, base, _several(references)), demand)
    return replace(report, head=_recipe_head(plan.loaded), metrics=_metrics(plan.predicted))


def online(plan: Plan) -> Online:
    """vLLM's configuration for quantizing, while it loads the base, what a plan quantizes.

    Raises:
        BuildError: vLLM cannot do it; with what stands against it.
    """
    from weighbridge.planning.online import online as configured

    return configured(plan)


def build(
    recipe: Name | LoadedRecipe,
    source: Name | Checkpoint | None,
    output: Name,
    *,
    audit: bool = False,
    sign: Signer | Name | None = None,
    force: bool = False,
    references: Sequence[str] = (),
    carry: Sequence[str] = (),
    calibration: Name | None = None,
    engine: Literal["streaming", "upstream"] = "streaming",
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> Report:
    """Build a checkpoint with its evidence. The output is replaced exactly if the report holds.

    Args:
        source: as for `plan`.
        output: the directory that the build becomes.
        audit: hold every weight against the source by the numbers before the build is kept.
        sign: who signs the evidence: a private key's file, ``sigstore``, or a `weighbridge.evidence.Signer`.
        force: replace an output that is not empty, once the new build is whole.
        references: as for `lint`.
        carry: as for `plan`.
        calibration: a file to calibrate with in place of the recipe's data set.
        engine: this project's own, piece by piece or layer by layer, or llm-compressor on whole shards or models.

    Raises:
        WeighbridgeError: the build could not start or not finish; the output is as it was.
    """
    from weighbridge.building import BuildRequest, build_base
    from weighbridge.building import build as build_it
    from weighbridge.evidence import open_signer
    from weighbridge.output.staging import check_target

    loaded, progress = _loaded(recipe), progress or Progress()
    if engine not in ENGINES:
        raise RecipeError(f"is {str(engine)[:40]}", where=Argument("engine"), remedy=f"take {' or '.join(ENGINES)}")
    if audit and loaded.recipe.method == "convert":
        what = "a conversion starts from codes, and an audit needs the weights that these were made of"
        raise RecipeError(what, where=Argument("audit"), remedy="audit the result against the base")
    signer = open_signer(os.fspath(sign)) if isinstance(sign, str | os.PathLike) else sign
    target = Path(_text(output, "output"))
    check_target(target, force=force, source=None)
    if calibration is not None:
        loaded = calibrated_with(loaded, calibration)
    if loaded.recipe.method == "convert" and source == MINIATURE:
        opened = build_base(loaded, progress=progress)
    else:
        opened = _source(loaded, source)
    request = BuildRequest(
        loaded=loaded,
        source=opened,
        output=target,
        references=_several(references),
        engine=engine,
        resources=resources or Resources(),
        force=force,
        signer=signer,
        audited=audit,
        carry=_several(carry),
    )
    report = build_it(request, progress=progress)
    metrics = _metrics(open_directory(target)) if report.holds else {}
    return replace(report, head={**_base_head(opened), **_recipe_head(loaded)}, metrics=metrics)


@dataclass(frozen=True)
class Sides:
    """A checkpoint and what it is held against: each opened once, related once, and planned once.

    Attributes:
        base: the model that it was made from, where it is at hand.
        expected: what the recipe makes of that; None without a recipe.
        references: those of the recipe, or those that were named.
    """

    checkpoint: Checkpoint
    base: Checkpoint | None
    loaded: LoadedRecipe | None
    expected: Expected | None
    references: tuple[AgainstReference, ...]


def sides_of(
    checkpoint: Name | Checkpoint,
    *,
    recipe: Name | LoadedRecipe | None = None,
    source: Name | Checkpoint | None = None,
    references: Sequence[str] = (),
) -> Sides:
    """What `validate` and `audit` judge, for who asks both.

    Raises:
        StructureError, HubError, RecipeError: something cannot be read, or base and checkpoint are not related.
    """
    from weighbridge.checks.expectation import expected_of

    opened, references = _opened(checkpoint), _several(references)
    base = None if source is None else open_base(source)
    if base is not None:
        check_related(opened, base)
    if recipe is None:
        named = [name for name in references if name != NO_REFERENCE]
        return Sides(opened, base, None, None, tuple(AgainstReference(open_checkpoint(name)) for name in named))
    loaded = _loaded(recipe)
    expected = expected_of(opened, loaded, base, references)
    return Sides(opened, base, loaded, expected, expected.references)


def validate(
    checkpoint: Name | Checkpoint,
    *,
    recipe: Name | LoadedRecipe | None = None,
    source: Name | Checkpoint | None = None,
    references: Sequence[str] = (),
    context: Sequence[Section] = (),
) -> Report:
    """Judge a checkpoint by its headers, config and files: no weight is read but for scales of whole tensors.

    Args:
        recipe: what it is held against, with the recipe's own references.
        source: the base, which its files and the keys of its config are held against.
        references: as for `lint`; without a recipe, checkpoints to hold it against.
        context: sections that are already known, of an `audit` say, and stand first.

    Raises:
        StructureError, HubError, RecipeError: something cannot be read.
    """
    return validate_sides(sides_of(checkpoint, recipe=recipe, source=source, references=references), context=context)


def validate_sides(sides: Sides, *, context: Sequence[Section] = ()) -> Report:
    """`validate` of what is opened.

    Raises:
        StructureError, HubError: a file cannot be read.
    """
    from weighbridge.account import Base
    from weighbridge.checks.expectation import values_of
    from weighbridge.checks.validation import validate as judge

    opened, expected = sides.checkpoint, sides.expected
    plan, base = None, None if sides.base is None else Base(sides.base, sides.base.label, listed=True)
    if expected is not None:
        plan, base = expected.plan, expected.base
    context = (*values_of(opened, plan), *context)
    report = judge(opened, plan=plan, references=sides.references, base=base, context=context)
    head = {**_base_head(None if base is None else base.checkpoint), **_recipe_head(sides.loaded)}
    return replace(report, head=head, metrics=_metrics(opened))


def audit(
    checkpoint: Name | Checkpoint,
    source: Name | Checkpoint,
    *,
    recipe: Name | LoadedRecipe | None = None,
    sample: float | None = None,
    seed: int | None = None,
    recompute: bool = False,
    calibration: Name | None = None,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> Report:
    """Hold every weight of a checkpoint against the base that it must derive from, by the numbers.

    Args:
        recipe: what the numbers must be; without one each must be the nearest to the base's.
        sample: the share of each tensor's rows that is read, more than 0 and less than 1; None for all.
        seed: of the choice of rows; None for one that nobody knows beforehand.
        recompute: run the recipe again on the base, and compare byte by byte.
        calibration: with `recompute`, the file that it was calibrated with, if it was.

    Raises:
        StructureError: one of them holds no weights, or hardly a name of the other's.
        WeighbridgeError: one cannot be read, or there is too little memory.
    """
    return audit_sides(
        sides_of(checkpoint, recipe=recipe, source=source, references=(NO_REFERENCE,)),
        sample=sample,
        seed=seed,
        recompute=recompute,
        calibration=calibration,
        resources=resources,
        progress=progress,
    )


def audit_sides(
    sides: Sides,
    *,
    sample: float | None = None,
    seed: int | None = None,
    recompute: bool = False,
    calibration: Name | None = None,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> Report:
    """`audit` of what is opened.

    Raises:
        StructureError: one of them holds no weights, or there is no base.
        WeighbridgeError: one cannot be read, or there is too little memory.
    """
    need("build" if recompute else "audit")
    for value, argument, right in (
        (sample, "sample", sample is None or (type(sample) in (int, float) and 0 < sample <= 1)),
        (seed, "seed", seed is None or (type(seed) is int and seed >= 0)),
    ):
        if not right:
            remedy = "take a share above 0, and 1 at most" if argument == "sample" else "take a whole number"
            raise StructureError(f"is {str(value)[:40]}", where=Argument(argument), remedy=remedy)
    from weighbridge import auditing
    from weighbridge.building.again import built_again
    from weighbridge.checks.validation import OTHER_RECIPE, other_schemes
    from weighbridge.planning import find_merged_groups

    opened, base, loaded = sides.checkpoint, sides.base, sides.loaded
    if base is None:
        raise StructureError("names no model", where=Argument("source"), remedy="name the base that it was made from")
    progress, resources = progress or Progress(), resources or Resources()
    for side, purpose in ((opened, "audit"), (base, "audit against")):
        check_weights(side, purpose)
    sampled_rows = None
    if sample is not None and sample < 1:
        sampled_rows = auditing.Sample(sample, secrets.randbits(32) if seed is None else seed)
    groups = find_merged_groups(opened.schemes, opened.family)
    others: list[str] = []
    if sides.expected is not None:
        plan = sides.expected.plan
        groups, others = plan.fused_groups, other_schemes(opened, plan)
    with ExitStack() as stack:
        again = None
        if recompute:
            calibrated = _to_run_again(loaded, calibration, sample)
            again = stack.enter_context(built_again(calibrated, base, resources=resources, progress=progress))
        found = auditing.audit(
            opened,
            base,
            method=auditing.method_of(opened, loaded),
            groups=groups,
            sample=sampled_rows,
            resources=resources,
            progress=progress,
            again=again,
        )
    lock = base_of_source(base, preferred=loaded.recipe.base.model if loaded is not None else "")
    digests = {**found.digests, **_digests_beside(base, lock)}
    identity = identify(base.shards, lock, digests) if found.digests else sampled(lock)
    sections = (identity.section(base), *auditing.sections(found))
    if others:
        finding = Finding("diff/scheme", Severity.ERROR, opened.label, "; ".join(others), remedy=OTHER_RECIPE)
        sections = (Section("schemes", "its schemes", "are not those of the recipe", findings=(finding,)), *sections)
    verdict = f"{opened.label} {auditing.conclusion(found)}"
    if others:
        verdict = f"{opened.label} is not by this recipe: {'; '.join(others)}"
    head = {**_base_head(base), **_recipe_head(loaded)}
    metrics = {**_metrics(opened), **auditing.metrics(found)}
    return Report("audit", opened.label, verdict, sections, head, metrics)


def diff(before: Name | Checkpoint, after: Name | Checkpoint) -> Report:
    """What differs between two checkpoints: bytes by role, tensors, quantization by effect, config, files.

    Each difference is a note of the report, so that it has no findings exactly if nothing differs.

    Raises:
        StructureError, HubError: one of them cannot be read.
    """
    from weighbridge.checks.compared import compared

    return compared(_opened(before), _opened(after))


def verify(
    checkpoint: Name,
    *,
    signed_by: Verifier | Name | None = None,
    source: Name | Checkpoint | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a build's evidence: every byte, digest, statement and signature, each against the others.

    Args:
        signed_by: who is expected to have signed: a public key's file, or a `weighbridge.evidence` verifier.
        source: the base, to be compared with what was read, by digest.

    Raises:
        StructureError: the directory cannot be read.
        EvidenceError: what is needed to verify is not installed, or Sigstore cannot be reached.
    """
    from weighbridge.evidence.signing import open_verifier
    from weighbridge.evidence.verify import verify as check

    progress = progress or Progress()
    base = None if source is None else fetch(_opened(source), progress)
    verifier = open_verifier(Path(signed_by)) if isinstance(signed_by, str | os.PathLike) else signed_by
    return check(Path(_text(checkpoint, "checkpoint")), verifier=verifier, source=base, progress=progress)


def gate(checkpoint: Name, policy: Name, *, progress: Progress | None = None) -> Judged:
    """Whether a checkpoint may be served: its evidence verified, every byte of it, and held against a policy.

    Args:
        policy: a YAML file; docs/how-to/gate.md says what its keys ask.

    Returns:
        The report, and what summaries for other programs are made of (`weighbridge.policy.summary`).

    Raises:
        PolicyError: the policy cannot be read, or names what there is not.
        StructureError: the directory cannot be read.
        EvidenceError: a key of the policy cannot be read, or Sigstore cannot be reached.
    """
    from weighbridge.policy import judge, open_policy

    loaded = open_policy(Path(_text(policy, "policy")))
    return judge(Path(_text(checkpoint, "checkpoint")), loaded, progress=progress)


def reproduce(
    checkpoint: Name,
    *,
    source: Name | None = None,
    calibration: Name | None = None,
    text: Name | None = None,
    references: Sequence[str] | None = None,
    output: Name | None = None,
    elsewhere: bool = False,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> tuple[Report, bytes]:
    """Build a checkpoint again from its own evidence, and compare the bytes.

    Args:
        source: where the base is; None for the repository of the hub that the evidence names.
        calibration: the file that it was calibrated with, if it was.
        text: the file that its answers were measured on, if its recipe named one.
        references: what it is held against in place of what its evidence names.
        output: keep what is built here; None for a place that goes afterwards.
        elsewhere: build even where the environment differs, to see whether the bytes do.

    Returns:
        The report, and the verdict as an in-toto statement about the checkpoint.

    Raises:
        EvidenceError: the evidence cannot be followed.
        WeighbridgeError: the source cannot be had, or the build could not be started or finished.
    """
    need("build")
    from weighbridge.building.reproduce import Rebuild, rebuild

    request = Rebuild(
        directory=Path(_text(checkpoint, "checkpoint")),
        model=None if source is None else _text(source, "source"),
        calibrated=partial(calibrated_with, file=calibration) if calibration else None,
        text=None if text is None else _text(text, "text"),
        references=None if references is None else _several(references),
        output=None if output is None else Path(_text(output, "output")),
        elsewhere=elsewhere,
        resources=resources or Resources(),
    )
    return rebuild(request, progress=progress or Progress())


def calibrated_with(loaded: LoadedRecipe, file: Name) -> LoadedRecipe:
    """A recipe that is calibrated with a local file in place of its own data set.

    Raises:
        RecipeError: it calibrates nothing.
        DatasetError: a file of a kind that is not read.
    """
    from weighbridge.engines.oneshot import with_file

    calibration = loaded.recipe.calibration
    if calibration is None:
        what = Clause("nothing is calibrated, so ", Argument("calibration"), " has no meaning")
        raise RecipeError(what, where=loaded.document.where, remedy="leave it out")
    update = {"calibration": with_file(calibration, _text(file, "calibration"))}
    return replace(loaded, recipe=loaded.recipe.model_copy(update=update))


def locked_source(loaded: LoadedRecipe) -> Checkpoint | None:
    """What a recipe starts from, by the structure locks of the repository; None where there is none of it."""
    from weighbridge.base.locks import known_lock
    from weighbridge.planning.conversion_base import base_recipe

    recipe = loaded.recipe
    if recipe.method == "convert" and recipe.base.recipe is not None:
        start = base_recipe(loaded)
        source = locked_source(start)
        return None if source is None else plan(start, source).predicted
    return known_lock(recipe.base.model)


def open_base(source: Name | Checkpoint) -> Checkpoint:
    """A model that can be quantized.

    Raises:
        StructureError, HubError: as `open_checkpoint`.
        BuildError: it is quantized already.
    """
    return checked_source(source) if isinstance(source, Checkpoint) else open_source(_text(source, "source"))


def check_weights(checkpoint: Checkpoint, purpose: str) -> None:
    """Refuse a lock where weights are needed.

    Raises:
        StructureError: it is one.
    """
    if not checkpoint.shards:
        what = f"is a structure lock, which holds no weights to {purpose}"
        raise StructureError(what, where=checkpoint.label, remedy="name a directory, or a hub id")


def check_related(checkpoint: Checkpoint, source: Checkpoint) -> None:
    """Refuse a base that has nothing to do with the checkpoint: every tensor would be a finding, and none the reason.

    Raises:
        StructureError: hardly a module of the checkpoint is called as one of the base.
    """
    own, other = ({split_parameter(name)[0] for name in side.structure} for side in (checkpoint, source))
    if RELATED * len(own & other) < min(len(own), len(other)):
        what = f"is no build of {source.label}: {len(own & other)} of its {len(own):,} modules are called as one there"
        raise StructureError(what, where=checkpoint.label, remedy="name the base that it was made from")


def _recipe_head(loaded: LoadedRecipe | None) -> dict[str, str]:
    """What a report is filed by, of a recipe."""
    if loaded is None:
        return {}
    return {"recipe": loaded.document.where, "recipe SHA-256": loaded.sha256}


def _base_head(base: Checkpoint | None) -> dict[str, str]:
    """What a report is filed by, of a base."""
    if base is None:
        return {}
    origin = base.origin
    return {"base": "@".join(filter(None, (origin.repository or base.label, origin.revision)))}


def _metrics(checkpoint: Checkpoint) -> dict[str, int | float]:
    """Figures of a structure."""
    return {
        "payload_bytes": payload_bytes(checkpoint.structure),
        "tensors_count": len(checkpoint.structure),
        "modules_quantized_count": len(checkpoint.schemes),
    }


def _text(name: Name, argument: str) -> str:
    """A name or path as text.

    Raises:
        StructureError: it is neither.
    """
    if isinstance(name, str | os.PathLike):
        return os.fspath(name)
    raise StructureError(f"is no name or path, but {type(name).__name__}", where=Argument(argument))


def _several(names: Sequence[str]) -> tuple[str, ...]:
    """Names, or the one that stands alone."""
    return (names,) if isinstance(names, str) else tuple(names)


def _loaded(recipe: Name | LoadedRecipe) -> LoadedRecipe:
    return recipe if isinstance(recipe, LoadedRecipe) else load_recipe(recipe)


def _opened(checkpoint: Name | Checkpoint) -> Checkpoint:
    return checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)


def _source(loaded: LoadedRecipe, source: Name | Checkpoint | None) -> Checkpoint:
    """What a recipe starts from; by default what it says."""
    if isinstance(source, Checkpoint):
        return source if loaded.recipe.method == "convert" else checked_source(source)
    base = loaded.recipe.base
    named = "@".join(filter(None, (base.model, base.revision))) if source is None else _text(source, "source")
    return open_model(named) if loaded.recipe.method == "convert" else open_source(named)


def _to_run_again(loaded: LoadedRecipe | None, calibration: Name | None, sample: float | None) -> LoadedRecipe:
    """The recipe that `audit` runs again.

    Raises:
        EvidenceError: there is none, it is judged without, or only a sample is looked at.
    """
    if sample is not None:
        raise EvidenceError(
            "compares whole weights", where=Argument("recompute"), remedy=Clause("leave ", Argument("sample"), " out")
        )
    if loaded is None or loaded.recipe.calibration is None:
        what = "is for recipes that calibrate alone: every audit computes again what a recipe without data makes"
        remedy = (
            Clause("name that recipe with ", Argument("recipe"))
            if loaded is None
            else Clause("leave ", Argument("recompute"), " out")
        )
        raise EvidenceError(what, where=Argument("recompute"), remedy=remedy)
    return loaded if calibration is None else calibrated_with(loaded, calibration)


def _digests_beside(base: Checkpoint, lock: Checkpoint | None) -> dict[str, str]:
    """SHA-256 of the files beside the shards that the base's lock pins."""
    from weighbridge.account.base import digest

    found = ((name, digest(base, name)) for name in pinned_files(base, lock))
    return {name: sha256 for name, sha256 in found if sha256 is not None}
