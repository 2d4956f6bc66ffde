# SPDX-License-Identifier: Apache-2.0
"""A MONAI Label app for the bundles of Models Genesis: what the stock ``monaibundle`` app does, and what it cannot do.

Segmentation bundles are offered as there. Besides, classification bundles score clicked points, the pretraining bundle
learns from all scans of the studies, and the next sample is the one that the fine-tuned model is least sure of. Start
it with ``monailabel start_server --app label --studies STUDIES``; ``docs/monai-label.md`` has every command.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lib.inference import CheckedInferTask
from lib.points import PointScoreTask
from lib.training import GenesisTrainTask, PretrainTask
from lib.uncertainty import EntropyInferTask, LeastCertain, UncertaintyScoring, axes_of_bundle, check_flips
from lib.web import read_hosts, read_origins, set_up
from lib.whole_scans import WholeScanDatastore
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.infer.bundle import BundleInferTask

logger = logging.getLogger(__name__)

KINDS = ("segmentation", "classification", "pretraining")
"""What bundles are for, as the ends of their names tell."""

SETTINGS = ("bundles", "models", "uncertainty", "uncertainty_flips", "origins", "hosts")
"""Keys of ``--conf`` that this app reads."""

MONAILABEL_SETTINGS = ("auth_token", "preload", "server_mode", "zoo_repo", "zoo_source")
"""Keys that MONAI Label 0.8.5 itself reads."""


class GenesisApp(MONAILabelApp):
    """The bundles of a folder as models, trainers, scoring and strategy of a MONAI Label server.

    Args:
        app_dir: folder of this app.
        studies: folder of the scans, or a DICOMweb address.
        conf: settings of ``--conf KEY VALUE``: ``bundles``, folder of the bundles, by default ``bundles`` next to the
            app; ``models``, names of bundles separated by commas, by default all; ``uncertainty``, the segmentation
            bundle that chooses the next sample; ``uncertainty_flips``, axes to mirror for it, such as ``0,1``, or
            ``none``, by default 0 unless that tells labels of the bundle apart; ``origins``, addresses of other servers
            whose web pages may use this one; ``hosts``, names of this server besides ``localhost`` and the machine's
            own.

    Raises:
        FileNotFoundError: when a bundle is missing.
        ValueError: when a setting is something else, neither this app nor MONAI Label has it, or an axis to mirror
            tells labels apart.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        check_keys(conf)
        folder = Path(conf.get("bundles", Path(app_dir).parent / "bundles"))
        self.bundles = find_bundles(folder.resolve(), conf.get("models", ""))
        self.origins = read_origins(conf.get("origins", ""))
        self.hosts = read_hosts(conf.get("hosts", ""))
        if (name := conf.get("uncertainty")) and kind_of(self.bundles.get(name)) != "segmentation":
            offered = [each for each, path in self.bundles.items() if kind_of(path) == "segmentation"]
            raise ValueError(
                f"--conf uncertainty {name}: expected a segmentation bundle of {offered}, found another name"
            )
        told = axes_of_bundle(self.bundles[name]) if name else {}
        flips = conf.get("uncertainty_flips")
        self.flips = [axis for axis in (0,) if axis not in told] if flips is None else read_flips(flips)
        check_flips(self.flips, told)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="Models Genesis",
            description="Segmentation, scoring of clicked points, and pretraining on the studies' own scans",
        )

    def on_init_complete(self) -> None:
        """Close the server, which has started, to web pages of other addresses, and give its refusals a reason."""
        from monailabel.app import app  # makes the server's application when it is imported

        set_up(app, self.origins, self.hosts)
        super().on_init_complete()

    def init_remote_datastore(self) -> Datastore:
        """Take care that scans of a DICOM archive are whole."""
        made = super().init_remote_datastore()
        return WholeScanDatastore.of(made) if isinstance(made, DICOMWebDatastore) else made

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
            if (kind := kind_of(path)) in kinds
        }

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Offer the uncertainty of the model that ``--conf uncertainty`` names."""
        return {"uncertainty": self._scoring()} if self.conf.get("uncertainty") else {}

    def init_strategies(self) -> dict[str, Strategy]:
        """Offer MONAI Label's own strategies, and the least certain scan where ``--conf uncertainty`` is given."""
        strategies = {"random": Random(), "first": First()}
        return (
            {**strategies, "uncertainty": LeastCertain(self._scoring())} if self.conf.get("uncertainty") else strategies
        )

    def info(self) -> dict[str, Any]:
        """Describe the app, with the models that have got weights since the server started."""
        self._find_new_weights()
        return super().info()

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Run a model, also one that has got weights since the server started."""
        self._find_new_weights()
        return super().infer(request, datastore)

    def _scoring(self) -> UncertaintyScoring:
        name = self.conf["uncertainty"]
        return UncertaintyScoring(name, lambda: EntropyInferTask(str(self.bundles[name]), self.conf, self.flips))

    def _infer_task(self, name: str) -> InferTask | None:
        path = self.bundles[name]
        if kind_of(path) == "segmentation":
            return CheckedInferTask(str(path), self.conf, load_strict=True)
        return PointScoreTask(path) if kind_of(path) == "classification" else None

    def _find_new_weights(self) -> None:
        """MONAI Label looks for weights once, when it starts; a first training here writes them later."""
        for name, task in self._infers.items():
            weights = self.bundles[name] / "models" / "model.pt"
            if isinstance(task, BundleInferTask) and not task.is_valid() and weights.is_file():
                logger.info("%s has weights now", name)
                self._infers[name] = self._infer_task(name)


def kind_of(bundle: Path | None) -> str:
    """Tell by the end of a bundle's name what it is for; empty where it is nothing that the app offers.

    Example:
        >>> kind_of(Path("genesis_lits_liver_ct_segmentation")), kind_of(Path("spleen_deepedit"))
        ('segmentation', '')
    """
    kind = bundle.name.rsplit("_", 1)[-1] if bundle else ""
    return kind if kind in KINDS else ""


def check_keys(keys: Iterable[str]) -> None:
    """Refuse settings that nothing reads.

    Raises:
        ValueError: when there is one, with the known one that is most like it.

    Example:
        >>> check_keys(["models", "origin"])
        Traceback (most recent call last):
        ...
        ValueError: --conf origin: found no such setting, did you mean origins?
    """
    known = (*SETTINGS, *MONAILABEL_SETTINGS)
    for key in keys:
        if key not in known:
            near = get_close_matches(key, known, 1)
            expected = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise ValueError(f"--conf {key}: found no such setting, {expected}")


def read_flips(text: str) -> list[int]:
    """Read axes with commas between them; ``none`` and an empty text are no axes.

    Raises:
        ValueError: when one is not 0, 1 or 2, or comes twice.

    Example:
        >>> read_flips("0,2"), read_flips("none"), read_flips("")
        ([0, 2], [], [])
    """
    axes = [] if text.strip() in ("", "none") else [axis.strip() for axis in text.split(",")]
    if not set(axes) <= {"0", "1", "2"} or len(set(axes)) < len(axes):
        raise ValueError(f"--conf uncertainty_flips {text}: expected some of 0,1,2, or none, found {axes}")
    return [int(axis) for axis in axes]


def find_bundles(folder: Path, names: str = "") -> dict[str, Path]:
    """Find bundles by name.

    Args:
        folder: folder of the bundles.
        names: their names, separated by commas; empty takes all of a kind that the app offers, and logs the others.

    Returns:
        Folders of the bundles by name.

    Raises:
        FileNotFoundError: when the folder has no bundle that the app offers, or lacks one of the names.
        ValueError: when one that is named is of a kind that the app does not offer.
    """
    found = {path.parent.parent.name: path.parent.parent for path in sorted(folder.glob("*/configs/metadata.json"))}
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if missing := [name for name in asked if name not in found]:
        raise FileNotFoundError(f"--conf models {missing}: expected bundles in {folder}, found {list(found)}")
    expected = " or ".join(f"_{kind}" for kind in KINDS)
    others = [name for name in asked or found if not kind_of(found[name])]
    if asked and others:
        raise ValueError(f"--conf models {names}: expected names that end in {expected}, found {others}")
    if others:
        logger.warning("left out of %s: %s, for their names do not end in %s", folder, others, expected)
    bundles = {name: found[name] for name in asked or found if name not in others}
    if not bundles:
        raise FileNotFoundError(f"--conf bundles {folder}: expected a folder of bundles, found none in it")
    return bundles
