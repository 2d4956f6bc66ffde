# SPDX-License-Identifier: Apache-2.0
"""Finding the convolutions of any network whose output goes into a batch or instance norm and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .batch_statistics_norm import BatchStatisticsNorm

__all__ = ["find_norm_pairs", "unwrapped"]

# exact classes: a subclass may do something else with its weight, such as standardise it
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    BatchStatisticsNorm,
)
_SIDES = (128, 96, 64, 32, 256)  # of the image that is sent through the network; some networks want multiples of 32


def unwrapped(network: nn.Module) -> nn.Module:
    """Give the network inside DistributedDataParallel, DataParallel and ``torch.compile``.

    Args:
        network: wrapped or not.

    Returns:
        The network itself.
    """
    while True:
        if isinstance(network, nn.parallel.DistributedDataParallel | nn.DataParallel):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network._orig_mod  # type: ignore[assignment]
        else:
            return network


class _Watch(TorchFunctionMode):
    """Notes, while a network runs, where the outputs of its convolutions go."""

    def __init__(self, convolutions: dict[str, nn.Module], norms: dict[str, nn.Module]) -> None:
        super().__init__()
        self.convolutions, self.norms = convolutions, norms
        self.calls: Counter[str] = Counter()  # by name of convolution or norm
        self.uses: Counter[str] = Counter()  # of a convolution's output, by anything but a norm
        self.norms_of: dict[str, list[str]] = {name: [] for name in convolutions}
        self._made_by: dict[int, str] = {}
        self._alive: list[Tensor] = []  # an id names one tensor only as long as that lives
        self._normalised: list[int] = []  # what the norms that are running were given

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # what gives no tensor, such as a shape, knows nothing of the values: those do not exist here
        if result is None or any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self.use((args, kwargs))
        return result

    def use(self, values: Any) -> None:
        """Count the convolutions' outputs among ``values`` as used, but for what a running norm was given."""
        for leaf in tree_leaves(values):
            if id(leaf) in self._made_by and id(leaf) not in self._normalised:
                self.uses[self._made_by[id(leaf)]] += 1

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Let the network's modules report."""
        with ExitStack() as stack:
            for name, module in self.convolutions.items():
                stack.callback(module.register_forward_hook(self._after_convolution(name)).remove)
            for name, module in self.norms.items():
                stack.callback(module.register_forward_pre_hook(self._before_norm(name)).remove)
                stack.callback(module.register_forward_hook(lambda *_: self._normalised.pop() and None).remove)
            stack.enter_context(self)
            yield

    def _after_convolution(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            self.calls[name] += 1
            self._made_by[id(output)] = name
            self._alive.append(output)

        return note

    def _before_norm(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any) -> None:
            self.calls[name] += 1
            self._normalised.append(id(args[0]) if args else 0)
            if args and id(args[0]) in self._made_by:
                self.norms_of[self._made_by[id(args[0])]].append(name)

        return note


@contextmanager
def _without_values(network: nn.Module) -> Iterator[None]:
    """Put tensors without values in place of all parameters and buffers, and the real ones back afterwards."""
    # torch.func.functional_call does not bring back a layer that is registered under two names, as in DynUNet
    places: list[Any] = [place for module in network.modules() for place in (module._parameters, module._buffers)]
    real = [(place, dict(place)) for place in places]
    try:
        for place, tensors in real:
            place.update((name, torch.empty_like(t, device="meta")) for name, t in tensors.items() if t is not None)
        yield
    finally:
        for place, tensors in real:
            place.clear()
            place.update(tensors)


def _watch(network: nn.Module, watch: _Watch, side: int, training: bool) -> None:
    """Send an image without values through the network, which stays as it is."""
    first = next(module for module in network.modules() if isinstance(module, _ConvNd))
    shape = (2, first.in_channels, *[side] * len(first.kernel_size))
    image = torch.empty(shape, dtype=first.weight.dtype, device="meta")
    modes = {module: module.training for module in network.modules()}
    try:
        network.train(training)
        for norm in watch.norms.values():  # to the graph they are one operation; some refuse to train without a GPU
            norm.eval()
        with torch.no_grad(), torch.random.fork_rng(), _without_values(network), watch.hooked():
            output = network(image)
        watch.use(output)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _own_weight(name: str, module: nn.Module, owners: Counter[int]) -> str | None:
    """Say why a convolution's weight must not be changed, None where it may."""
    if not isinstance(module._parameters.get("weight"), Tensor):
        return "its weight is computed from other parameters"
    if module._forward_pre_hooks or module._forward_hooks:
        return "it has hooks, which may change its weight or output"
    if any(owners[id(parameter)] > 1 for parameter in module._parameters.values() if parameter is not None):
        return "it shares its parameters with another layer"
    return None


def find_norm_pairs(network: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """Find each convolution whose output is the input of one batch or instance norm, and of nothing else.

    It is observed, not guessed from names: an image without values (on torch's meta device, so at no cost of memory) is
    sent through the network in training and in evaluation mode, and everything that uses a convolution's output is
    noted. Neither weights, buffers, modes nor random numbers change.

    Args:
        network: any network that takes one image, wrapped or not.

    Returns:
        Names of convolutions and of their norms; and for every other convolution the reason. Where the network
        cannot be followed there are no pairs, only reasons.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
        >>> find_norm_pairs(layers)
        ({'0': '1'}, {'3': 'its output does not go into a batch or instance norm'})
    """
    network = unwrapped(network)
    everything = {name: module for name, module in network.named_modules() if isinstance(module, _ConvNd)}
    convolutions: dict[str, nn.Module] = {
        name: module for name, module in everything.items() if type(module) in _CONVOLUTIONS
    }
    norms = {name: module for name, module in network.named_modules() if type(module) in _NORMS}
    reasons = {name: f"{type(module).__name__} is not a plain convolution" for name, module in everything.items()}
    if not convolutions or not norms:
        return {}, reasons | {name: "the network has no batch or instance norm" for name in convolutions}
    # modules() gives each once, whereas some networks, such as DynUNet, have one layer under two names
    owners = Counter(id(parameter) for module in network.modules() for parameter in module._parameters.values())
    own = {name: _own_weight(name, module, owners) for name, module in convolutions.items()}
    watches = _watch_both_modes(network, convolutions, norms)
    if isinstance(watches, str):
        return {}, reasons | dict.fromkeys(convolutions, watches)
    pairs: dict[str, str] = {}
    for name in convolutions:
        seen = {_destination(watch, name) for watch in watches}
        norm, reason = seen.pop() if len(seen) == 1 else (None, "its output goes elsewhere in training")
        if norm is not None and own[name] is None:
            pairs[name] = norm
            del reasons[name]
        else:
            reasons[name] = own[name] or reason
    return pairs, reasons


def _watch_both_modes(
    network: nn.Module, convolutions: dict[str, nn.Module], norms: dict[str, nn.Module]
) -> list[_Watch] | str:
    """Watch the network in both modes with the first image size that it takes, or say why it cannot be watched."""
    if any(hasattr(module, "_orig_mod") or isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        return "parts of the network are compiled and cannot be followed"
    cause = ""
    for side in _SIDES:
        watches = [_Watch(convolutions, norms) for _ in range(2)]
        try:
            for watch, training in zip(watches, (False, True), strict=True):
                _watch(network, watch, side, training)
        except Exception as error:  # any network may raise anything; it is as it was then
            cause = cause or f"{type(error).__name__}: {error}".splitlines()[0][:120]
        else:
            return watches
    return f"the network cannot be followed ({cause})"


def _destination(watch: _Watch, name: str) -> tuple[str | None, str]:
    """The one norm that a convolution's output goes into, or why there is none."""
    norms = watch.norms_of[name]
    if watch.calls[name] != 1:
        return None, f"it runs {watch.calls[name]} times in a forward pass"
    if not norms:
        return None, "its output does not go into a batch or instance norm"
    if watch.uses[name] or len(norms) > 1:
        return None, "its output is used by more than a norm"
    if watch.calls[norms[0]] != 1:
        return None, f"its norm {norms[0]} runs {watch.calls[norms[0]]} times in a forward pass"
    return norms[0], ""
