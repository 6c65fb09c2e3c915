"""What `fold` makes of networks that read video: flat convolutions, memory written over, BatchNorms still counted."""

from __future__ import annotations

import copy
import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.significance.conftest import shake
from tokensieve.data.inputs import InputSpec
from tokensieve.measure import macs
from tokensieve.significance.fold import InFrames, OverTime, fold, norms_folded
from tokensieve.significance.proposal import named_video_proposal
from tokensieve.zoo import video_proposal


def clip(channels: int, frames: int = 5, side: int = 9) -> Tensor:
    return torch.randn(2, channels, frames, side, side + 1, generator=torch.Generator().manual_seed(channels))


def folded(module: nn.Module) -> fx.GraphModule:
    graph = fx.symbolic_trace(copy.deepcopy(module).eval())
    fold(graph)
    return graph


FLAT: list[tuple[type, dict[str, Any]]] = [
    (InFrames, {"kernel_size": 1}),
    (InFrames, {"kernel_size": 1, "stride": (1, 2, 2), "bias": False}),
    (InFrames, {"kernel_size": (1, 3, 3), "stride": (1, 2, 1), "padding": (0, 1, 1), "groups": 2}),
    (InFrames, {"kernel_size": (1, 3, 2), "dilation": (1, 2, 1), "groups": 4}),
    (OverTime, {"kernel_size": (3, 1, 1), "padding": (1, 0, 0)}),
    (OverTime, {"kernel_size": (3, 1, 1), "stride": (2, 1, 1), "bias": False}),
    (OverTime, {"kernel_size": (5, 1, 1), "padding": (2, 0, 0), "groups": 4}),
    (OverTime, {"kernel_size": (3, 1, 1), "padding": (6, 0, 0), "dilation": (6, 1, 1), "groups": 4, "bias": False}),
    (OverTime, {"kernel_size": (2, 1, 1), "padding": (1, 0, 0), "groups": 4}),
    (nn.Conv3d, {"kernel_size": 3, "padding": 1}),
    (nn.Conv3d, {"kernel_size": (1, 3, 3), "padding": "same"}),
    (nn.Conv3d, {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "padding_mode": "circular"}),
    (nn.Conv3d, {"kernel_size": (1, 3, 3), "stride": (2, 1, 1)}),
]


@pytest.mark.parametrize(("kind", "settings"), FLAT, ids=lambda value: str(value)[:60])
def test_a_flat_convolution_answers_as_the_3d_one(kind: type, settings: dict[str, Any]) -> None:
    conv = nn.Conv3d(4, 4, **settings).eval()
    graph, some = folded(nn.Sequential(conv)), clip(4)
    assert type(graph.get_submodule("0")) is kind
    for given in (some, some.to(memory_format=torch.channels_last_3d)):
        torch.testing.assert_close(graph(given), conv(some), atol=1e-5, rtol=1e-5)


def test_recorded_graphs_and_counts_are_of_the_3d_convolution() -> None:
    conv = nn.Conv3d(4, 4, (5, 1, 1), padding=(2, 0, 0), groups=4).eval()
    graph, spec = folded(nn.Sequential(conv)), InputSpec((4, 5, 9, 10), "CTHW")
    assert macs(graph, spec) == macs(conv, spec) == 5 * 4 * 5 * 9 * 10
    called = torch.export.export(graph, (clip(4),)).graph.nodes
    assert [str(node.target) for node in called if "conv" in str(node.target)] == ["aten.conv3d.default"]


class Sums(nn.Module):
    """Sums and activations of what is new, of what somebody else reads too, and of the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 1)
        self.other = nn.Conv3d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = F.relu(y) + y  # the convolution is read twice: neither may write over it
        own = F.silu(self.other(z))
        return F.relu(x + own) + F.relu(x)


def test_only_memory_that_nobody_else_reads_is_written_over() -> None:
    model, some = Sums().eval(), clip(3)
    graph, before = folded(model), some.clone()
    with torch.no_grad():
        torch.testing.assert_close(graph(some), model(some))
        assert torch.equal(some, before)
    targets = [node.target for node in graph.graph.nodes]
    assert operator.iadd in targets
    in_place = [bool(node.kwargs.get("inplace")) for node in graph.graph.nodes if node.target in (F.relu, F.silu)]
    assert in_place == [False, True, True, False]


def test_a_proposal_by_name_answers_as_the_network_and_costs_as_published() -> None:
    torch.manual_seed(1)
    proposal = named_video_proposal("x3d_s", pretrained=False)
    torch.manual_seed(1)
    net, some = shake(video_proposal("x3d_s")), torch.randn(1, 3, 4, 64, 64)
    graph = folded(net)
    with torch.no_grad():
        torch.testing.assert_close(graph(some), net(some), atol=1e-4 * float(net(some).abs().max()), rtol=1e-4)
    kinds = [type(part) for part in proposal.features.modules()]
    assert nn.BatchNorm3d not in kinds
    assert kinds.count(OverTime) == 1
    assert sum(norms_folded(part) for part in proposal.modules()) == 1 + 3 * 26 + 4 + 1
    spec = InputSpec((3, 8, 160, 160), "CTHW")
    assert macs(proposal, spec) == macs(net, spec)
    assert macs(proposal, spec, fvcore_compat=True) == macs(net, spec, fvcore_compat=True)
