"""Figures of a stored weight beside its base: what one pass over rows can have, and a few that need the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from weighbridge.auditing.moves import FURTHEST, PARTS, entropy

Tensor = torch.Tensor
E2M1 = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Stored:
    """A weight as a checkpoint holds it.

    Attributes:
        places: of each weight, the place on the grid: an index into `grid`, int64 [rows, columns].
        grid: what codes stand for before zero points and scales, ascending.
        scale: what places are multiplied by, of each weight.
        zero: zero points, of each weight.
        group: columns that share a scale.
    """

    places: Tensor
    grid: Tensor
    scale: Tensor
    zero: Tensor
    group: int

    @property
    def weight(self) -> Tensor:
        """What it stands for, float32 [rows, columns]."""
        value: Tensor = self.scale * (self.grid[self.places] - self.zero)
        return value

    def nearest(self, weight: Tensor) -> Tensor:
        """Places of a weight that is rounded to nearest under the same scales."""
        quotients: Tensor = weight / self.scale + self.zero
        return nearest(self.grid, quotients)

    def beside(self, quotients: Tensor, near: Tensor) -> Tensor:
        """Places on the other side of quotients from where they are nearest to; at an end that next to it."""
        last = len(self.grid) - 1
        below = (quotients < self.grid[near]) & (near > 0) | (near == last)
        return torch.where(below, near - 1, near + 1)


def grid_of(args: Any) -> Tensor:
    """The numbers that codes stand for."""
    if args.type == "int":
        half = 1 << (args.num_bits - 1)
        return torch.arange(-half, half, dtype=torch.float32)
    if args.num_bits == 4:
        return torch.tensor(E2M1)
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    places: Tensor = torch.unique(values[values.isfinite()])
    return places


def nearest(grid: Tensor, quotients: Tensor) -> Tensor:
    """Index of the nearest place on a grid."""
    found: Tensor = torch.bucketize(quotients, (grid[1:] + grid[:-1]) / 2)
    return found


def store(weight: Tensor, quantized: Tensor, args: Any, qparams: Mapping[str, Any]) -> Stored:
    """What a checkpoint holds of a weight that was quantized with these parameters."""
    scale = qparams["scale"].float()
    if qparams.get("global_scale") is not None:
        scale = scale / qparams["global_scale"].float()
    zero = qparams["zero_point"].float() if not args.symmetric else torch.zeros_like(scale)
    rows, columns = weight.shape
    width = columns // scale.shape[-1]
    scale, zero = (each.reshape(rows, -1).repeat_interleave(width, 1) for each in (scale, zero))
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    grid = grid_of(args)
    return Stored(nearest(grid, quantized.float() / scale + zero), grid, scale, zero, width)


@dataclass(frozen=True)
class Figures:
    """Figures of a module: of each row, and of all of it."""

    rows: Mapping[str, Tensor]
    module: Mapping[str, float]


def figures_of(weight: Tensor, stored: Stored) -> Figures:
    """Measure a stored weight against its base.

    ``noise`` is the squared error over what uniform rounding errors would add up to, the sum of a twelfth of the
    squared steps, and ``living noise`` that without columns that are zero throughout; ``inflation`` the squared error
    over that of rounding to nearest; ``pull`` by how much the projection onto the base differs from rounding's own;
    ``steps`` the root mean square error in widest steps, what the audit bounds today.
    """
    quotients = weight / stored.scale + stored.zero
    near = nearest(stored.grid, quotients)
    # Weights and scales of BF16 often lie halfway between two places, and either is the nearest then.
    halfway = (quotients - stored.grid[stored.places]).abs() <= (quotients - stored.grid[near]).abs() * (1 + 2.0**-20)
    near = torch.where(halfway, stored.places, near)
    rounded = replaced(stored, near).weight
    error, plain = weight - stored.weight, weight - rounded
    gaps = (stored.grid[1:] - stored.grid[:-1])[near.clamp(max=len(stored.grid) - 2)] * stored.scale
    moves = stored.places - near
    away = moves.abs()
    squared, expected = error.square(), gaps.square() / 12
    energy, rounding = weight.square(), plain.square()
    value = stored.weight
    dead = (value == 0).all(0) & (weight != 0).any(0)
    columns = weight.shape[1]
    by_row = {name: each.sum(1) for name, each in _sums(squared, expected, energy, rounding).items()}
    dot = (weight * value).sum(1)
    pulled = (weight * (value - rounded)).sum(1)
    tiny = torch.finfo(torch.float32).tiny
    directed = moves.sign().float()
    widest = gaps.max(1).values
    signs = (weight != 0) & (value != 0)
    noise = by_row["squared"] / by_row["expected"].clamp(min=tiny)
    living = squared[:, ~dead].sum(1)
    rows = {
        "noise": noise,
        "living noise": living / by_row["expected"].clamp(min=tiny),
        "inflation": by_row["squared"] / by_row["rounding"].clamp(min=tiny),
        "steps": (by_row["squared"] / columns).sqrt() / widest.clamp(min=tiny),
        "relative": (by_row["squared"] / by_row["energy"].clamp(min=tiny)).sqrt(),
        "correlation": dot / (weight.norm(dim=1) * value.norm(dim=1)).clamp(min=tiny),
        "projection": dot / by_row["energy"].clamp(min=tiny),
        "pull": pulled / by_row["energy"].clamp(min=tiny),
        "moved": (away > 0).float().mean(1),
        "moved 2": (away > 1).float().mean(1),
        "moved 3": (away > 2).float().mean(1),
        "largest move": away.max(1).values.float(),
        "bias": directed.sum(1) / directed.abs().sum(1).sqrt().clamp(min=1),
        "signs": ((weight.sign() == value.sign()) & signs).float().sum(1) / signs.float().sum(1).clamp(min=1),
    }
    by_column = {name: each.sum(0) for name, each in _sums(squared, expected, energy, rounding).items()}
    column_noise = by_column["squared"] / by_column["expected"].clamp(min=tiny)
    alive = column_noise[~dead]
    along = (weight * value).sum(0) / by_column["energy"].clamp(min=tiny)
    along[by_column["energy"] == 0] = 1
    grouped = squared.reshape(len(weight), -1, stored.group).sum(2) / expected.reshape(
        len(weight), -1, stored.group
    ).sum(2).clamp(min=tiny)
    total = {name: float(each.sum(dtype=torch.float64)) for name, each in by_row.items()}
    whole = total["squared"] / max(total["expected"], 1e-300)
    # What rounding's own noise does not explain: the largest step of the module would hide it.
    balanced = error / (by_row["expected"] / columns).sqrt().clamp(min=tiny)[:, None]
    spectrum = _spectral(balanced)
    by_group = expected.reshape(len(weight), -1, stored.group).sum((0, 2))
    module = {
        "noise": whole,
        "living noise": float(living.sum(dtype=torch.float64)) / max(total["expected"], 1e-300),
        "dead energy": float(energy[:, dead].sum()) / max(total["energy"], 1e-300),
        "inflation": total["squared"] / max(total["rounding"], 1e-300),
        "relative": (total["squared"] / max(total["energy"], 1e-300)) ** 0.5,
        "correlation": float(dot.sum(dtype=torch.float64))
        / max((total["energy"] * float(value.square().sum(dtype=torch.float64))) ** 0.5, 1e-300),
        "projection": float(dot.sum(dtype=torch.float64)) / max(total["energy"], 1e-300),
        "pull": float(pulled.sum(dtype=torch.float64)) / max(total["energy"], 1e-300),
        "moved": float((away > 0).float().mean()),
        "moved 2": float((away > 1).float().mean()),
        "moved 3": float((away > 2).float().mean()),
        **_unexplained(stored, quotients, near),
        "largest move": float(away.max()),
        "bias": float(directed.sum()) / max(float(directed.abs().sum()) ** 0.5, 1.0),
        "signs": float(((weight.sign() == value.sign()) & signs).sum()) / max(float(signs.sum()), 1.0),
        **{
            f"rows over {limit}": float((rows["living noise"] > limit).float().mean()) for limit in (8, 16, 32, 64, 128)
        },
        "row over module": float(noise.max()) / max(whole, 1e-300),
        "column noise": float(alive.max()) if len(alive) else float("nan"),
        "least column projection": float(along[~dead].min()) if len(alive) else float("nan"),
        "largest column projection": float(along[~dead].max()) if len(alive) else float("nan"),
        "column moved": float((away > 0).float().mean(0).max()),
        "group noise": float(grouped.max()),
        "settled": float((away == 0).all(0).sum()),
        "settled and alive": float(((away == 0).all(0) & (near != nearest(stored.grid, stored.zero)).any(0)).sum()),
        "dead": float(dead.sum()),
        "spectral share": float(spectrum[0]) / float(balanced.square().sum()),
        "share of eight": float(spectrum.sum()) / float(balanced.square().sum()),
        "spectral noise": float(spectrum[0]) / (len(weight) ** 0.5 + columns**0.5) ** 2,
        "sketched share": float(_sketched(balanced, 16)[0]),
        "sketched share of eight": float(_sketched(balanced, 32)[:8].sum()),
        "widest group": float(by_group.max() / by_group.mean()),
        "volume": _volume(balanced),
    }
    return Figures(rows, module)


def _unexplained(stored: Stored, quotients: Tensor, near: Tensor) -> dict[str, float]:
    """What the moves of codes may hold, and those where a weight lies on its place, as the audit counts them."""
    moves = stored.places - near
    aside = quotients.clamp(stored.grid[0], stored.grid[-1]) - stored.grid[near]
    step = (stored.grid[stored.beside(quotients, near)] - stored.grid[near]).abs()
    part = (aside.abs() / step.clamp(min=torch.finfo(torch.float32).tiny) * 2 * PARTS).long().clamp(max=PARTS - 1)
    towards = torch.where(aside < 0, -moves, moves).clamp(-FURTHEST, FURTHEST) + FURTHEST
    width = 2 * FURTHEST + 1
    counts = torch.bincount((part * width + towards).flatten(), minlength=PARTS * width)
    at_rest = counts[:width].double()
    up, down = float(at_rest[FURTHEST + 1 :].sum()), float(at_rest[:FURTHEST].sum())
    return {
        "unexplained": entropy(tuple(counts.tolist()), max(1, len(stored.grid) - 1).bit_length()),
        "moved at rest": (up + down) / max(float(at_rest.sum()), 1.0),
        "lean at rest": (up - down) / max(up + down, 1.0),
    }


def replaced(stored: Stored, places: Tensor) -> Stored:
    """The same scales with other codes."""
    return Stored(places, stored.grid, stored.scale, stored.zero, stored.group)


def _sums(squared: Tensor, expected: Tensor, energy: Tensor, rounding: Tensor) -> dict[str, Tensor]:
    return {"squared": squared, "expected": expected, "energy": energy, "rounding": rounding}


def _spectral(matrix: Tensor, rounds: int = 4) -> Tensor:
    """The squares of the eight largest singular values, descending, by a few power iterations."""
    vectors = torch.randn(matrix.shape[1], 8, generator=torch.Generator().manual_seed(0))
    for _ in range(rounds):
        vectors, _ = torch.linalg.qr(matrix.T @ (matrix @ vectors))
    found: Tensor = torch.linalg.svdvals(matrix @ vectors).square()
    return found


def _sketched(matrix: Tensor, vectors: int) -> Tensor:
    """Shares of the energy of a sketch in each of its directions, descending: what one pass over the rows can add up.

    The sketch is the sum of the rows times random signs, drawn `vectors` times.
    """
    signs = torch.randint(0, 2, (vectors, len(matrix)), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    squares: Tensor = torch.linalg.svdvals(signs @ matrix).square()
    return squares / squares.sum()


def _volume(balanced: Tensor) -> float:
    """The geometric mean of conditional variances of columns; NaN where there are too few rows.

    Compensation multiplies rounding errors by a triangular matrix with ones on its diagonal, which leaves the
    determinant of their covariance as it was: one, in units of a twelfth of a squared step, whatever the Hessian.
    """
    rows, columns = balanced.shape
    if rows < 2 * columns:
        return float("nan")
    values = balanced.double()
    sign, logarithm = torch.linalg.slogdet(values.T @ values)
    degrees = rows - torch.arange(columns, dtype=torch.float64)
    expected = (torch.digamma(degrees / 2) + torch.log(torch.tensor(2.0, dtype=torch.float64))).sum()
    return float(((logarithm - expected) / columns).exp()) if sign > 0 else 0.0


def factors_of(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """By what smoothing multiplied columns and rows, each up to one factor of all: medians of what elements say."""
    said = (before != 0) & (after != 0)
    ratios = torch.where(said, (after / before).abs().log(), torch.nan)
    rows = ratios.nanmedian(1).values.nan_to_num()
    columns = (ratios - rows[:, None]).nanmedian(0).values.nan_to_num()
    return columns.exp(), rows.exp()


def smoothing_figures(weight: Tensor, stored: Stored, columns: Tensor, rows: Tensor, own: Stored) -> Figures:
    """Measure a smoothed weight, brought back to the base's coordinates, against its base.

    Args:
        stored: what is stored of the weight with its columns and rows multiplied by `columns` and `rows`.
        own: the base's own weight, rounded to nearest under the scales that its largest values give.
    """
    tiny = torch.finfo(torch.float32).tiny
    back = stored.weight / columns[None, :] / rows[:, None]
    squared, rounding = (weight - back).square().sum(1), (weight - own.weight).square().sum(1)
    gaps = (own.grid[1:] - own.grid[:-1])[own.places.clamp(max=len(own.grid) - 2)] * own.scale
    expected, energy = gaps.square().sum(1) / 12, weight.square().sum(1)
    grouped = columns.reshape(-1, stored.group)
    logarithms = columns.log()
    return Figures(
        {
            "coarseness": squared / rounding.clamp(min=tiny),
            "noise": squared / expected.clamp(min=tiny),
            "relative": (squared / energy.clamp(min=tiny)).sqrt(),
            "projection": (weight * back).sum(1) / energy.clamp(min=tiny),
        },
        {
            "projection": float((weight * back).sum() / energy.sum().clamp(min=tiny)),
            "coarseness": float(squared.sum() / rounding.sum().clamp(min=tiny)),
            "noise": float(squared.sum() / expected.sum().clamp(min=tiny)),
            "relative": float((squared.sum() / energy.sum().clamp(min=tiny)).sqrt()),
            "spread": float(columns.max() / columns.min()),
            "spread in a group": float((grouped.max(1).values / grouped.min(1).values).max()),
            "largest factor": float((logarithms.max() - logarithms.mean()).exp()),
            "smallest factor": float((logarithms.min() - logarithms.mean()).exp()),
            "deviation": float(logarithms.std().exp()),
        },
    )
