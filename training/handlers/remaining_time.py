# SPDX-License-Identifier: Apache-2.0
"""How long a training will still take, from the epochs that it has done."""

from __future__ import annotations

from statistics import median

__all__ = ["RemainingTime"]


class RemainingTime:
    """Estimate the time that a training has left, and tell which epoch is validated next.

    An epoch with a validation takes longer than one without, so each kind has a median of its own, over the epochs of
    this session; where one kind has not been seen, the other's stands in.

    Args:
        val_interval: epochs from one validation to the next.
        max_epochs: epochs of the whole training; of one shorter than the interval the last is validated.

    Example:
        >>> remaining = RemainingTime(val_interval=4, max_epochs=12)
        >>> for epoch in (1, 2, 3, 4):
        ...     remaining.add(epoch, 10.0 if epoch == 4 else 6.0)
        >>> remaining.seconds_after(4)  # six of 6 s, and two with a validation
        56.0
        >>> remaining.next_validation(4)
        8
    """

    def __init__(self, val_interval: int, max_epochs: int) -> None:
        self.val_interval = min(val_interval, max_epochs)
        self.max_epochs = max_epochs
        self._seconds: dict[bool, list[float]] = {False: [], True: []}

    def validated(self, epoch: int) -> bool:
        """Tell whether an epoch is validated."""
        return epoch % self.val_interval == 0

    def add(self, epoch: int, seconds: float) -> None:
        """Note how long an epoch took, with its validation if it has one.

        Args:
            epoch: its number, from 1.
            seconds: its time.
        """
        self._seconds[self.validated(epoch)].append(seconds)

    def seconds_after(self, epoch: int) -> float:
        """Estimate how long the epochs after one take.

        Args:
            epoch: the last epoch that is done.
        """
        left = self.max_epochs - epoch
        validations = self.max_epochs // self.val_interval - epoch // self.val_interval
        plain, validated = self._seconds[False], self._seconds[True]
        return (left - validations) * median(plain or validated) + validations * median(validated or plain)

    def next_validation(self, epoch: int) -> int | None:
        """Give the next epoch that is validated, None where there is none.

        Args:
            epoch: the last epoch that is done.
        """
        following = (epoch // self.val_interval + 1) * self.val_interval
        return following if following <= self.max_epochs else None
