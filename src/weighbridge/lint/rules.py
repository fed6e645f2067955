"""The rules that lint knows. docs/rules.md explains each with an example, which a test runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weighbridge.report import Severity


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        id: what a report and an allowance call it.
        severity: of a finding that is not allowed.
        sentence: what it watches for.
        allowable: whether a recipe may break it knowingly, by ``allow: <id> because …``.
    """

    id: str
    severity: Severity
    sentence: str
    allowable: bool = True


@dataclass(frozen=True)
class Raised:
    """A rule that a plan breaks.

    Attributes:
        rule: id of the rule.
        where: recipe line, module pattern or file.
        count: how many modules `where` stands for.
        entry: index of the ignore entry it is about, whose own allowance may let it pass.
    """

    rule: str
    where: str
    message: str
    remedy: str = ""
    count: int = 1
    entry: int | None = None


def _rules() -> list[Rule]:
    error, warning, note = Severity.ERROR, Severity.WARNING, Severity.NOTE
    return [
        Rule("ignore/matches-nothing", error, "An ignore entry matches no module of the source."),
        Rule("ignore/tied", note, "An ignore entry names an output head that is tied and not stored.", allowable=False),
        Rule("ignore/lacks-re", error, "An ignore entry looks like a regular expression but lacks re:."),
        Rule("ignore/anchored", error, "An ignore entry misses only because patterns match from the start of a name."),
        Rule("ignore/redundant", warning, "Every module that an ignore entry matches is matched by another."),
        Rule("targets/matches-nothing", error, "A config group targets no module."),
        Rule("quantize/nothing", error, "The recipe quantizes nothing.", allowable=False),
        Rule("quantize/embedding", error, "Embeddings are quantized."),
        Rule("quantize/head", error, "The output head is quantized."),
        Rule("quantize/router", error, "A router is quantized."),
        Rule("quantize/norm", error, "A norm is quantized."),
        Rule("quantize/vision", error, "The vision tower, or what embeds its output, is quantized."),
        Rule("quantize/audio", error, "The audio tower, or what embeds its output, is quantized."),
        Rule("scheme/one-dimensional", error, "A one-dimensional tensor is to be quantized.", allowable=False),
        Rule("scheme/not-two-dimensional", error, "A tensor that is no matrix is to be quantized.", allowable=False),
        Rule("scheme/group-size", error, "A group size does not divide a width.", allowable=False),
        Rule("scheme/strategy", error, "A strategy cannot be applied to weights.", allowable=False),
        Rule("scheme/ragged-block", warning, "Blocks do not divide a weight; compressed-tensors pads them."),
        Rule("scheme/needs-calibration", error, "A data-free recipe has static activations.", allowable=False),
        Rule("fused/partly-ignored", error, "Some members of a group that servers merge are kept, some quantized."),
        Rule("fused/schemes-differ", error, "Members of a group that servers merge have different schemes."),
        Rule("fused/lacks-member", note, "A merged group lacks a member (values that are the keys).", allowable=False),
        Rule("coverage/untargeted", error, "Weights stay unquantized that no ignore entry keeps."),
        Rule("coverage/low", warning, "Less than half of the parameters of attention, mlp and experts are quantized."),
        Rule(
            "serve/undeclared", error, "config.json will declare a module otherwise than it is stored.", allowable=False
        ),
        Rule("serve/prefix", warning, "An entry depends on a prefix that servers rename."),
        Rule(
            "serve/tensor-parallel", note, "Tensor-parallel sizes for which widths and groups divide.", allowable=False
        ),
        Rule("serve/gpu", note, "Which GPUs run the scheme natively.", allowable=False),
        Rule("serve/vllm", note, "From which vLLM release the layout loads.", allowable=False),
        Rule("base/unpinned", warning, "The base model has no pinned revision."),
        Rule("allow/not-needed", warning, "An allowance for something that does not occur.", allowable=False),
        Rule(
            "allow/unknown-rule",
            error,
            "An allowance for a rule that is not known or cannot be allowed.",
            allowable=False,
        ),
    ]


RULES: Mapping[str, Rule] = {rule.id: rule for rule in _rules()}
