# SPDX-License-Identifier: Apache-2.0
"""Which number format and memory layout a network trains in, decided in one place from the hardware."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["AutocastInferer", "Precision", "choose_precision"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """How a network computes: the result of :func:`choose_precision`.

    Args:
        autocast_dtype: reduced floating-point type of convolutions and matrix products, None for float32 throughout.
        channels_last: whether images and kernels lie in memory with the channels innermost: 3D ones, and 2D ones too
            unless ``volumes_only``.
        loss_scaling: whether gradients need scaling (float16 only; this is the ``amp`` argument of MONAI's trainers).
        volumes_only: whether 2D images and kernels keep torch's default layout.
    """

    autocast_dtype: torch.dtype | None = None
    channels_last: bool = False
    loss_scaling: bool = False
    volumes_only: bool = False

    def place(self, network: nn.Module, device: torch.device | str) -> nn.Module:
        """Move a network to its device and memory layout.

        Args:
            network: any network; its parameters stay float32.
            device: where it will run.

        Returns:
            The same network.
        """
        network = network.to(device)
        if self.channels_last:
            for parameter in network.parameters():
                parameter.data = self.arrange(parameter.data)
        return network

    def arrange(self, tensor: Tensor) -> Tensor:
        """Give a batch (B, C, H, W) or (B, C, X, Y, Z) the memory layout of the network; others stay as they are."""
        layouts = {5: torch.channels_last_3d}
        if not self.volumes_only:
            layouts[4] = torch.channels_last
        if not self.channels_last or tensor.ndim not in layouts:
            return tensor
        return tensor.contiguous(memory_format=layouts[tensor.ndim])


def choose_precision(device: torch.device | str, amp: bool = True) -> Precision:
    """Choose the fastest precision that the device computes natively.

    bfloat16 where the processor or GPU has it, float16 with loss scaling on older GPUs, float32 on other processors,
    with the channels innermost in memory. That alone makes float32 faster in 3D, in training and inference, most for
    narrow networks, and gives the same numbers up to rounding; in 2D it makes training slower, so that float32 on a
    processor keeps torch's default layout there (docs/performance.md). The choice is logged.

    Args:
        device: where the network will run.
        amp: False asks for float32 throughout in torch's default memory layout, as the original was trained.

    Returns:
        The precision, to be handed to :class:`AutocastInferer` and to the trainer.

    Example:
        >>> choose_precision("cpu", amp=False)
        Precision(autocast_dtype=None, channels_last=False, loss_scaling=False, volumes_only=False)
    """
    kind = torch.device(device).type
    if not amp:
        precision = Precision()
    elif kind == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = Precision(torch.bfloat16 if bf16 else torch.float16, channels_last=True, loss_scaling=not bf16)
    elif kind == "cpu" and _cpu_has_bfloat16():
        precision = Precision(torch.bfloat16, channels_last=True)
    elif kind == "cpu":
        precision = Precision(channels_last=True, volumes_only=True)
    else:
        precision = Precision()
    logger.info("%s trains in %s", kind, precision)
    return precision


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"))


class _ShallowConvolutionsInFloat32(TorchFunctionMode):
    """Compute a 3D convolution in float32 where the image has fewer planes than the kernel.

    oneDNN computes the gradient of such a kernel wrongly in bfloat16, as anything from a wrong number to NaN (seen with
    torch 2.13 and 2.14: two planes and a kernel of three, as at the bottom of five levels of a cube of 32).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv3d:
            return func(*args, **kwargs)
        given = dict(zip(("input", "weight"), args, strict=False)) | kwargs
        if given["input"].shape[-3] >= given["weight"].shape[-3]:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_to_float32, args), **{name: _to_float32(value) for name, value in kwargs.items()})


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


class AutocastInferer(SimpleInferer):
    """Run a network, or another inferer around it, in the given precision and return float32.

    MONAI's engines autocast on CUDA alone; through the inferer the same configuration is right on every device, for
    training, validation and inference.

    Args:
        precision: from :func:`choose_precision`.
        inferer: the inferer to run inside, e.g. a ``SlidingWindowInferer``; None calls the network on the whole batch.
    """

    def __init__(self, precision: Precision, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.precision = precision
        self.inferer = inferer

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output for a batch.

        Args:
            inputs: batch (B, C, ...), on the network's device.
            network: the network.
            args: further arguments of the network.
            kwargs: further keyword arguments of the network.

        Returns:
            The logits as float32, or for networks with several outputs a list or tuple of them.

        Raises:
            ValueError: outside of training, when the output holds NaN or infinity.
        """
        run = super().__call__ if self.inferer is None else self.inferer
        dtype, device = self.precision.autocast_dtype, inputs.device.type
        trains_in_bfloat16 = device == "cpu" and dtype is not None and torch.is_grad_enabled()
        shallow = _ShallowConvolutionsInFloat32() if trains_in_bfloat16 else nullcontext()
        with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None), shallow:
            outputs = run(self.precision.arrange(inputs), network, *args, **kwargs)
        several = isinstance(outputs, (list, tuple))
        for output in outputs if several else [outputs]:
            if not torch.is_grad_enabled():
                _check_finite(output)
        return type(outputs)(output.float() for output in outputs) if several else outputs.float()


def _check_finite(output: Tensor) -> None:
    """Refuse an output whose NaN or infinity the largest-of-all rule would turn into background."""
    low, high = torch.aminmax(output)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError(
            "the network's output holds NaN or infinity: expected finite numbers, which sound weights and an image "
            "without NaN give; where the device computes in half precision, try --amp False"
        )
