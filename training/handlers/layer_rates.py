# SPDX-License-Identifier: Apache-2.0
"""Parts of a network that learn more slowly, or not at all, in the first epochs of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import nn
from torch.optim import Optimizer

__all__ = ["LayerRates", "layer_groups"]

SLOW = "slow"
"""Name of the parameter group of the parts that :class:`LayerRates` holds back."""


def layer_groups(
    network: nn.Module, slow_parts: Sequence[str] = (), head_learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """Split a network's parameters into those held back in the first epochs, those of its new head, and all others.

    Adam moves a weight by about its learning rate a step, however large the gradient. A head that turns eight features
    into logits starts at random and has to reach values of some units, which at 0.003 takes hundreds of steps; a class
    whose weights start unluckily is not predicted until then. So a head bears a larger rate than the rest.

    Args:
        network: the network, wrapped or not.
        slow_parts: names of its parts, such as ``["encoder"]`` or ``["encoder", "decoder"]``; each holds all
            parameters whose name begins with it.
        head_learning_rate: learning rate of the part ``head`` of the network; None for that of all others.

    Returns:
        Parameter groups for an optimizer, the others first; one group alone where there are no slow parts and no head
        with a rate of its own.

    Raises:
        ValueError: when the network has no such part, or the head is slow and has a rate of its own.

    Example:
        >>> network = nn.ModuleDict({"encoder": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
        >>> [(group["name"], len(group["params"])) for group in layer_groups(network, ["encoder"])]
        [('others', 2), ('slow', 2)]
        >>> [(group["name"], group.get("lr")) for group in layer_groups(network, head_learning_rate=0.03)]
        [('others', None), ('head', 0.03)]
    """
    bare = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    parameters = dict(bare.named_parameters())

    def names_in(part: str) -> set[str]:
        return {name for name in parameters if name.startswith(f"{part}.")}

    of_network = f"{type(bare).__name__}, which has {[name for name, _ in bare.named_children()]}"
    if unknown := [part for part in slow_parts if not names_in(part)]:
        raise ValueError(f"slow_parts: expected parts of {of_network}, found {unknown[0]!r}")
    if head_learning_rate is not None and not names_in("head"):
        raise ValueError(f"head_learning_rate: expected a part named head in {of_network}")
    slow = {name for part in slow_parts for name in names_in(part)}
    head = set() if head_learning_rate is None else names_in("head")
    if slow & head:
        raise ValueError(
            f"expected slow_parts without the head where it has a rate of its own, found slow_parts {list(slow_parts)} "
            f"and head_learning_rate {head_learning_rate}"
        )
    groups: list[dict[str, Any]] = [
        {"name": "others", "params": [value for name, value in parameters.items() if name not in slow | head]},
        {"name": SLOW, "params": [value for name, value in parameters.items() if name in slow]},
        {"name": "head", "params": [value for name, value in parameters.items() if name in head]},
    ]
    if head:
        groups[2]["lr"] = head_learning_rate
    return [group for group in groups if group["params"]]


class LayerRates:
    """Multiply the learning rate of the slow parts by a factor during the first epochs; 0 freezes them.

    The rate is lowered for the optimizer's step alone, so that a schedule, a checkpoint and a resumed run know nothing
    of it: what counts is the epoch. Frozen parameters get no step at all (no weight decay, no momentum); the running
    statistics of batch norm go on, to meet the new scans.

    Args:
        optimizer: of the groups of :func:`layer_groups`.
        epochs: number of first epochs; 0 for none.
        factor: on the learning rate, in [0, 1].

    Raises:
        ValueError: when a number is out of range, or there are epochs and no slow parts.
    """

    def __init__(self, optimizer: Optimizer, epochs: int = 0, factor: float = 0.0) -> None:
        if epochs < 0 or not 0 <= factor <= 1:
            raise ValueError(f"expected epochs of 0 or more and a factor in [0, 1], got {epochs} and {factor}")
        self.groups = [group for group in optimizer.param_groups if group.get("name") == SLOW]
        if epochs > 0 and not self.groups:
            raise ValueError(f"freeze_epochs is {epochs}, but slow_parts names no part of the network")
        self.epochs = epochs
        self.factor = factor
        self._rates: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer.

        Args:
            engine: the MONAI trainer.
        """
        if self.epochs > 0:
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._lower)
            engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._restore)

    def _lower(self, engine: Engine) -> None:
        self._restore(engine)  # after a step that failed, else the rate would be lowered twice
        if engine.state.epoch > self.epochs:
            return
        self._rates = [group["lr"] for group in self.groups]
        for group in self.groups:
            group["lr"] *= self.factor
            if self.factor == 0:
                for parameter in group["params"]:
                    parameter.grad = None

    def _restore(self, engine: Engine) -> None:
        for group, rate in zip(self.groups, self._rates, strict=False):
            group["lr"] = rate
        self._rates = []
