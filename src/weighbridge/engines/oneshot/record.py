"""What a build was calibrated with, so that it can be done again: rows, token ids, settings, versions."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from weighbridge.engines.oneshot.samples import Samples
from weighbridge.recipe.calibration import Calibration

TOOLS = ("llmcompressor", "compressed-tensors", "transformers", "tokenizers", "torch", "datasets")


@dataclass(frozen=True)
class Record:
    """What calibration really used.

    Attributes:
        dataset: name of the data set, or of the file.
        revision: the commit that a hub's data set was read at; empty for a file.
        file_sha256: digest of a file; empty for a hub's data set.
        rows_available: how many rows there were to choose from.
        rows: those chosen, from 0, in the order in which they were drawn.
        tokens: how many tokens they are, special ones included.
        token_ids_sha256: see `Samples.sha256`.
        sequence_length: tokens of a sample at most.
        batch_size: samples that went through the model at a time, at most.
        render: ``text`` or ``chat``.
        seed: what chose the rows.
        experts: ``routed`` or ``all``.
        modifiers: what saw the data, in order.
        tools: package -> version.
    """

    dataset: str
    revision: str
    file_sha256: str
    rows_available: int
    rows: tuple[int, ...]
    tokens: int
    token_ids_sha256: str
    sequence_length: int
    batch_size: int
    render: str
    seed: int
    experts: str
    modifiers: tuple[str, ...]
    tools: dict[str, str]

    @property
    def facts(self) -> dict[str, str | int]:
        """The same for a report, without the rows one by one: the digest of the token ids stands for them."""
        identity = {"commit": self.revision} if self.revision else {}
        identity |= {"sha256 of the file": self.file_sha256} if self.file_sha256 else {}
        return {
            "text": self.dataset,
            **identity,
            "samples": f"{len(self.rows):,} of {self.rows_available:,} rows, chosen by seed {self.seed}",
            "tokens": f"{self.tokens:,}, at most {self.sequence_length:,} a sample, rendered as {self.render}",
            "sha256 of the token ids": self.token_ids_sha256,
            "experts see": "every token" if self.experts == "all" else "the tokens routed to them",
            "modifiers": ", ".join(self.modifiers),
            "tools": ", ".join(f"{package} {number}" for package, number in self.tools.items()),
        }


def make_record(calibration: Calibration, samples: Samples, modifiers: tuple[str, ...]) -> Record:
    """The record of a calibration with these samples."""
    return Record(
        dataset=samples.rows.name,
        revision=samples.rows.revision,
        file_sha256=samples.rows.sha256,
        rows_available=samples.rows.count,
        rows=samples.chosen,
        tokens=samples.tokens,
        token_ids_sha256=samples.sha256,
        sequence_length=calibration.sequence_length,
        batch_size=calibration.batch_size,
        render=calibration.render,
        seed=calibration.seed,
        experts=calibration.experts,
        modifiers=modifiers,
        tools={package: version(package) for package in TOOLS},
    )
