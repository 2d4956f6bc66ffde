# SPDX-License-Identifier: Apache-2.0
"""``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of our networks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from monai.utils import min_version, optional_import
from torch import nn

from .pretrained_config import HEADER, NetworkConfig, arguments_of, config_text, kept_settings, read_config
from .pretrained_files import CONFIG, WEIGHTS, find_files, hub_library
from .weight_container import non_finite
from .weight_files import atomic_save, read_weights, save_safetensors
from .weight_names import RESIZED, bare_names
from .weight_report import WeightReport
from .weights import load_pretrained

if TYPE_CHECKING:
    from huggingface_hub import PyTorchModelHubMixin
else:
    PyTorchModelHubMixin, _HAS_HUB = optional_import(
        "huggingface_hub", "0.34", min_version, name="PyTorchModelHubMixin"
    )
    if not _HAS_HUB:

        class PyTorchModelHubMixin:
            """Stands in where ``huggingface_hub`` is missing; files and folders load without it."""

            def __init_subclass__(cls, **_: Any) -> None:
                super().__init_subclass__()

            def push_to_hub(self, *_: Any, **__: Any) -> str:
                """Say what is missing."""
                hub_library()
                raise ImportError("expected huggingface_hub 0.34 or later: pip install 'models-genesis[hub]'")


__all__ = ["PretrainedMixin"]

logger = logging.getLogger(__name__)

T = TypeVar("T", bound="PretrainedMixin")

_FIXED = ("spatial_dims", "features")  # another value is another network
_OUTPUTS = {"GenesisUNet": "out_channels", "GenesisClassifier": "num_classes"}
NETWORKS: dict[str, type[nn.Module]] = {}
"""The networks that can be told from weights, by name; each enters itself as it is defined."""

_ABOVE_ENCODER = ("decoder.", "head.", "hidden.", "classes.")

CARD = """---
{{ card_data }}
---

A network of [Models Genesis for MONAI](https://arxiv.org/abs/2004.07882), to be loaded by

```python
from models_genesis.networks import {{ network }}

network = {{ network }}.from_pretrained("{{ repo_id | default("OWNER/NAME", true) }}")
```

`config.json` has its architecture and, under `model_settings`, the preprocessing that it was trained with.
Research use; not for diagnosis.
"""


class PretrainedMixin(
    PyTorchModelHubMixin,
    library_name="models_genesis",
    paper_url="https://arxiv.org/abs/2004.07882",
    model_card_template=CARD,
    tags=["monai", "medical", "3d"],
):
    """Loading and saving in one line, in the form of ``huggingface_hub.PyTorchModelHubMixin`` (Apache-2.0).

    A saved network is ``model.safetensors`` and ``config.json``. Local files and folders need no ``huggingface_hub``.
    Loaded networks have two attributes more: ``weight_report``, what became of each tensor, and ``model_settings``, the
    preprocessing that the weights were trained with.
    """

    if TYPE_CHECKING:  # at run time TorchScript would read these
        architecture: Mapping[str, Any]
        weight_report: WeightReport
        model_settings: Mapping[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Enter a network of :data:`_OUTPUTS` in :data:`NETWORKS`."""
        super().__init_subclass__(**kwargs)
        if cls.__name__ in _OUTPUTS and issubclass(cls, nn.Module):
            NETWORKS[cls.__name__] = cls

    @classmethod
    def from_pretrained(
        cls: type[T],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        filename: str | None = None,
        map_location: str | torch.device = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        endpoint: str | None = None,
        **overrides: Any,
    ) -> T:
        """Make the network that weights were trained in, with its weights, in evaluation mode.

        Width, channels and classes are those of the weights; activation, norm and preprocessing those of
        ``config.json`` or ``model.json`` next to them. Every tensor has to match. Fresh parts have to be requested:
        another ``out_channels``, ``num_classes`` or ``hidden_channels`` gives a fresh head, another ``in_channels``
        adapts the first convolution; of the task's settings, which are of the old network, the modality is kept then.
        ``out_channels`` or ``num_classes`` also takes the encoder from a
        :class:`GenesisClassifier` or :class:`GenesisUNet`, the rest is fresh then.

        Args:
            pretrained_model_name_or_path: a file of weights (``model.safetensors``, a bundle's ``model.pt``, the
                original's ``Genesis_Chest_CT.pt``); a folder of one (a bundle's or its ``ckpt_dir``, what
                :meth:`save_pretrained` wrote); or a repository ``owner/name`` of the Hugging Face hub.
            filename: the weights' name in folder or repository, where it is not one of these.
            map_location: device of the network.
            revision: branch, tag or commit of the repository.
            token: for private repositories.
            cache_dir: cache of the hub; by default its own, see ``HF_HOME``.
            force_download: download again.
            local_files_only: use the cache alone, as ``HF_HUB_OFFLINE=1`` does.
            endpoint: another server of the hub's protocol, as ``HF_ENDPOINT`` does.
            overrides: arguments of the network that shall differ from those of the weights.

        Returns:
            The network.

        Raises:
            FileNotFoundError: there is nothing of that name.
            ValueError: the weights do not fit, contradict their config, are damaged, or are of another network.
            TypeError: an override is not an argument of the network.
            ImportError: a package is missing; the message says which.

        Example:
            >>> import tempfile
            >>> from models_genesis.networks import GenesisClassifier, GenesisUNet
            >>> folder = tempfile.mkdtemp()
            >>> GenesisUNet(features=(4, 8)).save_pretrained(folder)
            >>> GenesisUNet.from_pretrained(folder, out_channels=3).head.out_channels
            3
            >>> GenesisClassifier.from_pretrained(folder, num_classes=2, hidden_channels=16).weight_report.summary[-44:]
            '28 matched, 0 adapted, 18 skipped, 4 missing'
        """
        _check_overrides(cls, overrides)
        hub_options = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "endpoint": endpoint,
        }
        files = find_files(pretrained_model_name_or_path, filename, **hub_options)
        config = read_config(files, read_weights(files.weights), NETWORKS)
        network, report = _build(cls, config, overrides, files.weights)
        transferred = bool(report.adapted or report.skipped or report.missing)
        settings = kept_settings(config.settings) if transferred else dict(config.settings)
        network.weight_report, network.model_settings = report, settings
        cast(nn.Module, network).to(map_location).eval()
        return network

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        config: None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_options: Any,
    ) -> str | None:
        """Write ``model.safetensors``, ``config.json`` and, with ``huggingface_hub``, a ``README.md`` if there is none.

        Files appear whole. The config is in the header of the weights too, so that the one file is complete and never
        disagrees with the other unnoticed.

        Args:
            save_directory: the folder; made where it is missing.
            repo_id: the repository, for ``push_to_hub``; by default the folder's name.
            push_to_hub: upload as well.
            config: is the network's own; the argument is ``push_to_hub``'s.
            model_card_kwargs: values for the template of the model card.
            push_options: of ``push_to_hub``.

        Returns:
            The commit's address where it was uploaded.

        Raises:
            TypeError: an argument of the network, such as a function for the activation, is nothing that JSON has.
            ValueError: a ``config``, or numbers that are not finite.
        """
        if config is not None:
            raise ValueError(f"config: expected None, as it is that of the network, found {config}")
        folder = Path(save_directory)
        self._save_pretrained(folder)
        if hasattr(self, "generate_model_card") and not (folder / "README.md").exists():
            card = {"network": _kind(type(self)), "repo_id": repo_id} | (model_card_kwargs or {})
            content = str(self.generate_model_card(**card)).encode()
            atomic_save(lambda file: file.write(content), folder / "README.md")
        if push_to_hub:
            return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_options)
        return None

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload weights, config and model card in one commit; the repository is made where it is missing.

        Args:
            repo_id: ``owner/name``.
            options: of ``huggingface_hub.PyTorchModelHubMixin.push_to_hub``: ``private``, ``token``, ``branch``,
                ``commit_message``, ``create_pr`` and others.

        Returns:
            The commit's address.

        Raises:
            ImportError: ``huggingface_hub`` is not installed.
        """
        if "original Models Genesis" in getattr(getattr(self, "weight_report", None), "layout", ""):
            logger.warning("these weights began as the original's, which are licensed for non-commercial use only")
        card = {"repo_id": repo_id} | (options.pop("model_card_kwargs", None) or {})
        return super().push_to_hub(repo_id, model_card_kwargs=card, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write weights and config."""
        text = config_text(_kind(type(self)), self.architecture, getattr(self, "model_settings", {}))
        state = cast(nn.Module, self).state_dict()
        if wrong := non_finite(state):
            raise ValueError(f"{save_directory}: {wrong}, expected finite weights to save")
        tensors = dict(zip(bare_names(state), state.values(), strict=True))
        save_safetensors(tensors, save_directory / WEIGHTS, {HEADER: text})
        atomic_save(lambda file: file.write(f"{text}\n".encode()), save_directory / CONFIG)


def _kind(network: type) -> str:
    """Give which of the networks a class is, or is made from."""
    return next(each.__name__ for each in network.__mro__ if each.__name__ in _OUTPUTS)


def _check_overrides(network: type, overrides: Mapping[str, Any]) -> None:
    known = arguments_of(network)
    if unknown := sorted(set(overrides) - set(known)):
        raise TypeError(
            f"from_pretrained: expected arguments of {network.__name__} ({', '.join(known)}), found {unknown}"
        )


def _build(
    make: Callable[..., T], config: NetworkConfig, overrides: Mapping[str, Any], weights: Path
) -> tuple[T, WeightReport]:
    """Make the network and load the weights, with no more left over than the overrides explain."""
    assert isinstance(make, type)
    kind = _kind(make)
    for name in _FIXED:
        if name in overrides and _plain(overrides[name]) != _plain(config.shape[name]):
            flattened = name == "spatial_dims" and overrides[name] == 2
            hint = "; load_pretrained with kernel_slice_axis takes the centre slice of each kernel" if flattened else ""
            raise ValueError(
                f"{weights}: expected {name}={config.shape[name]}, which the weights have, found {name}="
                f"{overrides[name]}: no tensor of another would fit{hint}"
            )
    changed = [name for name in RESIZED if name in overrides and overrides[name] != config.shape.get(name)]
    fresh = tuple(prefix for name in changed for prefix in RESIZED[name])
    if config.network != kind:
        if _OUTPUTS[kind] not in overrides:
            raise ValueError(
                f"{weights}: expected a {kind}, found a {config.network}; {_OUTPUTS[kind]}=... takes its encoder and "
                "leaves the rest fresh"
            )
        fresh += _ABOVE_ENCODER
    known = arguments_of(make)
    network = make(**{name: value for name, value in config.arguments.items() if name in known} | dict(overrides))
    report = load_pretrained(cast(nn.Module, network), weights, strict=not fresh)
    left = report.adapted + report.skipped + report.missing
    if unexplained := [name for name in left if not name.startswith(fresh)]:
        raise ValueError(
            f"every tensor but those of {fresh} has to match, found {unexplained[:5]} left over:\n{report}"
        )
    return network, report


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
