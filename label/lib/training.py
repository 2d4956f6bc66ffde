# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on the labelled scans of the studies, and pretraining on all of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from lib.archive_labels import fetch_cases
from lib.inference import named_weights
from lib.whole_scans import BROKEN_CONNECTION, WholeScanDatastore
from monai.bundle import ConfigExpression, ConfigParser
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.tasks.train.bundle import BundleTrainTask

from models_genesis.datasets import BadScanError, msd_task
from models_genesis.datasets.loading.prepare_scan import PrepareScan
from models_genesis.training import (
    ModelSettingsError,
    check_model_settings,
    name_of_task,
    read_model_settings,
    recorded_overrides,
)

logger = logging.getLogger(__name__)

Cases = list[dict[str, str]]


class GenesisTrainTask(BundleTrainTask):
    """Trains a bundle, with the choice of what it starts from.

    ``start_from`` in the request is ``"model"`` (go on from the bundle's ``model.pt``, else from pretrained weights),
    ``"pretrained"`` (the weights that the pretraining bundle has written, whether or not there is a ``model.pt``) or
    ``"scratch"``. Whatever ``val_split`` says, at least one case is kept for validation, for only a validated network
    is written; a single case is trained and validated on.

    Args:
        path: folder of the bundle.
        conf: settings of the app.
    """

    starts: tuple[str, ...] = ("model", "pretrained", "scratch")

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        super().__init__(path, conf, load_strict=True)
        self.start_from = self.starts[0]
        self.weights = Path(path) / "models" / "model.pt"

    def config(self) -> dict[str, Any]:
        """List the options that the viewer offers."""
        options = super().config()
        del options["pretrained"]
        return {"start_from": list(self.starts), **options}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train.

        Args:
            request: the options, see :meth:`config`.
            datastore: the studies.

        Returns:
            Nothing of interest; the weights are in the bundle's ``models/model.pt``.

        Raises:
            MONAILabelException: when there is nothing to train on, ``start_from`` is something else, the name of the
                weights to go on from, ``model_filename``, has a folder in it or is of no file, or they were trained
                with other settings than the bundle's copy was given.
        """
        asked = request.get("start_from", self.starts[0])
        self.start_from = asked if isinstance(asked, str) else asked[0]
        if self.start_from not in self.starts:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, f"start_from: expected one of {self.starts}, found {self.start_from!r}"
            )
        given = request.get("model_filename")  # a viewer sends [] where there are no weights yet
        models = Path(self.bundle_path) / "models"
        self.weights = named_weights(models, given) if given else models / "model.pt"
        self._settings_of_model()  # refuses before scans are downloaded
        checked = {"pretrained": self.start_from == "model", "model_filename": self.weights.name}
        return super().__call__({**request, **checked}, datastore)

    def _fetch_datalist(self, request: dict[str, Any], datastore: Datastore) -> Cases:
        """List the labelled scans; those of an archive by the names of the bundle's labels."""
        if not isinstance(datastore, DICOMWebDatastore):
            cases: Cases = super()._fetch_datalist(request, datastore)
            return cases
        return fetch_cases(datastore, self._label_values(), Path(self.bundle_path).name)

    def _label_values(self) -> dict[str, int]:
        """Values of the label map by name, as MONAI Label shows them."""
        metadata = json.loads(Path(self.bundle_metadata_path).read_text(encoding="utf-8"))
        channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        return {name: int(value) for value, name in channels.items() if name != "background"}

    def _partition_datalist(
        self, datalist: Cases, request: dict[str, Any], shuffle: bool = False
    ) -> tuple[Cases, Cases]:
        """Split the cases, a multiple of the same distance for validation, as few as one."""
        if not datalist:
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "expected cases to train on, found none")
        share = min(max(float(request.get("val_split", 0.2)), 0.0), 1.0)
        count = min(max(round(share * len(datalist)), 1), max(len(datalist) - 1, 1))
        held_out = {(2 * number + 1) * len(datalist) // (2 * count) for number in range(count)}
        validation = [case for number, case in enumerate(datalist) if number in held_out]
        training = [case for number, case in enumerate(datalist) if number not in held_out] or validation
        logger.info("%d cases to train on, %d to validate on: %s", len(training), len(validation), validation)
        return training, validation

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict[str, Any]]) -> None:
        """Put a loader before the handlers, or take away that of an earlier request, for the list is the config's."""
        train_handlers[:] = [each for each in train_handlers if each.get("_target_") != "CheckpointLoader"]
        if pretrained:
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        overrides.update(self._settings_of_model())
        if self.start_from == "scratch":
            overrides["pretrained"] = "none"
        return overrides

    def _settings_of_model(self) -> dict[str, Any]:
        """What the weights that it goes on from were trained with, as the JSON next to them says.

        The first training that goes on otherwise would describe its weights by the settings of ``train.json``, on which
        they were not pretrained. With weights of slices all else that a training on slices does differently comes from
        ``configs/2d.json``.

        Raises:
            MONAILabelException: when the JSON describes other weights, or the bundle's copy was given other settings.
        """
        if self.start_from != "model" or not self.weights.is_file():
            return {}
        train = ConfigParser.load_config_file(self.bundle_config_path)
        try:
            recorded = read_model_settings(self.weights.parent, self.weights.name)
            if not recorded:
                return {}
            own = self._own_settings(train, recorded)
        except ModelSettingsError as error:
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"{self.weights}: {error}") from error
        sliced = recorded.get("slice_axis") is not None
        known = {**(self._keys_of_slices() if sliced else {}), **recorded_overrides(train, recorded)}
        return {key: value for key, value in known.items() if key not in own}

    def _own_settings(self, train: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
        """The settings that the bundle's copy was given, of those that the weights were trained with.

        ``copy_bundle.py`` writes them into both configs, in place of the expressions by which ``inference.json`` takes
        those of the weights. They are compared as inference compares them, and then count.
        """
        inference = ConfigParser.load_config_file(Path(self.bundle_config_path).with_name("inference.json"))
        written = {key: inference[key] for key in recorded if key in inference and inference[key] == train.get(key)}
        own = {key: value for key, value in written.items() if not ConfigExpression.is_expression(value)}
        compared = {"task", *inference.get("settings_check", {}).get("given", {})}
        if len(own.get("cube_size") or ()) != len(recorded.get("cube_size") or ()):
            compared.add("cube_size")  # a cube is no slice; other sides are free
        given = {key: value for key, value in own.items() if key in compared}
        if "task" in given:
            given["task"] = name_of_task(msd_task(given["task"]))
        check_model_settings(recorded, given, bool(inference.get("allow_changed_settings", False)))
        return own

    def _keys_of_slices(self) -> dict[str, Any]:
        """The keys of ``configs/2d.json``; MONAI adds ``+imports`` of a config file, but not of overrides."""
        config = Path(self.bundle_config_path)
        keys = ConfigParser.load_config_file(config.with_name("2d.json"))
        added = keys.pop("+imports", [])
        return {**keys, "imports": [*ConfigParser.load_config_file(config).get("imports", []), *added]}


class PretrainTask(GenesisTrainTask):
    """Learns from all scans of the studies, labelled or not, and leaves the weights that fine-tuning starts from.

    Its ``start_from`` is ``"model"`` (go on from the pretraining bundle's ``model.pt`` if there is one) or
    ``"scratch"``. Scans that are too small or cannot be read, and those of an archive that are not of the bundle's
    ``modality``, are left out and named in the log; one that can be used is always held out.
    """

    starts = ("model", "scratch")
    cubes_per_scan: int | None = None

    def config(self) -> dict[str, Any]:
        """List the options that the viewer offers."""
        return {**super().config(), "max_epochs": 100, "cubes_per_scan": 32}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Pretrain; see :class:`GenesisTrainTask`, and ``cubes_per_scan``, cubes or slices of each scan in an epoch."""
        given = request.get("cubes_per_scan")
        self.cubes_per_scan = None if given is None else int(given)
        return super().__call__({"max_epochs": 100, **request}, datastore)

    def _fetch_datalist(self, request: dict[str, Any], datastore: Datastore) -> Cases:
        cases: Cases = []
        expected = self.bundle_config.get_parsed_content("modality")
        for name in sorted(datastore.list_images()):
            try:
                found = (
                    datastore.series(name).get("Modality") if isinstance(datastore, WholeScanDatastore) else expected
                )
                if expected is not None and found != expected:
                    logger.warning("%s: left out, expected the modality %s, found %s", name, expected, found)
                    continue
                cases.append({"image": str(datastore.get_image_uri(name))})
            except BROKEN_CONNECTION:
                raise
            except Exception:  # of an archive's scans, which are downloaded and converted here
                logger.exception("%s: left out, for it could not be read", name)
        return cases

    def _partition_datalist(
        self, datalist: Cases, request: dict[str, Any], shuffle: bool = False
    ) -> tuple[Cases, Cases]:
        """Split the scans as for fine-tuning, with one at least among those held out that can be used.

        Scans are prepared as the training prepares them until one can be used, those held out first. What cannot be
        used is left out, and named in the log. The training itself leaves out what is not looked at here.
        """
        training, validation = super()._partition_datalist(datalist, request, shuffle)
        bad: list[dict[str, str]] = []
        reasons: list[str] = []
        prepare = self._prepare_scan()
        for case in [*validation, *(case for case in training if case not in validation)]:
            try:
                prepare(case)
            except BadScanError as error:
                logger.warning("left out: %s", error)
                bad.append(case)
                reasons.append(str(error))
            else:
                held_out = [case, *(other for other in validation if other not in (case, *bad))]
                return [other for other in training if other not in (case, *bad)] or [case], held_out
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"expected a scan that can be pretrained on, found none among {len(bad)}: {'; '.join(reasons[:5])}",
        )

    def _prepare_scan(self) -> PrepareScan:
        """What the training does with a scan before it takes cubes of it."""
        parser = ConfigParser()
        parser.read_config(self.bundle_config_path)
        parser.update({"bundle_root": self.bundle_path, **self._settings_of_model()})
        return PrepareScan(parser.get_parsed_content("train#preprocessing"), "image", "starts", "raise")

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        overrides.update({"cubes_per_scan": 32, **self._settings_of_model(), "on_bad_scan": "skip"})
        if self.cubes_per_scan is not None:
            overrides["cubes_per_scan"] = self.cubes_per_scan
        return overrides
