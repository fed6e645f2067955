"""The rules that lint knows. docs/reference/rules.md explains each with an example, which a test runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from weighbridge.report import Severity
from weighbridge.text.names import compact


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
        message: what is so, in a clause.
        remedy: what to do, in a clause.
        count: how many modules `where` stands for.
        entry: index of the ignore entry it is about, whose own allowance may let it pass.
    """

    rule: str
    where: str
    message: str
    remedy: str = ""
    count: int = 1
    entry: int | None = None


def together(found: Iterable[Raised]) -> Iterator[Raised]:
    """What is wrong with single modules, once for each pattern of those with the same problem."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for raised in found:
        alike.setdefault((raised.rule, raised.message, raised.remedy), []).append(raised.where)
    for (rule, message, remedy), modules in alike.items():
        for pattern in compact(modules):
            yield Raised(rule, str(pattern), message, remedy, len(pattern))


def _error(id: str, sentence: str, *, allowable: bool = True) -> Rule:
    return Rule(id, Severity.ERROR, sentence, allowable)


def _warning(id: str, sentence: str, *, allowable: bool = True) -> Rule:
    return Rule(id, Severity.WARNING, sentence, allowable)


def _note(id: str, sentence: str) -> Rule:
    return Rule(id, Severity.NOTE, sentence, allowable=False)


_ALL = (
    _error("ignore/matches-nothing", "An ignore entry matches no module of the source."),
    _note("ignore/tied", "An ignore entry names an output head that is tied and not stored."),
    _error("ignore/lacks-re", "An ignore entry looks like a regular expression but lacks re:."),
    _error("ignore/anchored", "An ignore entry misses only because names are matched from their start."),
    _warning("ignore/redundant", "Every module that an ignore entry matches is matched by another."),
    _warning("pattern/open-number", "A number in an expression also matches longer numbers: 1 matches 10 to 19."),
    _error("targets/matches-nothing", "A config group targets no module."),
    _error("targets/shadowed", "Every module that a config group targets is taken by an earlier group, or ignored."),
    _error("quantize/nothing", "The recipe quantizes nothing.", allowable=False),
    _error("quantize/embedding", "Embeddings are quantized."),
    _error("quantize/head", "The output head is quantized."),
    _error("quantize/router", "A router is quantized."),
    _error("quantize/norm", "A norm is quantized."),
    _error("quantize/vision", "The vision tower, or what embeds its output, is quantized."),
    _error("quantize/audio", "The audio tower, or what embeds its output, is quantized."),
    _error("quantize/mtp", "The matrix that joins embedding and hidden state for speculative decoding is quantized."),
    _error("quantize/indexer", "The indexer of sparse attention is quantized."),
    _error("quantize/talker", "What speaks (a talker, or a coder of sound) is quantized."),
    _note("quantize/unknown", "A module is quantized whose name does not say what it is for."),
    _error("scheme/one-dimensional", "A one-dimensional tensor is to be quantized.", allowable=False),
    _error("scheme/not-two-dimensional", "A tensor that is no matrix is to be quantized.", allowable=False),
    _error("scheme/group-size", "A group size does not divide a width.", allowable=False),
    _error("scheme/strategy", "A strategy cannot be applied to weights.", allowable=False),
    _warning("scheme/ragged-block", "Blocks do not divide a weight; compressed-tensors pads them."),
    _error("scheme/needs-calibration", "Data must be seen, and no calibration data are named.", allowable=False),
    _error("calibration/unused", "Calibration data are named, and nothing looks at them.", allowable=False),
    _error("calibration/computed", "The source stores what transformers computes, so none saves it.", allowable=False),
    _error(
        "scheme/two-modifiers", "Groups of two modifiers overlap so that neither does as they say.", allowable=False
    ),
    _error("scheme/observer", "Arguments say how scales or codes are chosen, and the recipe's method cannot do it."),
    _error("scheme/not-covered", "The data-free engine has no arithmetic for a scheme, or for how it is observed."),
    _error("scheme/format", "The recipe's format has no form for a scheme.", allowable=False),
    _error("scheme/fused-experts", "Fused experts have no place for what a scheme stores.", allowable=False),
    _error("fused/partly-ignored", "Some members of a group that servers merge are kept, some quantized."),
    _error("fused/schemes-differ", "Members of a group that servers merge have different schemes."),
    _error("fused/experts-differ", "The experts of a layer do not all have one scheme."),
    _error("fused/unlisted", "Servers merge linears under one global scale, and fused_groups does not name them."),
    _note("fused/lacks-member", "No v_proj: keys serve as values."),
    _error("convert/matches-nothing", "An entry of dequantize matches no module that is quantized.", allowable=False),
    _error("convert/changes-nothing", "A conversion would leave every tensor as it is.", allowable=False),
    _error("coverage/untargeted", "Weights stay unquantized that no ignore entry keeps."),
    _warning("coverage/low", "Less than half of the parameters of the text model's matrices are quantized."),
    _warning("coverage/unknown", "Many parameters have names that nobody knows here."),
    _error("serve/unquantized", "A module is quantized that a server loads unquantized whatever config.json says."),
    _error("serve/undeclared", "config.json will not say of a module what it is.", allowable=False),
    _warning("serve/tied-head", "config.json will declare a tied output head quantized, which has no scales."),
    _warning("serve/prefix", "An expression depends on a prefix that servers rename."),
    _warning("serve/merged-target", "Targets name members of a merged linear, and servers look for its own name."),
    _warning("serve/group-size", "A group size that vLLM's kernels for integer weights do not know."),
    _error("serve/no-kernel", "vLLM has nothing that computes with a scheme."),
    _error("serve/signed-activations", "Scales may be negative, and activations are integers."),
    _note("serve/signed-scales", "Scales may be negative: where they must not be served."),
    _note("serve/tensor-parallel", "Tensor-parallel sizes for which heads, widths and groups divide."),
    _note("serve/gpu", "Which GPUs run the scheme natively."),
    _note("serve/kv-cache", "The KV cache is declared quantized."),
    _warning("serve/experts-passed-over", "vLLM passes over experts under the names that they would be stored by."),
    _error(
        "serve/turned-rows", "A server reorders rows of a quantized weight, and what is stored beside it does not fit."
    ),
    _error("serve/no-loader", "vLLM does not load a model of this kind in Mistral's own form."),
    _note("serve/vllm", "From which vLLM release the layout loads."),
    _note("serve/transformers", "Plain transformers does not load the experts."),
    _error("source/rounded-before", "The source is quantized already, and the recipe's base is published in floats."),
    _warning("source/quantized", "The source is quantized already, so that weights are rounded twice."),
    _warning("source/made-floats", "The source is of floats, and the recipe's base is published quantized."),
    _note("source/dropped", "Scales of activations or of the KV cache do not go along with the weights."),
    _error("source/experts-layout", "Fused experts are not stored as they will be split.", allowable=False),
    _warning("source/other-weights", "Weights lie beside the shards, and are left behind.", allowable=False),
    _error("source/index-forgets", "Tensors of the model lie in a file that the index does not name.", allowable=False),
    _error("source/redirect", "config.json makes a server load other weights or code than the shards."),
    _warning("base/another-family", "The recipe is written for models of another type."),
    _warning("base/unpinned", "The base model has no pinned revision."),
    _warning("allow/not-needed", "An allowance for something that does not occur.", allowable=False),
    _error("allow/unknown-rule", "An allowance for a rule that does not exist or cannot be allowed.", allowable=False),
)

RULES: Mapping[str, Rule] = {rule.id: rule for rule in _ALL}
"""Every rule by its id."""
