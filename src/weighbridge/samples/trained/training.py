"""Training a language model with routed experts on a CPU: the same seed and threads give the same weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weighbridge.progress import Progress
from weighbridge.samples.trained.setting import Measured, Setting


@contextmanager
def reproducible(setting: Setting) -> Iterator[torch.Generator]:
    """Seed torch, fix its threads and its algorithms for the block; gives a seeded generator of the block's own."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(setting.threads)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            yield torch.Generator().manual_seed(setting.seed)
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


def train(
    model: nn.Module,
    routers: Sequence[nn.Module],
    ids: Tensor,
    setting: Setting,
    *,
    begin: int,
    generator: torch.Generator,
    progress: Progress,
) -> list[float]:
    """Train `model` in place on windows of `ids`.

    Args:
        model: called with token ids [batch, length], it answers with an object whose `logits` are
            [batch, length, vocabulary].
        routers: its modules that answer (probabilities [tokens, experts], weights, chosen [tokens, k]).
        ids: int64 [tokens] of the text.
        begin: id of the token that begins every window.

    Returns:
        The next-token loss of each step, in nats.
    """
    optimizer = torch.optim.AdamW(_groups(model), lr=setting.rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, setting))
    losses = []
    model.train()
    with watched(routers) as seen, progress.stage("training, bytes of tokens", setting.tokens * ids.itemsize):
        for _ in range(setting.steps):
            starts = torch.randint(len(ids) - setting.length + 1, (setting.batch,), generator=generator)
            windows = torch.stack([ids[start : start + setting.length - 1] for start in starts])
            loss = next_token_loss(model, windows, begin=begin)
            balance = torch.stack([balance_loss(probabilities, chosen) for probabilities, _, chosen in seen]).mean()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss + setting.balance * balance)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            seen.clear()
            losses.append(loss.item())
            progress.advance(windows.nbytes)
    return losses


def measure(
    model: nn.Module, routers: Sequence[nn.Module], ids: Tensor, *, length: int, begin: int, batch: int = 16
) -> Measured:
    """Loss over a text in windows of `length` that do not overlap; what is left over at the end is not counted."""
    count = len(ids) // (length - 1)
    windows = ids[: count * (length - 1)].view(count, length - 1)
    total = 0.0
    used: list[Tensor] = []
    model.eval()
    with torch.no_grad(), watched(routers) as seen:
        for part in torch.split(windows, batch):
            total += next_token_loss(model, part, begin=begin).item() * part.numel()
            counts = [_counts(probabilities, chosen) for probabilities, _, chosen in seen]
            used = [before + now for before, now in zip(used, counts, strict=True)] if used else counts
            seen.clear()
    shares = tuple(tuple((counts / counts.sum()).tolist()) for counts in used)
    return Measured(windows.numel(), total / windows.numel(), shares)


def next_token_loss(model: nn.Module, windows: Tensor, *, begin: int) -> Tensor:
    """Mean negative log-likelihood of every token of `windows` [batch, tokens], each window begun by `begin`."""
    inputs = functional.pad(windows[:, :-1], (1, 0), value=begin)
    logits = model(input_ids=inputs, use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), windows.flatten())


def balance_loss(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """How far a router's choices are from even: 1 for even use, the number of experts for a single one.

    Experts x the sum over experts of (its share of the choices) x (its mean probability), as in the Switch Transformer
    (Fedus et al., 2021, equation 4); only the probabilities have a gradient.

    Args:
        probabilities: [tokens, experts].
        chosen: expert ids, int64 [tokens, k].
    """
    shares = _counts(probabilities, chosen) / chosen.numel()
    return probabilities.shape[-1] * (shares * probabilities.float().mean(0)).sum()


@contextmanager
def watched(routers: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Collect what the routers answer while the block runs, in the order in which they are called."""
    seen: list[Any] = []
    hooks = [router.register_forward_hook(lambda _module, _inputs, answer: seen.append(answer)) for router in routers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def unigram_perplexity(ids: Tensor, held_out: Tensor, vocabulary: int) -> float:
    """Perplexity of `held_out` by how often each token stands in `ids`, each counted once more: what no model is below
    who has learnt anything of order."""
    counts = torch.bincount(ids, minlength=vocabulary).double() + 1
    return math.exp(-(counts / counts.sum()).log()[held_out].mean().item())


def _counts(probabilities: Tensor, chosen: Tensor) -> Tensor:
    return torch.bincount(chosen.flatten(), minlength=probabilities.shape[-1]).float()


def _groups(model: nn.Module) -> list[dict[str, object]]:
    """Matrices decay; norms and scales do not."""
    parameters = list(model.parameters())
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": 0.1},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def _rate(step: int, setting: Setting) -> float:
    if step < setting.warmup:
        return (step + 1) / setting.warmup
    done = (step - setting.warmup) / max(1, setting.steps - setting.warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))
