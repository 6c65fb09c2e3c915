"""Optimises a network's graph for inference: removes layers without effect, folds BatchNorms, runs 3-D convolutions
with flat kernels as 2-D ones, and lets layers work in place."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .._recording import counting_macs, recording

# Types are matched exactly: a subclass may transform its weights (weight standardisation), and folding would be wrong.
_FOLDABLE_NORMS = {
    nn.Conv2d: (nn.BatchNorm2d, BatchNormAct2d),
    Conv2dSame: (nn.BatchNorm2d, BatchNormAct2d),
    nn.Conv3d: (nn.BatchNorm3d,),
}
"""Class of a convolution -> classes of norms that can be folded into it."""
_NO_EFFECT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
"""Modules without effect in eval mode."""
_ALLOCATES = (nn.Conv2d, nn.Conv3d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Linear)
"""Modules whose output is always a new tensor."""
_SUMS = (operator.add, operator.iadd, torch.add)
_IN_PLACE = (F.relu, F.silu)
"""Functions that take `inplace=`."""


class ConvReLU(nn.Conv2d):
    """A convolution and its ReLU in one call. In small networks at batch 1, module calls take a tenth of the time."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu_()


class _FlatConv3d(nn.Conv3d):
    """A 3-D convolution with a flat kernel that runs as a 2-D or 1-D one on CPUs, where torch's 3-D convolution is
    several times slower (benchmarks/video_depthwise.py).

    The clip is viewed in another shape, channels last, without a copy. Exported graphs and MAC counts have the 3-D
    convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        if recording() or counting_macs() or input.device.type != "cpu":
            return super().forward(input)
        return self.flat(input.contiguous(memory_format=torch.channels_last_3d))

    def flat(self, x: Tensor) -> Tensor:
        """The convolution of a clip (B, C, T, H, W) in channels-last memory format."""
        raise NotImplementedError


class InFrames(_FlatConv3d):
    """A kernel of length 1 in time, run as a 2-D convolution of each frame."""

    def flat(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        frames = x.transpose(1, 2).flatten(0, 1)
        sides = (self.stride[1:], self.padding[1:], self.dilation[1:])
        y = F.conv2d(frames, self.weight.squeeze(2), self.bias, *sides, self.groups)
        return y.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


class OverTime(_FlatConv3d):
    """A kernel of 1 x 1 pixels, run as a 1-D convolution over time; a depthwise one as a weighted sum of frames."""

    def flat(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        (kernel, *_), (padding, *_), (dilation, *_) = self.kernel_size, self.padding, self.dilation
        depthwise = self.groups == self.in_channels == self.out_channels
        if not depthwise or self.stride[0] > 1 or 2 * padding != dilation * (kernel - 1):
            sides = ((self.stride[0], 1), (padding, 0), (dilation, 1))
            y = F.conv2d(x.flatten(3), self.weight.squeeze(4), self.bias, *sides, self.groups)
            return y.unflatten(3, x.shape[3:])
        x = x.permute(0, 2, 3, 4, 1)
        weights = self.weight.flatten(1).t().contiguous()
        y = x * weights[kernel // 2] if self.bias is None else torch.addcmul(self.bias, x, weights[kernel // 2])
        for position, weight in enumerate(weights):
            offset = position * dilation - padding
            if 0 < offset < x.shape[1]:
                y[:, :-offset].addcmul_(x[:, offset:], weight)
            elif 0 < -offset < x.shape[1]:
                y[:, -offset:].addcmul_(x[:, :offset], weight)
        return y.permute(0, 4, 1, 2, 3)


def _flat_class(conv: nn.Conv3d) -> type[nn.Conv3d] | None:
    """The class that runs this convolution as a 2-D or 1-D one; None if its kernel is not flat."""
    if not isinstance(conv.padding, tuple) or conv.padding_mode != "zeros":
        return None
    if (conv.kernel_size[0], conv.stride[0], conv.padding[0]) == (1, 1, 0):
        return InFrames
    if (conv.kernel_size[1:], conv.stride[1:], conv.padding[1:]) == ((1, 1), (1, 1), (0, 0)):
        return OverTime
    return None


def norms_folded(module: nn.Module) -> int:
    """Number of BatchNorms folded into a convolution, which MAC counts as in the papers include."""
    return getattr(module, "_norms_folded", 0)


def fold(module: fx.GraphModule) -> None:
    """Optimise a graph in eval mode, in place. Its modules are replaced, not changed.

    Layers without effect are removed, each BatchNorm is folded into the convolution before it, each ReLU is merged with
    its convolution, and 3-D convolutions with flat kernels become 2-D ones. A BatchNorm is only folded if nothing else
    reads its convolution.

    `torch.fx.experimental.optimization.fuse` does less: it ignores timm's BatchNormAct2d and Conv2dSame, and is wrong
    if a convolution is called twice, or if several modules read its output.
    """
    modules, graph = dict(module.named_modules()), module.graph
    uses = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def kind(node: Any) -> type | None:
        return type(modules[node.target]) if isinstance(node, fx.Node) and node.op == "call_module" else None

    def set_module(node: fx.Node, replacement: nn.Module) -> None:
        modules[node.target] = replacement
        module.set_submodule(str(node.target), replacement)

    def remove(node: fx.Node) -> None:
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.erase_node(node)

    for node in list(graph.nodes):
        if kind(node) in _NO_EFFECT:
            remove(node)
    for node in list(graph.nodes):
        conv: Any = node.args[0] if node.args else None
        norms = _FOLDABLE_NORMS.get(kind(conv), ())
        if kind(node) not in (*norms, nn.ReLU) or not norms or len(conv.users) > 1 or uses[conv.target] > 1:
            continue
        layer = modules[node.target]
        if kind(node) in norms and uses[node.target] == 1 and layer.running_mean is not None:
            set_module(conv, _fused(modules[conv.target], layer))
            layer = getattr(layer, "act", nn.Identity())
            set_module(node, layer)
        if type(layer) is nn.ReLU and kind(conv) is nn.Conv2d:
            set_module(conv, _with_class(ConvReLU, modules[conv.target]))
            remove(node)
        elif type(layer) is nn.Identity:
            remove(node)
    for node in graph.nodes:
        if kind(node) is nn.Conv3d and (flat_class := _flat_class(modules[node.target])) is not None:
            set_module(node, _with_class(flat_class, modules[node.target]))
    _reuse_memory(graph, modules)
    module.delete_all_unused_submodules()
    graph.lint()
    module.recompile()


def _fused(conv: Any, norm: Any) -> nn.Module:
    """A convolution with the BatchNorm folded into it, marked for `norms_folded`."""
    fused: Any = fuse_conv_bn_eval(conv, norm)
    fused._norms_folded = norms_folded(conv) + 1
    return fused


def _with_class(kind: type[nn.Module], conv: nn.Module) -> nn.Module:
    """A copy of a convolution as an instance of another class, with shared weights."""
    converted: Any = copy.copy(conv)
    converted.__class__ = kind
    return converted


def _reuse_memory(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Let sums and activations work in place if their input is a new tensor that no other node reads. In video networks
    memory allocation takes a large part of the time."""

    def overwritable(node: Any) -> bool:
        """Whether a node's output may be overwritten by its only reader."""
        if not isinstance(node, fx.Node) or len(node.users) != 1:
            return False
        if node.op == "call_module":
            return isinstance(modules[str(node.target)], _ALLOCATES)
        return node.op == "call_function" and node.target in (*_SUMS, operator.mul, torch.mul, *_IN_PLACE)

    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _IN_PLACE and overwritable(node.args[0]):
            node.update_kwarg("inplace", True)
        elif node.target is operator.add and all(isinstance(arg, fx.Node) for arg in node.args):
            a, b = node.args
            if a is not b and (overwritable(a) or overwritable(b)):
                node.target, node.args = operator.iadd, (a, b) if overwritable(a) else (b, a)
