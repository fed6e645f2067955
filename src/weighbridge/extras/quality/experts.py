"""Experts of a layer whose inputs are quantized, each under scales of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from weighbridge.extras.quality.activations import Activations, fake_quantized

Inputs = Mapping[tuple[int, str], Activations]
"""Expert and linear (``gate_proj``, ``up_proj``, ``down_proj``) -> how its inputs are quantized."""


class QuantizedExperts(nn.Module):
    """transformers' module of experts, with its own parameters, as it would be with quantized inputs.

    Args:
        experts: with ``gate_up_proj`` [experts, 2 x inner, width], ``down_proj`` [experts, width, inner], ``act_fn``.
        inputs: a linear that is not named takes its inputs as they are.
    """

    def __init__(self, experts: Any, inputs: Inputs) -> None:
        super().__init__()
        self.gate_up_proj: nn.Parameter = experts.gate_up_proj
        self.down_proj: nn.Parameter = experts.down_proj
        self.activation = experts.act_fn
        self.inputs = inputs

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Add up what the chosen experts make of each token.

        Args:
            hidden: [tokens, width].
            chosen: numbers of the experts of each token, [tokens, k].
            shares: what the router gives each, [tokens, k].
        """
        result = torch.zeros_like(hidden)
        for expert in torch.unique(chosen).tolist():
            tokens, position = torch.where(chosen == expert)
            states = hidden[tokens]
            gate_weight, up_weight = self.gate_up_proj[expert].chunk(2)
            gate = linear(self._input(states, expert, "gate_proj"), gate_weight)
            up = linear(self._input(states, expert, "up_proj"), up_weight)
            inner = self._input(self.activation(gate) * up, expert, "down_proj")
            output = linear(inner, self.down_proj[expert]) * shares[tokens, position, None]
            result.index_add_(0, tokens, output.to(result.dtype))
        return result

    def _input(self, values: torch.Tensor, expert: int, member: str) -> torch.Tensor:
        how = self.inputs.get((expert, member))
        return values if how is None else fake_quantized(values, how)
