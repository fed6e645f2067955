"""The devices that a build runs on."""

from __future__ import annotations

from pathlib import Path

from weighbridge.errors import Argument, WeighbridgeError


def resolve_devices(devices: tuple[str, ...]) -> tuple[str, ...]:
    """The devices to use: those named, or every accelerator, or the CPU. torch is imported only to look at a GPU.

    Raises:
        WeighbridgeError: a device that this machine does not have.
    """
    for device in devices:
        if device != "cpu":
            _check_device(device)
    if devices:
        return devices
    return _accelerators() or ("cpu",)


def _accelerators() -> tuple[str, ...]:
    if not Path("/dev/nvidia0").exists():
        return ()
    import torch

    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
        usable = kind not in ("meta", "cpu") and torch.zeros(1, device=device).item() == 0.0
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        usable = False
    if not usable:
        raise WeighbridgeError(
            f"this machine has no device {device!r}",
            where=Argument("device"),
            remedy=f"name {' or '.join(('cpu', *_accelerators()))}",
        )
