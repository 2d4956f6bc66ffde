# SPDX-License-Identifier: Apache-2.0
"""Pack bundles: ``python bundles/build.py NAME --out DIR``, or ``--all`` in place of ``NAME``.

Of each bundle it writes ``NAME_vVERSION.zip`` with everything below one folder ``NAME/``, its SHA-256 next to it, its
entry in ``model_info.json``, and ``unpack.py``, with which users check and unpack it. The same tree gives the same
bytes on any machine: files are sorted, stored uncompressed (deflate differs between zlib versions, and weights hardly
shrink), with one date and one mode.

A package carries its code, or with ``--code package`` asks for the package ``models-genesis`` instead. ``--zoo DIR``
writes the same files, and the unit tests of each bundle, as the folders of a pull request to the model zoo.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from configparser import ConfigParser as IniParser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from card import zoo_card
from sync import layout, write_whole
from unpack import sha256_of
from vendoring import portable_configs, portable_readme, rename, vendored_code
from zoo_tests import unit_tests

BUNDLES = Path(__file__).resolve().parent
MAX_WEIGHTS = 25 * 1024**2
REQUIRED = (
    "LICENSE",
    "configs/metadata.json",
    "configs/train.json",
    "configs/inference.json",
    "configs/logging.conf",
    "docs/README.md",
    "docs/data_license.txt",
)
SMALL_WEIGHTS = "models/phantom_*.pt"
"""Weights of our own that are kept in the repository, as are those of :func:`shipped_weights`; all else in ``models/``
are results of somebody's runs."""

CERTIFICATE = "birth_certificate.json"

CONFIGS = (
    "train", "evaluate", "inference", "multi_gpu_train", "multi_gpu_evaluate", "paper", "2d", "2.5d", "radiographs",
)  # fmt: skip
"""Names of what a bundle's ``configs/`` may hold besides its metadata. MONAI Label, for one, writes a config there with
the paths of a hospital's scans."""

CODE = ("vendored", "package")
"""Where a packed bundle has its code from: its own ``scripts/``, or the installed package."""

DISTRIBUTION = "models-genesis"


@dataclass(frozen=True)
class Weights:
    """Trained weights that go with a package.

    Args:
        path: ``model.pt``, a plain state dict that fits the bundle's network exactly.
        url: where it can be downloaded; needed above 25 MB, which the model zoo takes as large files only.
    """

    path: Path
    url: str | None = None


@dataclass(frozen=True)
class Package:
    """A packed bundle.

    Args:
        path: the zip.
        name: the bundle.
        version: its version.
        requirements: what it needs, as pip writes it.
        files: number of files in it.
    """

    path: Path
    name: str
    version: str
    requirements: tuple[str, ...] = field(repr=False)
    files: int = 0


def shipped_weights(folder: Path) -> Weights | None:
    """Find the trained weights that belong to a bundle: those whose birth certificate holds an evaluation.

    Training alone writes a certificate too; ``tools/ship_weights.py`` adds evaluations, which makes them ours to ship.

    Args:
        folder: the bundle.

    Raises:
        ValueError: when the certificate is of other weights than those next to it.
    """
    weights, certificate = folder / "models" / "model.pt", folder / "models" / CERTIFICATE
    if not (weights.is_file() and certificate.is_file()):
        return None
    content = read_json(certificate)
    if not content.get("evaluations"):
        return None
    if content["weights"]["sha256"] != sha256_of(weights):
        raise ValueError(f"{certificate}: expected the certificate of {weights}, found that of other weights")
    return Weights(weights)


def weights_for(folder: Path, settings: Mapping[str, Any]) -> Weights | None:
    """Take a bundle's :func:`shipped_weights`, or say that they were trained with other settings and leave them out.

    Args:
        folder: the bundle.
        settings: keys of the configs that are set.

    Returns:
        The weights, None where the bundle encloses none or they are left out.
    """
    weights = shipped_weights(folder)
    if weights is None:
        return None
    recorded = by_id(trained_settings(weights.path))
    other = [key for key, value in settings.items() if key in recorded and recorded[key] != value]
    if other:
        print(f"{weights.path}: left out, for they were trained with other settings than --set {', '.join(other)}")
    return None if other else weights


def bundle_names(root: Path = BUNDLES) -> list[str]:
    """List the bundles of this repository."""
    return sorted(path.parent.parent.name for path in root.glob("*/configs/metadata.json"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a config, and name the file where it is not JSON with an object at its top."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, found: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def check_bundle(folder: Path) -> dict[str, Any]:
    """Check what the model zoo asks of a bundle before it reads any config.

    Args:
        folder: the bundle.

    Returns:
        Its metadata.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when the metadata cannot be read, or their version is malformed or not in the changelog.
    """
    if folder.name not in bundle_names(folder.parent):
        raise FileNotFoundError(f"{folder}: no such bundle; there are {', '.join(bundle_names(folder.parent))}")
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: expected the files of a bundle, missing are {', '.join(missing)}")
    metadata = read_json(folder / "configs" / "metadata.json")
    version, changelog = metadata.get("version"), metadata.get("changelog", {})
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"{folder}/configs/metadata.json: expected a version such as 0.1.0, found {version!r}")
    if version not in changelog:
        raise ValueError(f"{folder}/configs/metadata.json: version {version} is not in the changelog {list(changelog)}")
    return metadata


def requirements(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Give what a bundle needs as pip writes it.

    Example:
        >>> requirements({"monai_version": "1.6.1", "pytorch_version": "2.13.0", "numpy_version": "2.4.6",
        ...               "required_packages_version": {"itk": "5.4.7"}})
        ('monai==1.6.1', 'torch==2.13.0', 'numpy==2.4.6', 'itk==5.4.7')
    """
    pins = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    pins |= metadata["required_packages_version"]
    return tuple(f"{package}=={version}" for package, version in pins.items())


def read_configs(folder: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read all configs of a bundle but its metadata, with some of their keys set.

    Args:
        folder: the bundle.
        settings: values by top-level key, or by nested id of a component's argument.

    Returns:
        Contents by file name.

    Raises:
        ValueError: when no config has such a key, or a config is none of :data:`CONFIGS`.
    """
    from models_genesis.training.engines.component_arguments import holder
    from models_genesis.training.engines.moved_keys import now_at

    paths = sorted((folder / "configs").glob("*.json"))
    if others := [path.name for path in paths if path.stem not in (*CONFIGS, "metadata")]:
        raise ValueError(
            f"{folder / 'configs'}: expected the configs of a bundle, found {', '.join(others)}, which may name"
            " somebody's scans; move them elsewhere"
        )
    configs = {path.name: read_json(path) for path in paths if path.name != "metadata.json"}
    for key, value in settings.items():
        having = [found for config in configs.values() if (found := holder(config, key)) is not None]
        if not having:
            raise ValueError(f"--set {key}: none of the configs of {folder.name} has this key{now_at(key)}")
        for component, last in having:
            component[last] = value
    return configs


def trained_settings(weights: Path) -> dict[str, Any]:
    """Read the settings that training wrote next to weights, empty where it wrote none.

    Args:
        weights: the file.

    Raises:
        ValueError: when they describe other weights.
    """
    from models_genesis.training import read_model_settings

    return read_model_settings(weights.parent, weights.name)


def by_id(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Give settings of weights by the ids that they have in the configs, which may be nested ones."""
    from models_genesis.networks.network_def import NETWORK_DEF, rare_arguments
    from models_genesis.training.engines.moved_keys import MOVED_KEYS

    named = {key: value for key, value in recorded.items() if key != NETWORK_DEF} | rare_arguments(recorded)
    return {MOVED_KEYS[key].id if key in MOVED_KEYS else key: value for key, value in named.items()}


def not_following(config: Mapping[str, Any], carried: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the settings of weights that follow from others, so that they follow from what a user gives too.

    The intensity range of a pretraining follows from ``--normalise``: as a number it would stay that of HU where a user
    normalises MR.

    Args:
        config: ``train.json``, which imports ``models_genesis``.
        carried: the settings that weights were trained with.

    Returns:
        The settings that the config needs to be told.

    Example:
        >>> config = {"normalise": "minmax", "width": "$len(@normalise)", "depth": "$@other"}
        >>> not_following(config, {"normalise": "none", "width": 4, "depth": 2})
        {'normalise': 'none', 'depth': 2}
    """
    from monai.bundle import ConfigParser

    def follows(key: str) -> bool:
        written = config.get(key)
        named = set(re.findall(r"@(\w+)", written)) if isinstance(written, str) and written.startswith("$") else set()
        if not named or not named <= set(carried):
            return False
        given = {other: value for other, value in carried.items() if other != key and "#" not in other}
        value: Any = ConfigParser({**config, **given}).get_parsed_content(key)
        return bool(value == carried[key])

    return {key: value for key, value in carried.items() if not follows(key)}


def follows_from_task(recorded: Mapping[str, Any]) -> bool:
    """Say whether ``task_facts`` of weights are those of a Decathlon task that the bundles know by name.

    Args:
        recorded: settings that training wrote next to the weights.
    """
    from models_genesis.datasets.cases import MSD_TASKS, msd_task
    from models_genesis.datasets.channels import same_channels

    if recorded.get("task") not in MSD_TASKS:
        return False
    known = msd_task(recorded["task"])["channels"]
    return same_channels(recorded.get("task_facts", {}).get("channels", known), known)


def check_weights(weights: Path, folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse weights that do not fit the network of ``inference.json`` and ``train.json`` exactly.

    Args:
        weights: the file.
        folder: the bundle in this repository, whose configs import ``models_genesis``.
        settings: keys of the configs that are set.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged, no plain state dict, holds NaN or infinity, or does not fit.
    """
    import torch
    from monai.bundle import ConfigParser

    from models_genesis.networks import read_checkpoint
    from models_genesis.networks.weight_container import non_finite

    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: expected the weights of {folder.name}, found no such file")
    try:
        state = read_checkpoint(weights)
    except ValueError as error:
        raise ValueError(f"{weights}: expected a state dict written by torch.save, found: {error}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(each, torch.Tensor) for each in state.values()):
        raise ValueError(
            f"{weights}: expected a plain state dict, as monai.bundle.load and MONAI Label read it; write it with "
            "models_genesis.networks.save_weights(network.state_dict(), path)"
        )
    if wrong := non_finite(state):
        raise ValueError(f"{weights}: {wrong}, expected finite weights")
    recorded = trained_settings(weights)
    for file, config in read_configs(folder, settings).items():
        if file in ("train.json", "inference.json"):
            if file == "inference.json":
                config["model_settings"] = recorded
            try:
                ConfigParser(config).get_parsed_content("network_def").load_state_dict(state, strict=True)
            except RuntimeError as error:
                raise ValueError(
                    f"{weights}: does not fit the network of {folder.name}/configs/{file}: {error}"
                ) from error


def check_described(folder: Path, metadata: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse to pack what the bundle's metadata, which are not written for each weights, would describe wrongly.

    Args:
        folder: the bundle.
        metadata: its metadata.
        settings: those of the weights, and keys of the configs that are set.

    Raises:
        ValueError: when the network has another number of axes, or images are not scaled as the metadata say.
    """
    image = metadata["network_data_format"]["inputs"]["image"]
    size, normalise, axes = settings.get("cube_size"), settings.get("normalise"), len(image["spatial_shape"])
    slices = {key: settings[key] for key in ("slice_axis", "slice_axes") if settings.get(key) is not None}
    sides = list(size) if isinstance(size, list | tuple) else [None] * axes
    if (2 if slices else len(sides)) != axes:
        found = ", ".join(f"{key} {value}" for key, value in (slices or {"cube_size": sides}).items())
        detail = f"networks of {axes} axes, found {found}"
    elif normalise == "full_scale" or (image["format"] == "hounsfield" and normalise not in (None, "none")):
        detail = f"{image['format']} of {image['modality']}, found normalise {normalise}"
    else:
        return
    advice = "use the weights with load_pretrained, or pack a copy of the bundle with metadata of its own"
    raise ValueError(f"{folder.name}: the metadata describe {detail}; {advice}")


def described_metadata(
    folder: Path,
    metadata: Mapping[str, Any],
    inference: Mapping[str, Any],
    recorded: Mapping[str, Any],
    with_scores: bool,
) -> dict[str, Any]:
    """Give metadata that describe what is packed: channels, labels and modality of its task, scores of its weights.

    Args:
        folder: the bundle.
        metadata: its metadata.
        inference: its ``inference.json``, which imports ``models_genesis``.
        recorded: settings that training wrote next to the weights.
        with_scores: whether the weights are those that ``eval_metrics`` are of.
    """
    from models_genesis.training.engines.bundle_metadata import describe_channels

    described = copy.deepcopy(dict(metadata))
    if folder.name.endswith("_segmentation"):
        describe_channels({**inference, "model_settings": dict(recorded)}, described)
    return described if with_scores else {**described, "eval_metrics": {}}


def provenance(root: Path) -> dict[str, str]:
    """Tell which package and which commit a bundle is packed from.

    Args:
        root: the repository, or an unpacked source distribution, which has no commit.

    Returns:
        What is added to the metadata.
    """
    setup = IniParser()
    setup.read(root / "setup.cfg", encoding="utf-8")
    stated = {"models_genesis_version": setup["metadata"]["version"]}
    if (root / ".git").exists():
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ValueError(f"{root}: expected a git checkout or a folder without .git, found: {done.stderr.strip()}")
        stated["models_genesis_commit"] = done.stdout.strip()
    return stated


def large_files(folder: Path, weights: Weights | None) -> dict[str, Any] | None:
    """Give the content of ``large_files.json``: what is downloaded, and what only its owners may hand out.

    Args:
        folder: the bundle.
        weights: its weights; listed if they are too large for a package.

    Returns:
        The content, None where there is nothing to list.

    Raises:
        ValueError: when weights are too large and have no URL.
    """
    path = folder / "large_files.json"
    content = read_json(path) if path.is_file() else {"large_files": []}
    if weights is not None and weights.path.stat().st_size > MAX_WEIGHTS:
        if weights.url is None:
            size = weights.path.stat().st_size / 1024**2
            raise ValueError(f"{weights.path}: {size:.0f} MiB, expected at most 25 or --weights-url to list it by")
        entry = {
            "path": "models/model.pt",
            "url": weights.url,
            "hash_val": sha256_of(weights.path),
            "hash_type": "sha256",
        }
        content = {**content, "large_files": [*content["large_files"], entry]}
    return content if path.is_file() or content["large_files"] else None


def packed_metadata(metadata: Mapping[str, Any], origin: Mapping[str, str], code: str) -> dict[str, Any]:
    """Give the metadata of a packed bundle, which tell where it comes from and pin its code if that is a package."""
    packed = {**metadata, **origin}
    if code == "package":
        own = {DISTRIBUTION: origin["models_genesis_version"]}
        packed["required_packages_version"] = {**own, **metadata["required_packages_version"]}
    return packed


def contents(
    folder: Path, settings: Mapping[str, Any], weights: Weights | None = None, code: str = CODE[0]
) -> dict[str, bytes]:
    """Gather the files of a packed bundle.

    Args:
        folder: the bundle.
        settings: keys of its configs that are set, such as ``features`` of the weights' network.
        weights: trained weights that become ``models/model.pt``.
        code: ``"vendored"`` for a bundle that carries its code, ``"package"`` for one that pins ``models-genesis``.

    Returns:
        Bytes by path below the bundle's folder.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when metadata, configs, README or weights are not as they must be.
    """
    from models_genesis.training.engines.component_arguments import holder
    from models_genesis.training.engines.model_settings import BUNDLE, check_config_settings

    metadata = check_bundle(folder)
    recorded: dict[str, Any] = {}
    carried: dict[str, Any] = {}
    if weights is not None:
        # training goes on with the network of the weights; inference and evaluation read their settings themselves
        recorded = trained_settings(weights.path)
        check_config_settings(recorded, read_json(folder / "configs" / "inference.json"), settings)
        carried = by_id({key: value for key, value in recorded.items() if key != BUNDLE})
        if follows_from_task(recorded):
            carried.pop("task_facts", None)  # also from another task that a user gives
        check_weights(weights.path, folder, {**carried, **settings})
    check_described(folder, metadata, {**carried, **settings})
    vendored = code == "vendored"
    texts = vendored_code(folder.parents[1]) if vendored else {}
    if vendored:
        own = (folder / "scripts").rglob("*.py")
        texts |= {path.relative_to(folder).as_posix(): rename(path.read_text(encoding="utf-8")) for path in own}
    configs = read_configs(folder, settings)
    shipped = shipped_weights(folder)
    ours = weights is not None and weights == shipped
    metadata = described_metadata(folder, metadata, configs["inference.json"], recorded, with_scores=ours)
    carried = {key: value for key, value in carried.items() if key not in settings}
    for key, value in not_following(configs["train.json"], carried).items():
        component, last = holder(configs["train.json"], key) or (configs["train.json"], key)
        component[last] = value
        if key.startswith("network_def#"):  # inference reads settings with the weights, but no argument of the network
            configs["inference.json"]["network_def"][last] = value
    for file, config in (portable_configs(configs) if vendored else configs).items():
        texts[f"configs/{file}"] = layout(config) + "\n"
    metadata = packed_metadata(metadata, provenance(folder.parents[1]), code)
    texts["configs/metadata.json"] = layout(metadata) + "\n"
    listed = large_files(folder, weights)
    if listed is not None:
        texts["large_files.json"] = (rename(layout(listed)) if vendored else layout(listed)) + "\n"
    readme = (folder / "docs" / "README.md").read_text(encoding="utf-8")
    readme = portable_readme(readme, folder.name, requirements(metadata), vendored)
    licence = (folder / "docs" / "data_license.txt").read_text(encoding="utf-8")
    separate = (listed or {}).get("licensed_separately", [])
    # the certificate of anybody's own weights names patients and files, and is not given away unasked
    certificate = weights.path.with_name(CERTIFICATE) if ours and weights is not None else None
    trained_under = read_json(certificate)["datalist"]["licence"] if certificate is not None else ""
    texts["docs/README.md"] = zoo_card(readme, folder.name, metadata, licence, separate, trained_under)
    files = {name: text.encode("utf-8") for name, text in texts.items()}
    plain = [folder / "LICENSE", folder / "configs" / "logging.conf", *folder.glob(SMALL_WEIGHTS)]
    plain += [path for path in (folder / "docs").rglob("*") if path.is_file() and path != folder / "docs/README.md"]
    files |= {path.relative_to(folder).as_posix(): path.read_bytes() for path in plain}
    if weights is not None and weights.path.stat().st_size <= MAX_WEIGHTS:
        files["models/model.pt"] = weights.path.read_bytes()
    if carried:
        files["models/model.json"] = weights.path.with_suffix(".json").read_bytes()  # type: ignore[union-attr]
    if certificate is not None:
        files[f"models/{CERTIFICATE}"] = certificate.read_bytes()
    return files


def write_zip(path: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Write files below one folder to a zip, whole or not at all, the same bytes for the same files.

    Args:
        path: the zip to write or replace.
        name: the folder.
        files: bytes by path below it.
    """
    temporary = path.with_name(f".tmp.{secrets.token_hex(4)}.{path.name}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(files):
                member = zipfile.ZipInfo(f"{name}/{file}", date_time=(1980, 1, 1, 0, 0, 0))
                member.create_system, member.external_attr = 3, 0o100644 << 16  # a plain file of Unix, on any system
                archive.writestr(member, files[file])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(path, text.encode())


def build(
    name: str,
    out: Path,
    weights: Weights | None = None,
    settings: Mapping[str, Any] | None = None,
    url: str = "",
    root: Path = BUNDLES,
    code: str = CODE[0],
) -> Package:
    """Pack one bundle, and write its checksum and its entry in ``model_info.json`` next to it.

    Args:
        name: the bundle.
        out: folder of the packages; made where it is missing.
        weights: trained weights that go with it; by default those that the repository has for it, if the settings are
            those that they were trained with.
        settings: keys of its configs that are set.
        url: folder on the web from which the packages will be downloaded, for ``model_info.json``.
        root: folder of the bundles.
        code: as for :func:`contents`.

    Returns:
        The package.

    Raises:
        FileNotFoundError: when the bundle or one of its files is missing.
        ValueError: when something in it is not as it must be.
    """
    if weights is None:
        weights = weights_for(root / name, settings or {})
    files = contents(root / name, settings or {}, weights, code)
    metadata = json.loads(files["configs/metadata.json"])
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}_v{metadata['version']}.zip"
    write_zip(path, name, files)
    write_text(path.with_name(path.name + ".sha256"), f"{sha256_of(path)}  {path.name}\n")
    info = out / "model_info.json"
    listed = read_json(info) if info.is_file() else {}
    source = f"{url.rstrip('/')}/{path.name}" if url else path.name
    listed[path.stem] = {"checksum": hashlib.sha1(path.read_bytes()).hexdigest(), "source": source}
    write_text(info, json.dumps(dict(sorted(listed.items())), indent=4) + "\n")
    shutil.copyfile(BUNDLES / "unpack.py", out / "unpack.py")
    return Package(path, name, metadata["version"], requirements(metadata), len(files))


def write_zoo_folders(
    names: Sequence[str], zoo: Path, settings: Mapping[str, Any] | None = None, code: str = CODE[1]
) -> list[Path]:
    """Write bundles and their unit tests to where they lie in the model zoo, each bundle whole or not at all.

    Args:
        names: the bundles.
        zoo: a folder, which may be a checkout of the model zoo.
        settings: keys of the configs that are set.
        code: as for :func:`contents`.

    Returns:
        The folders of the bundles.

    Raises:
        FileExistsError: when one of the bundles is there already; nothing was written then.
    """
    targets = [zoo / "models" / name for name in names]
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} exists: remove it, or give --zoo another folder")
    packed = [
        contents(BUNDLES / name, settings or {}, weights_for(BUNDLES / name, settings or {}), code) for name in names
    ]
    tests = zoo / "ci" / "unit_tests"
    for folder in (zoo / "models", tests):
        folder.mkdir(parents=True, exist_ok=True)
    for target, files in zip(targets, packed, strict=True):
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            for file, content in files.items():
                path = Path(temporary) / target.name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            os.rename(Path(temporary) / target.name, target)
    for file, text in unit_tests(names).items():
        write_text(tests / file, text)
    return targets


def parse_setting(text: str) -> tuple[str, Any]:
    """Read ``KEY=JSON``.

    Example:
        >>> parse_setting("features=[8, 16, 32, 64]")
        ('features', [8, 16, 32, 64])
    """
    key, separator, value = text.partition("=")
    try:
        return key, json.loads(value if separator else "")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=JSON, such as features=[8,16,32,64]") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the command line; None takes that of this process.

    Returns:
        0, or 2 after one line on stderr that says what was wrong.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"bundles to pack: {', '.join(bundle_names())}")
    parser.add_argument("--all", action="store_true", help="pack all bundles")
    parser.add_argument("--out", type=Path, help="folder of the packages")
    parser.add_argument("--weights", type=Path, help="trained weights of the one bundle named, a plain state dict")
    parser.add_argument("--weights-url", help="where they can be downloaded, needed above 25 MB")
    parser.add_argument(
        "--set",
        dest="settings",
        type=parse_setting,
        action="append",
        default=[],
        metavar="KEY=JSON",
        help="set a key of the configs, such as features=[8,16,32,64] of the weights' network",
    )
    parser.add_argument("--url", default="", help="folder on the web of the packages, for model_info.json")
    parser.add_argument(
        "--code",
        choices=CODE,
        help="carry the code in scripts/ (vendored, the default of --out), or pin models-genesis (package, of --zoo)",
    )
    parser.add_argument("--zoo", type=Path, help="folder, or checkout of the model zoo, for bundles and their tests")
    parser.add_argument("--pins", action="store_true", help="pack nothing, print what the bundles need for pip")
    options = parser.parse_args(arguments)
    names = bundle_names() if options.all else options.names
    if not names or (options.all and options.names):
        parser.error("name the bundles to pack, or give --all")
    if options.out is None and options.zoo is None and not options.pins:
        parser.error("--out DIR is needed")
    if options.zoo is not None and (options.out or options.weights):
        parser.error("--zoo goes with neither --out nor --weights: it takes what the repository has")
    if options.weights is not None and len(names) > 1:
        parser.error("--weights go with one bundle only")
    if options.weights_url is not None and options.weights is None:
        parser.error("--weights-url goes with --weights: it says where these can be downloaded")
    if options.url and options.out is None:
        parser.error("--url goes with --out: it says where these packages can be downloaded")
    try:
        if options.pins:
            print("\n".join(sorted({pin for name in names for pin in requirements(check_bundle(BUNDLES / name))})))
            return 0
        if options.zoo is not None:
            for target in write_zoo_folders(names, options.zoo, dict(options.settings), options.code or "package"):
                print(target)
            return 0
        weights = Weights(options.weights, options.weights_url) if options.weights is not None else None
        for name in names:
            code = options.code or "vendored"
            package = build(name, options.out, weights, dict(options.settings), options.url, code=code)
            print(f"{package.path}: {package.files} files, {package.path.stat().st_size / 1024**2:.1f} MiB")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
