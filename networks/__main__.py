# SPDX-License-Identifier: Apache-2.0
"""Command line tools for weights: ``python -m models_genesis.networks fetch|convert|inspect|nnunet-...``."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from monai.apps.utils import download_url

from . import nnunet
from .genesis_unet import GenesisUNet
from .weight_files import read_weights, save_weights
from .weight_inspection import count_parameters, genesis_architecture
from .weight_report import WeightReport
from .weights import load_pretrained

LICENCE_NOTE = (
    "Licence: the original's weights are for non-commercial use only, and a converted file stays under that licence.\n"
    "Neither file may be handed on with this project or with what you make of it."
)
RELEASED_PARAMETERS = 19_073_665


def convert(original: Path, target: Path, force: bool = False) -> WeightReport:
    """Turn the original's weight file into a plain state dict of :class:`GenesisUNet`.

    Args:
        original: ``Genesis_Chest_CT.pt``, or any file with the original's names.
        target: the file to write.
        force: replace ``target`` where it exists.

    Returns:
        The report; every tensor of the file and of the network is matched.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: ``target`` exists and ``force`` is not given.
        ValueError: not a weight file with the original's names, a tensor is left over, or both paths are one file.
    """
    if target.exists() and original.exists() and target.samefile(original):
        raise ValueError(f"{target} is the file to convert: name another one to write")
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists: give --force to replace it")
    file = read_weights(original)
    if not file.original:
        raise ValueError(
            f"{original} has not the original's names: expected such as module.down_tr64.ops.0.conv1.weight, "
            f"found {next(iter(file.tensors))} ({file.layout})"
        )
    if file.untranslated:
        raise ValueError(f"{original} holds names that the original network has not: {', '.join(file.untranslated)}")
    architecture = genesis_architecture(file.tensors)
    if architecture is None:
        raise ValueError(
            f"{original} is not complete: expected encoder, decoder and head, found {sorted(file.tensors)}"
        )
    network = GenesisUNet(**architecture[1])
    report = load_pretrained(network, original, strict=True)
    save_weights(network.state_dict(), target)
    return report


def fetch(url: str, target: Path, sha256: str | None = None, force: bool = False) -> tuple[WeightReport, str]:
    """Download the original's released weights, check that they are the released network's, and convert them.

    Args:
        url: where the authors offer ``Genesis_Chest_CT.pt``; ``https://``, ``http://`` or ``file://``.
        target: the file to write.
        sha256: the expected checksum of the download; None only reports it.
        force: replace ``target`` where it exists.

    Returns:
        The report of the conversion, and the SHA-256 of what was downloaded.

    Raises:
        FileExistsError: ``target`` exists and ``force`` is not given.
        OSError: the download failed.
        ValueError: another kind of URL, another checksum, or not the weights of the released network.
    """
    if not url.lower().startswith(("https://", "http://", "file://")):
        raise ValueError(f"{url}: expected a URL with https://, http:// or file://")
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists: give --force to replace it")
    with tempfile.TemporaryDirectory() as folder:
        original, converted = Path(folder) / "Genesis_Chest_CT.pt", Path(folder) / "converted.pt"
        try:
            download_url(url, original, hash_val=sha256, hash_type="sha256", progress=sys.stderr.isatty())
        except RuntimeError as error:  # MONAI's word for a server that says no
            raise OSError(f"{url}: {error}") from error
        report = convert(original, converted)
        network = read_weights(converted).tensors
        if count_parameters(network) != RELEASED_PARAMETERS:
            raise ValueError(
                f"{url}: expected the released network of {RELEASED_PARAMETERS:,} parameters, "
                f"found {count_parameters(network):,}"
            )
        save_weights(network, target)
        return report, hashlib.sha256(original.read_bytes()).hexdigest()


def describe(path: Path) -> str:
    """Say what a weight file holds.

    Args:
        path: the file.

    Returns:
        Some lines for reading: layout, number of tensors and parameters, and the network where it is one of ours.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read as weights.
    """
    file = read_weights(path)
    architecture = genesis_architecture(file.tensors)
    network = "not one of models_genesis.networks"
    if architecture is not None:
        network = f"{architecture[0]}({', '.join(f'{name}={value}' for name, value in architecture[1].items())})"
    lines = [
        f"file: {path}",
        f"layout: {file.layout}",
        f"tensors: {len(file.tensors)}, parameters: {count_parameters(file.tensors):,}",
        f"network: {network}",
    ]
    if architecture is None:
        lines += [f"  {name} {tuple(tensor.shape)}" for name, tensor in file.tensors.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input gives a message and exit code 2.

    Args:
        arguments: the words after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m models_genesis.networks", description="Tools for weight files.")
    commands = parser.add_subparsers(dest="command", required=True)
    converter = commands.add_parser("convert", help="turn the original Genesis_Chest_CT.pt into a bundle's model.pt")
    converter.add_argument("original", type=Path, help="the original's file, as downloaded")
    converter.add_argument("target", type=Path, help="the file to write, such as model.pt")
    converter.add_argument("--force", action="store_true", help="replace the target where it exists")
    fetcher = commands.add_parser("fetch", help="download the original's released weights, check and convert them")
    fetcher.add_argument("url", help="where their authors offer Genesis_Chest_CT.pt")
    fetcher.add_argument("target", type=Path, help="the file to write, such as model.pt")
    fetcher.add_argument("--sha256", help="expected checksum of the download")
    fetcher.add_argument("--force", action="store_true", help="replace the target where it exists")
    fetcher.add_argument("--accept-licence", action="store_true", help="you know the authors' terms and keep to them")
    inspector = commands.add_parser("inspect", help="say what a weight file holds")
    inspector.add_argument("file", type=Path, help="any weight file")
    nnunet.add_commands(commands)
    options = parser.parse_args(arguments)
    try:
        if hasattr(options, "run"):
            print(options.run(options))
        elif options.command == "inspect":
            print(describe(options.file))
        elif options.command == "fetch":
            if not options.accept_licence:
                raise ValueError(f"--accept-licence is needed to download these weights.\n{LICENCE_NOTE}")
            report, digest = fetch(options.url, options.target, options.sha256, options.force)
            print(f"{report}\nSHA-256 of the download: {digest}\nwritten: {options.target}\n{LICENCE_NOTE}")
        else:
            print(convert(options.original, options.target, options.force))
            print(f"written: {options.target}\n{LICENCE_NOTE}")
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
