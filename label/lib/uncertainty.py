# SPDX-License-Identifier: Apache-2.0
"""The next sample is the scan whose segmentation the fine-tuned model is least sure of."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lib.inference import CheckedInferTask
from lib.whole_scans import BROKEN_CONNECTION
from monai.inferers import Inferer
from monai.transforms import Activationsd
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from torch import Tensor

from models_genesis.training import FlipInferer, read_model_settings
from models_genesis.transforms.flip_probability import axes_between

logger = logging.getLogger(__name__)

KEY = "uncertainty"
"""Key of an image's information: the ``score``, and the ``model``, its ``weights`` and ``flips`` that gave it."""


def told_apart(names: Iterable[str], slice_axis: int | None = None) -> dict[int, str]:
    """Find the axes along which no scan may be mirrored: the anterior part of its mirror image lies behind.

    Args:
        names: the classes' names.
        slice_axis: axis that the slices stand across in which a scan is taken apart, so that it is not mirrored.

    Returns:
        Two classes for each such axis.

    Example:
        >>> told_apart(["Anterior", "Posterior"]), told_apart(["Anterior", "Posterior"], 1)
        ({1: 'Anterior and Posterior'}, {})
    """
    return {axis: classes for axis, classes in axes_between(names).items() if axis != slice_axis}


def axes_of_bundle(bundle: Path) -> dict[int, str]:
    """Find the axes that tell apart the labels of a bundle's ``metadata.json``, with weights or without."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    output = next(iter(metadata["network_data_format"]["outputs"].values()))
    told = told_apart(output.get("channel_def", {}).values())
    sliced = read_model_settings(bundle / "models").get("slice_axis") if told else None
    return {axis: classes for axis, classes in told.items() if axis != sliced}


def check_flips(flips: Sequence[int], told: Mapping[int, str]) -> None:
    """Refuse axes that tell classes apart.

    Raises:
        ValueError: naming the setting, the axis and two classes.

    Example:
        >>> check_flips([0], {1: "Anterior and Posterior"})
    """
    for axis in flips:
        if axis in told:
            raise ValueError(
                f"--conf uncertainty_flips {','.join(map(str, flips))}: expected axes along which no classes are told "
                f"apart, found {axis}, which tells {told[axis]} apart"
            )


class ProbabilityInferer(Inferer):
    """Give probabilities instead of logits.

    Args:
        inferer: gives logits (B, C, ...).
        sigmoid: whether the channels are answers of their own, not classes that exclude each other.
    """

    def __init__(self, inferer: Inferer, sigmoid: bool) -> None:
        super().__init__()
        self.inferer = inferer
        self.sigmoid = sigmoid

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Return probabilities (B, C, ...)."""
        logits = self.inferer(inputs, network, *args, **kwargs)
        return torch.sigmoid(logits) if self.sigmoid else torch.softmax(logits, 1)


class EntropyInferer(Inferer):
    """Entropy of the mean probability over an image and its mirror images.

    0 where the network is sure and answers the same whichever way the image is mirrored, 1 where it gives all classes
    the same probability. Channels that are answers of their own are averaged.

    Args:
        inferer: gives logits (B, C, ...).
        sigmoid: see :class:`ProbabilityInferer`.
        flips: axes to mirror, 0 the first; all their combinations are run.
        slice_axis: axis that the slices stand across in which ``inferer`` takes a scan apart; it is not mirrored.
        class_names: the classes, whose names tell along which axes nothing may be mirrored.

    Raises:
        ValueError: when an axis to mirror tells two classes apart.
    """

    def __init__(
        self,
        inferer: Inferer,
        sigmoid: bool = False,
        flips: Sequence[int] = (),
        slice_axis: int | None = None,
        class_names: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.sigmoid = sigmoid
        check_flips(flips, told_apart(class_names, slice_axis))
        self.inferer = FlipInferer(ProbabilityInferer(inferer, sigmoid), flips, slice_axis)

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the entropy (B, 1, ...), in [0, 1]."""
        mean = self.inferer(inputs, network, *args, **kwargs)
        if self.sigmoid:
            bits = torch.special.entr(mean) + torch.special.entr(1 - mean)
            return bits.mean(1, keepdim=True) / torch.log(torch.tensor(2.0))
        return torch.special.entr(mean).sum(1, keepdim=True) / torch.log(torch.tensor(float(mean.shape[1])))


class EntropyInferTask(CheckedInferTask):
    """A segmentation bundle that gives a map of its uncertainty instead of its segmentation.

    Args:
        path: folder of the bundle.
        conf: settings of the app.
        flips: see :class:`EntropyInferer`.
    """

    def __init__(self, path: str, conf: dict[str, str], flips: Sequence[int] = ()) -> None:
        super().__init__(path, conf, load_strict=True, skip_writer=True)
        self.flips = tuple(flips)

    def inferer(self, data: dict[str, Any] | None = None) -> Inferer:
        """Put the entropy around the bundle's own inferer."""
        activations = [each for each in super().post_transforms(data) if isinstance(each, Activationsd)]
        sigmoid = any(any(each.sigmoid) for each in activations)
        inferer = super().inferer(data)
        slice_axis, names = (self._parsed(key) for key in ("slice_axis", "regions"))
        return EntropyInferer(inferer, sigmoid, self.flips, slice_axis, self.labels if names is None else names)

    def _parsed(self, key: str) -> Any:
        """A key of ``inference.json``, which other people's bundles may not have."""
        return None if self.bundle_config.get(key) is None else self.bundle_config.get_parsed_content(key)

    def post_transforms(self, data: dict[str, Any] | None = None) -> Sequence[Callable]:
        """Leave the map as it is."""
        return []


class UncertaintyScoring(ScoringMethod):
    """Scores each unlabelled scan by the mean entropy of the model's segmentation.

    A scan is not scored again before the model's weights or the flips change. The same weights, flips and scans give
    the same scores. A scan that cannot be scored has no score, for an earlier one says nothing of these weights.

    Args:
        model: name of the bundle.
        make_task: makes the task that gives the entropy; it is called for each run, to have the newest weights.
    """

    def __init__(self, model: str, make_task: Callable[[], EntropyInferTask]) -> None:
        super().__init__(f"Mean entropy of {model}, 0 to 1, on scans without a label")
        self.model = model
        self.make_task = make_task

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score the scans.

        Args:
            request: ``device``; ``max_samples``, scans to score at most, 0 for all.
            datastore: the studies.

        Returns:
            ``scores`` by scan, the names of those ``skipped`` because their scores are up to date, and ``failed`` ones
            with the reason. Before the first training there are none.
        """
        task = self.make_task()
        if not task.is_valid():
            # no error, for MONAI Label asks for scores by itself as it starts
            logger.warning("%s has no weights yet, so no scan is scored: train it", self.model)
            return {"scores": {}, "skipped": [], "failed": {}}
        source = self._source(task)
        images = sorted(datastore.get_unlabeled_images())
        skipped = [image for image in images if up_to_date(datastore.get_image_info(image), source)]
        waiting = [image for image in images if image not in skipped]
        scores: dict[str, float] = {}
        failed: dict[str, str] = {}
        for image in waiting[: int(request.get("max_samples", 0)) or None]:
            try:
                uri = datastore.get_image_uri(image)
                _, data = task({"image": uri, "device": request.get("device", "cuda"), "logging": "WARNING"})
            except BROKEN_CONNECTION:
                raise
            except Exception as error:  # one broken scan must not keep the others from being scored
                logger.exception("%s: could not be scored", image)
                failed[image] = f"{type(error).__name__}: {error}"
                if datastore.get_image_info(image).get(KEY):
                    datastore.update_image_info(image, {KEY: {}})
                continue
            scores[image] = float(data[task.output_label_key].double().mean())
            datastore.update_image_info(image, {KEY: {"score": scores[image], **source}})
            logger.info("%s: mean entropy %.6f", image, scores[image])
        return {"scores": scores, "skipped": skipped, "failed": failed}

    def source(self) -> dict[str, Any] | None:
        """What scores are of now: the model, its weights and the flips; None where it has no weights yet."""
        task = self.make_task()
        return self._source(task) if task.is_valid() else None

    def _source(self, task: EntropyInferTask) -> dict[str, Any]:
        file = task.weights({})
        assert file is not None, "a valid task has weights"
        weights = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        return {"model": self.model, "weights": weights, "flips": sorted(task.flips)}


def up_to_date(info: dict[str, Any], source: Mapping[str, Any] | None) -> bool:
    """Tell whether an image's information has a score of this model, of these weights and flips."""
    score = info.get(KEY, {})
    return source is not None and all(score.get(key) == value for key, value in source.items())


class LeastCertain(Strategy):
    """Gives the unlabelled scan with the highest uncertainty; of equal ones, and before there are scores, by name.

    Scores of other weights or flips than those of now do not count, for all of a better model's are lower.

    Args:
        scoring: gives the scores.
    """

    def __init__(self, scoring: UncertaintyScoring) -> None:
        super().__init__("The scan that the fine-tuned model is least sure of")
        self.scoring = scoring

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose the next scan.

        Args:
            request: ``label_tag`` and ``labels``, as MONAI Label's strategies have them.
            datastore: the studies.

        Returns:
            The scan's ``id`` and its ``score``, which is None where it has none that counts; None where all scans are
            labelled.
        """
        images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        if not images:
            return None
        source = self.scoring.source()
        notes = {image: datastore.get_image_info(image) for image in images}
        scores = {image: float(info[KEY]["score"]) for image, info in notes.items() if up_to_date(info, source)}
        chosen = max(images, key=lambda image: scores.get(image, -1.0))
        logger.info("%s of %d unlabelled scans: uncertainty %s", chosen, len(images), scores.get(chosen))
        return {"id": chosen, "score": scores.get(chosen)}
