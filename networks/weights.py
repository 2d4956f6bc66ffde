# SPDX-License-Identifier: Apache-2.0
"""Bringing pretrained weights into a network, and telling exactly what was brought."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .foreign_names import translate_foreign_names
from .kernel_slices import DimensionsError, KernelSlices, kernel_axes, needs_slicing, slice_kernels
from .weight_files import WeightFile, read_weights
from .weight_names import bare_names
from .weight_report import WeightReport
from .weight_scale import PRETRAINED_SCALES, rescale

logger = logging.getLogger(__name__)

_ENCODER = "encoder.levels."  # what the names of the Genesis networks' encoders begin with
_TASK_PARTS = ("decoder", "head", "hidden", "classes")  # what transfer learning may leave behind
_OUTPUT_PARTS = ("head", "classes")  # what depends on the number of output channels or classes


def adapt_input_channels(kernel: Tensor, in_channels: int) -> Tensor:
    """Make a convolution's kernel fit another number of input channels.

    More channels: the kernel's are repeated in turn and divided by the number of their copies; fewer: those that would
    share a channel are summed. Either way the sum over input channels stays, so the response to an image with the same
    content in every channel is what it was.

    Args:
        kernel: (out_channels, channels, *kernel_size).
        in_channels: wanted number of input channels, positive.

    Returns:
        A kernel of shape (out_channels, in_channels, *kernel_size).

    Example:
        >>> import torch
        >>> adapt_input_channels(torch.full((1, 1, 1), 6.0), 3).flatten().tolist()
        [2.0, 2.0, 2.0]
        >>> adapt_input_channels(torch.tensor([[[1.0], [2.0], [4.0]]]), 2).flatten().tolist()
        [5.0, 2.0]
    """
    channels = kernel.shape[1]
    if in_channels < channels:
        return torch.stack([kernel[:, start::in_channels].sum(dim=1) for start in range(in_channels)], dim=1)
    source = torch.arange(in_channels) % channels
    copies = torch.bincount(source, minlength=channels)[source].to(kernel)
    return kernel[:, source] / copies.reshape(1, -1, *[1] * (kernel.ndim - 2))


def _convolution_kernels(network: nn.Module, names: Mapping[str, str]) -> list[str]:
    """Give the bare names of all ordinary convolutions' kernels, in the order of the network."""
    kernels = []
    for bare, name in names.items():
        owner, _, kind = name.rpartition(".")
        module = network.get_submodule(owner)
        if kind == "weight" and isinstance(module, _ConvNd) and not module.transposed and module.groups == 1:
            kernels.append(bare)
    return kernels


def _only_channels_differ(found: Tensor, wanted: Tensor) -> bool:
    return found.shape[0] == wanted.shape[0] and found.shape[2:] == wanted.shape[2:]


def _input_kernels(kernels: list[str], found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> set[str]:
    """Tell which kernels see the image, where file and network differ in the image's channels.

    The first convolution sees it. Some networks (SwinUNETR, residual blocks) feed the image to others as well: those in
    which the same numbers of channels differ.
    """
    if not kernels or kernels[0] not in found or found[kernels[0]].ndim != wanted[kernels[0]].ndim:
        return set()
    channels = (found[kernels[0]].shape[1], wanted[kernels[0]].shape[1])
    return {
        name
        for name in kernels
        if name in found
        and found[name].ndim == wanted[name].ndim
        and (found[name].shape[1], wanted[name].shape[1]) == channels
        and channels[0] != channels[1]
        and _only_channels_differ(found[name], wanted[name])
    }


def _fit(
    kernels: KernelSlices, wanted: Mapping[str, Tensor], inputs: set[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Give the tensors to load, and the reason for each that is adapted or left out."""
    found = kernels.tensors
    fitting: dict[str, Tensor] = {}
    reasons: dict[str, str] = {}
    spoilt: dict[str, str] = {}  # layers of which a tensor does not fit
    for name, tensor in found.items():
        if name not in wanted:
            reasons[name] = "the network has no tensor of this name"
        elif name in inputs:
            channels = wanted[name].shape[1]
            fitting[name] = adapt_input_channels(tensor, channels)
            changes = [kernels.sliced.get(name, ""), f"input channels {tensor.shape[1]} -> {channels}"]
            reasons[name] = ", ".join(filter(None, changes))
        elif name in kernels.refused:
            reasons[name] = kernels.refused[name]
            spoilt[name.rpartition(".")[0]] = name
        elif tensor.shape != wanted[name].shape:
            reasons[name] = f"shape {tuple(tensor.shape)} != {tuple(wanted[name].shape)}"
            spoilt[name.rpartition(".")[0]] = name
        elif tensor.is_floating_point() != wanted[name].is_floating_point():
            reasons[name] = f"dtype {tensor.dtype} != {wanted[name].dtype}"
            spoilt[name.rpartition(".")[0]] = name
        else:
            fitting[name] = tensor
            if name in kernels.sliced:
                reasons[name] = kernels.sliced[name]
    for name in list(fitting):  # a layer is loaded whole or not at all: half a layer is worse than a fresh one
        if (owner := name.rpartition(".")[0]) in spoilt:
            del fitting[name]
            reasons[name] = f"{spoilt[owner]} of the same layer does not fit"
    return fitting, reasons


def _in_names_of(file: WeightFile, wanted: Mapping[str, Tensor]) -> WeightFile:
    """Translate another project's names where those fit the network better."""
    names, layout = translate_foreign_names(file.tensors, wanted)
    if not layout:
        return file
    tensors = {names[name]: tensor for name, tensor in file.tensors.items()}
    return dataclasses.replace(file, tensors=tensors, layout=f"{file.layout}, {layout}")


def _unexpected(skipped: tuple[str, ...], missing: tuple[str, ...], wanted: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Give the names that transfer learning from one Genesis network to another does not explain."""
    if not any(name.startswith(_ENCODER) for name in wanted):
        return skipped + missing
    parts = {name.split(".")[0] for name in wanted}
    explained = {part for part in _TASK_PARTS if part not in parts} | set(_OUTPUT_PARTS)
    odd = tuple(name for name in skipped if name.split(".")[0] not in explained)
    return odd + tuple(name for name in missing if name.startswith(_ENCODER))


def _check(file: WeightFile, fitting: Mapping[str, Tensor], report: WeightReport, wanted: Mapping[str, Tensor]) -> None:
    """Refuse weights that would leave the network as good as untrained, or break it."""
    prefix = _ENCODER if any(name.startswith(_ENCODER) for name in wanted) else ""
    if not any(name.startswith(prefix) and tensor.ndim > 1 for name, tensor in fitting.items()):
        what = "encoder kernel" if prefix else "kernel"
        examples = "; ".join(f"{name}: {report.reasons[name]}" for name in report.skipped[:3])
        want = next((name for name in wanted if name.startswith(prefix)), "-")
        shape = tuple(wanted[want].shape) if want in wanted else "-"
        hint = "; kernel_slice_axis takes the centre slice of 3D kernels" if needs_slicing(file.tensors, wanted) else ""
        found_axes, wanted_axes = kernel_axes(file.tensors), kernel_axes(wanted)
        raise (DimensionsError if {*found_axes, *wanted_axes} == {2, 3} else ValueError)(
            f"no {what} of {file.path} ({file.layout}) fits {report.network}: expected names such as {want} with shape "
            f"{shape}, found {len(file.tensors)} tensors such as {next(iter(file.tensors))} ({examples}){hint}"
        )


def load_pretrained(
    network: nn.Module,
    path: str | os.PathLike[str],
    map_location: str | torch.device = "cpu",
    strict: bool = False,
    scale: str = "kept",
    need_checksums: bool = False,
    kernel_slice_axis: int | None = None,
) -> WeightReport:
    """Load weights from a file into a network, and report what became of every tensor.

    The file may be a plain state dict (``model.pt``), a checkpoint with one under ``model``, ``state_dict`` or
    ``network``, a file of safetensors, or the original's ``Genesis_Chest_CT.pt``, whose names are translated (its
    weights are licensed for non-commercial use only). Prefixes of DistributedDataParallel, DataParallel and
    ``torch.compile`` do not matter, in the file or in the network, nor does ``network.``, ``model.`` or ``net.`` before
    every name of the file. Names of SuPreM, the Universal Model, VoCo and MONAI's pretrained Swin transformers are
    translated (:mod:`.foreign_names`), so are torchvision's ResNets for the encoder of MONAI's ``FlexibleUNet``; those
    of MedicalNet and nnssl are MONAI's and nnU-Net's own, torchvision's those of MONAI's ``ResNet``. The network may be
    a :class:`GenesisUNet`, a :class:`GenesisClassifier` (which takes the encoder), or any other whose names are those
    of the file.

    Tensors are loaded where name and shape agree. A first convolution for another number of image channels is adapted
    (:func:`adapt_input_channels`). A layer of which one tensor does not fit is left fresh as a whole, such as the head
    for other classes. Buffers of batch norm (``running_mean``, ``running_var``, ``num_batches_tracked``) are
    transferred like weights; in the original's file the last is 0 throughout, which torch only reads where the momentum
    is None. The original evaluates with the batch's own statistics: ``batch_statistics=True`` does the same.

    With ``scale="initial"`` each convolution right before a batch or instance norm is given the norm of the network's
    own weight, which must be fresh, without a change of the network's output but for the norm's eps
    (:func:`.weight_scale.rescale`). Such pairs are found by following an image through the network, which may be any;
    other convolutions stay as the file has them, and the report names them.

    With ``kernel_slice_axis`` weights of a 3D network start a 2D one: of each kernel its centre slice along that axis
    (:func:`.kernel_slices.centre_slice`), which the report names as adapted. A kernel of an even side has no centre;
    its layer is left fresh and reported, such as the upsampling of :class:`GenesisUNet` (2 x 2 x 2) between the levels
    of its decoder. Running statistics of norms stay those of the 3D network until training makes them the slices' own.

    The report is logged: one line, adapted names and expected gaps at level INFO, unexpected gaps as WARNING, matched
    names at DEBUG. On any error the network is as it was before.

    Args:
        network: takes the weights, on any device, wrapped or not.
        path: the file.
        map_location: where the file's tensors are put before they are copied.
        strict: raise unless every tensor of file and network matches, as for evaluation.
        scale: ``"kept"`` or ``"initial"``.
        need_checksums: refuse files without checksums, in which damage cannot be seen: the format of torch before 1.6,
            and safetensors that others wrote.
        kernel_slice_axis: axis of 3D kernels along which a 2D network takes the centre slice, the one that its images
            stand across: of scans in RAS 0 for sagittal, 1 for coronal, 2 for axial slices. None: no kernel is sliced.

    Returns:
        The report.

    Raises:
        FileNotFoundError: no such file.
        DimensionsError: a ValueError; the file's network has two dimensions and this one three, or the other way round.
        ValueError: the file is damaged, or cannot be read as weights; no kernel of it (no encoder kernel for a Genesis
            network) fits; values are not finite; another ``scale``; with ``kernel_slice_axis``, no kernel has three
            axes where the network's has two; or, with ``strict``, anything is left over.

    Example:
        >>> import tempfile, pathlib
        >>> from models_genesis.networks import GenesisClassifier, GenesisUNet, load_pretrained, save_weights
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.pt"
        >>> save_weights(GenesisUNet(features=(4, 8)).state_dict(), path)
        >>> report = load_pretrained(GenesisClassifier(features=(4, 8), hidden_channels=16), path)
        >>> len(report.matched), len(report.skipped), report.missing
        (28, 18, ('hidden.weight', 'hidden.bias', 'classes.weight', 'classes.bias'))
    """
    if scale not in PRETRAINED_SCALES:
        raise ValueError(f"scale: expected one of {PRETRAINED_SCALES}, found {scale!r}")
    state = network.state_dict()
    names = dict(zip(bare_names(state), state, strict=True))
    wanted = {bare: state[name] for bare, name in names.items() if isinstance(state[name], Tensor)}
    file = read_weights(path, map_location, need_checksums, own_names=wanted)
    file = _in_names_of(file, wanted)
    kernels = KernelSlices(dict(file.tensors))
    if kernel_slice_axis is not None:
        kernels = slice_kernels(file.tensors, wanted, kernel_slice_axis)
    inputs = _input_kernels(_convolution_kernels(network, names), kernels.tensors, wanted)
    fitting, reasons = _fit(kernels, wanted, inputs)
    skipped = tuple(name for name in file.tensors if name not in fitting)
    missing = tuple(name for name in wanted if name not in file.tensors)
    report = WeightReport(
        path=str(file.path),
        layout=file.layout,
        network=type(network).__name__,
        matched=tuple(name for name in fitting if name not in reasons),
        adapted=tuple(name for name in fitting if name in reasons),
        skipped=skipped,
        missing=missing,
        unexpected=_unexpected(skipped, missing, wanted),
        reasons=reasons,
    )
    _check(file, fitting, report, wanted)
    if strict and (report.adapted or skipped or missing):
        raise ValueError(f"every tensor has to match, found:\n{report}")
    if scale == "initial":
        rescaling = rescale(network, fitting, wanted)
        fitting = rescaling.tensors
        report = dataclasses.replace(
            report, rescaled=rescaling.factors, not_rescaled=rescaling.kept, eps_change=rescaling.eps_change
        )
    network.load_state_dict({names[name]: tensor for name, tensor in fitting.items()}, strict=False)
    _log(report)
    return report


def _log(report: WeightReport) -> None:
    """Log the summary, then the names at the level that they deserve."""
    logger.info(report.summary)
    if report.rescaling:
        logger.info(report.rescaling)
        for name, reason in report.not_rescaled.items():
            logger.info("not rescaled: %s, %s", name, reason)
    logger.debug("matched: %s", ", ".join(report.matched))
    for kind in ("adapted", "skipped", "missing"):
        for level, unexpected in ((logging.INFO, False), (logging.WARNING, True)):
            names = [name for name in getattr(report, kind) if (name in report.unexpected) == unexpected]
            if names:
                details = [f"{name} ({report.reasons[name]})" if name in report.reasons else name for name in names]
                logger.log(level, "%s of %s: %s", kind, report.path, ", ".join(details))
