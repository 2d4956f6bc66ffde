# SPDX-License-Identifier: Apache-2.0
"""Which convolutions stand before a norm alone: the Genesis networks, MONAI's, and layers made to mislead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, UNet
from torch import Tensor, nn

from models_genesis.networks import GenesisClassifier, GenesisUNet
from models_genesis.networks.norm_pairs import find_norm_pairs

WHY = {
    "view": "its output does not go into a batch or instance norm",
    "skipped": "its output is used by more than a norm",
    "returned": "its output is used by more than a norm",
    "twice": "it runs 2 times in a forward pass",
    "shared_norm": "its norm norms.shared_norm runs 2 times in a forward pass",
    "tied": "it shares its parameters with another layer",
    "tied_too": "it shares its parameters with another layer",
    "computed": "its weight is computed from other parameters",
    "parametrised": "ParametrizedConv2d is not a plain convolution",
    "hooked": "it has hooks, which may change its weight or output",
    "trained": "its output goes elsewhere in training",
    "grouped": "its output does not go into a batch or instance norm",
    "activated": "its output does not go into a batch or instance norm",
    "unused": "it runs 0 times in a forward pass",
    "standardised": "Standardised is not a plain convolution",
}


class Standardised(nn.Conv2d):
    """A weight of mean 0 and variance 1, whatever its scale: rescaling would change bias against kernel."""

    def forward(self, input: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return self._conv_forward(input, weight, self.bias)


class Misleading(nn.Module):
    """Each way in which a norm may follow a convolution without dividing its scale out, and one that does."""

    def __init__(self) -> None:
        super().__init__()
        kinds: dict[str, Callable[..., nn.Module]] = {"standardised": Standardised}
        self.layers = nn.ModuleDict({name: kinds.get(name, nn.Conv2d)(2, 2, 1) for name in [*WHY, "good"]})
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(2) for name in [*WHY, "good"]})
        self.norms["grouped"] = nn.GroupNorm(1, 2)
        self.norms["good"] = nn.InstanceNorm2d(2)
        self.layers["tied_too"].weight = self.layers["tied"].weight
        nn.utils.spectral_norm(self.layers["computed"])
        nn.utils.parametrizations.weight_norm(self.layers["parametrised"])
        self.layers["hooked"].register_forward_hook(lambda module, args, output: output + 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layers, norms = self.layers, self.norms
        x = norms["view"](layers["view"](x)[:])
        skipped = layers["skipped"](x)
        x = norms["skipped"](skipped) + skipped
        returned = layers["returned"](x)
        x = norms["returned"](returned)
        x = norms["twice"](layers["twice"](layers["twice"](x)))
        x = norms["shared_norm"](norms["shared_norm"](layers["shared_norm"](x)))
        for name in ("tied", "tied_too", "computed", "parametrised", "hooked", "grouped", "standardised"):
            x = norms[name](layers[name](x))
        x = norms["activated"](layers["activated"](x).relu())
        trained = layers["trained"](x)
        x = norms["trained"](trained)
        if self.training:
            x = x + trained.mean()
        good = layers["good"](x)
        assert good.shape == x.shape and good.ndim == 4 and good.size(0) == 2  # shapes are not uses of the values
        return norms["good"](good), returned


def test_layers_that_mislead_are_left_alone_and_say_why() -> None:
    pairs, reasons = find_norm_pairs(Misleading())
    assert pairs == {"layers.good": "norms.good"}
    assert reasons == {f"layers.{name}": reason for name, reason in WHY.items()}


def pairs_of(features: int, levels: int, decoder: bool) -> dict[str, str]:
    """Each level has two pairs; upsampling and head have none."""
    owners = [f"encoder.levels.{level}" for level in range(levels)]
    owners += [f"decoder.levels.{level}.merge" for level in range(levels - 1)] if decoder else []
    return {f"{owner}.conv{number}": f"{owner}.norm{number}" for owner in owners for number in (1, 2)}


@pytest.mark.parametrize("arguments", [{}, {"norm": "instance"}, {"batch_statistics": True}, {"spatial_dims": 2}])
def test_genesis_networks(arguments: dict) -> None:
    pairs, reasons = find_norm_pairs(GenesisUNet(features=(4, 6, 8), use_checkpointing=True, **arguments))
    assert pairs == pairs_of(4, 3, decoder=True)
    assert set(reasons) == {"decoder.levels.0.upsample", "decoder.levels.1.upsample", "head"}
    classifier = GenesisClassifier(features=(4, 6, 8), hidden_channels=4, **arguments)
    assert find_norm_pairs(classifier) == (pairs_of(4, 3, decoder=False), {})


@pytest.mark.parametrize(
    ("network", "count"),
    [
        # two norms a block and one a residual branch of a block that strides: input, two downsamplings, two upsamplings
        (DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 6, 8], norm_name="batch", res_block=True), 13),
        (BasicUNet(2, 1, 2, (4, 4, 8, 8, 16, 4)), 18),  # nine pairs of convolutions
        (UNet(2, 1, 2, (4, 8, 16), (2, 2), num_res_units=0), 4),  # three down, one up; the last layer has no norm
        (SegResNet(2, 8, 1, 2), 0),  # group norm, and before the convolution
    ],
)
def test_networks_of_monai(network: nn.Module, count: int) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random_state = torch.get_rng_state()
    pairs, reasons = find_norm_pairs(network)
    assert len(pairs) == count
    convolutions = {name for name, module in network.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}
    assert set(pairs) | set(reasons) == convolutions and not set(pairs) & set(reasons)
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_network_that_cannot_be_followed_has_no_pairs_and_says_why() -> None:
    class ByValue(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.mean().item() > 0 else x  # what it does depends on the values

    network = ByValue(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    modes = [module.training for module in network.modules()]
    pairs, reasons = find_norm_pairs(network)
    assert pairs == {} and "the network cannot be followed (RuntimeError: Tensor.item() cannot" in reasons["0"]
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    compiled = nn.Sequential(torch.compile(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))))
    assert set(find_norm_pairs(compiled)[1].values()) == {"parts of the network are compiled and cannot be followed"}
    # compiled or wrapped as a whole, it is the network inside that is followed
    assert find_norm_pairs(nn.DataParallel(torch.compile(network[:2])))[0] == {}
