# SPDX-License-Identifier: Apache-2.0
"""A MONAI Label app for the bundles of Models Genesis: what the stock ``monaibundle`` app does, and what it cannot do.

Segmentation bundles are offered as there. Besides, classification bundles score clicked points, the pretraining bundle
learns from all scans of the studies, and the next sample is the one that the fine-tuned model is least sure of. Start
it with ``monailabel start_server --app label --studies STUDIES``; ``docs/monai-label.md`` has every command.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lib.inference import CheckedInferTask
from lib.points import PointScoreTask
from lib.training import GenesisTrainTask, PretrainTask
from lib.uncertainty import EntropyInferTask, LeastCertain, UncertaintyScoring
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.infer.bundle import BundleInferTask

logger = logging.getLogger(__name__)


class GenesisApp(MONAILabelApp):
    """The bundles of a folder as models, trainers, scoring and strategy of a MONAI Label server.

    Args:
        app_dir: folder of this app.
        studies: folder of the scans, or a DICOMweb address.
        conf: settings of ``--conf KEY VALUE``: ``bundles``, folder of the bundles, by default ``bundles`` next to the
            app; ``models``, names of bundles separated by commas, by default all; ``uncertainty``, the segmentation
            bundle that chooses the next sample; ``uncertainty_flips``, axes to mirror for it, such as ``0,1``.

    Raises:
        FileNotFoundError: when a bundle is missing.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        folder = Path(conf.get("bundles", Path(app_dir).parent / "bundles"))
        self.bundles = find_bundles(folder.resolve(), conf.get("models", ""))
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="Models Genesis",
            description="Segmentation, scoring of clicked points, and pretraining on the studies' own scans",
        )

    def init_infers(self) -> dict[str, InferTask]:
        """Offer the segmentation bundles, and the classification bundles for clicked points."""
        tasks = {name: self._infer_task(name) for name in self.bundles}
        return {name: task for name, task in tasks.items() if task is not None}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Offer fine-tuning of the segmentation bundles on the labelled scans, and pretraining on all scans."""
        kinds = {"segmentation": GenesisTrainTask, "pretraining": PretrainTask}
        return {
            name: kinds[kind](str(path), self.conf)
            for name, path in self.bundles.items()
            if (kind := name.rsplit("_", 1)[-1]) in kinds
        }

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Offer the uncertainty of the model that ``--conf uncertainty`` names."""
        name = self.conf.get("uncertainty")
        if not name:
            return {}
        if name not in self.bundles:
            raise FileNotFoundError(f"--conf uncertainty {name}: expected one of {list(self.bundles)}")
        flips = [int(axis) for axis in self.conf.get("uncertainty_flips", "0").split(",") if axis.strip()]
        path = str(self.bundles[name])
        return {"uncertainty": UncertaintyScoring(name, lambda: EntropyInferTask(path, self.conf, flips))}

    def init_strategies(self) -> dict[str, Strategy]:
        """Offer MONAI Label's own strategies, and the least certain scan where ``--conf uncertainty`` is given."""
        strategies = {"random": Random(), "first": First()}
        return {**strategies, "uncertainty": LeastCertain()} if self.conf.get("uncertainty") else strategies

    def info(self) -> dict[str, Any]:
        """Describe the app, with the models that have got weights since the server started."""
        self._find_new_weights()
        return super().info()

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Run a model, also one that has got weights since the server started."""
        self._find_new_weights()
        return super().infer(request, datastore)

    def _infer_task(self, name: str) -> InferTask | None:
        path = self.bundles[name]
        if name.endswith("_segmentation"):
            return CheckedInferTask(str(path), self.conf, load_strict=True)
        return PointScoreTask(path) if name.endswith("_classification") else None

    def _find_new_weights(self) -> None:
        """MONAI Label looks for weights once, when it starts; a first training here writes them later."""
        for name, task in self._infers.items():
            weights = self.bundles[name] / "models" / "model.pt"
            if isinstance(task, BundleInferTask) and not task.is_valid() and weights.is_file():
                logger.info("%s has weights now", name)
                self._infers[name] = self._infer_task(name)


def find_bundles(folder: Path, names: str = "") -> dict[str, Path]:
    """Find bundles by name.

    Args:
        folder: folder of the bundles.
        names: their names, separated by commas; empty takes all.

    Returns:
        Folders of the bundles by name.

    Raises:
        FileNotFoundError: when the folder has no bundle, or lacks one of the names.
    """
    found = {path.parent.parent.name: path.parent.parent for path in sorted(folder.glob("*/configs/metadata.json"))}
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(found)
    if missing := [name for name in wanted if name not in found]:
        raise FileNotFoundError(f"--conf models {missing}: expected bundles in {folder}, found {list(found)}")
    if not wanted:
        raise FileNotFoundError(f"--conf bundles {folder}: expected a folder of bundles, found none in it")
    return {name: found[name] for name in wanted}
