"""A network's graph made cheaper for inference: what does nothing removed, BatchNorms folded, 3-D convolutions of flat
kernels run as 2-D ones, layers in place."""

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

from .._recording import counted, recording

# Exact types: a subclass may treat its weights otherwise (weight standardisation), and folding would change its answer.
_NORMS_BEHIND = {
    nn.Conv2d: (nn.BatchNorm2d, BatchNormAct2d),
    Conv2dSame: (nn.BatchNorm2d, BatchNormAct2d),
    nn.Conv3d: (nn.BatchNorm3d,),
}
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_MAKES_NEW = (nn.Conv2d, nn.Conv3d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Linear)
"""Modules whose output is nobody else's tensor."""
_SUMS = (operator.add, operator.iadd, torch.add)
_IN_PLACE = (F.relu, F.silu)
"""Functions that take `inplace=`."""


class ConvReLU(nn.Conv2d):
    """A convolution and its ReLU in one call: at batch 1 the calls of so small a network are a tenth of its time."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu_()


class _FlatConv3d(nn.Conv3d):
    """A 3-D convolution of a flat kernel as what it is in two dimensions or one: on CPUs, where torch's own is several
    times slower (benchmarks/video_depthwise.py). The clip is seen in another shape, channels last, and not copied.
    Recorded graphs keep the 3-D convolution, and counts of MACs are of it."""

    def forward(self, input: Tensor) -> Tensor:
        if recording() or counted() or input.device.type != "cpu":
            return super().forward(input)
        return self.flat(input.contiguous(memory_format=torch.channels_last_3d))

    def flat(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), channels last."""
        raise NotImplementedError


class InFrames(_FlatConv3d):
    """A kernel of one frame: a 2-D convolution of all frames."""

    def flat(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        frames = x.transpose(1, 2).flatten(0, 1)
        sides = (self.stride[1:], self.padding[1:], self.dilation[1:])
        y = F.conv2d(frames, self.weight.squeeze(2), self.bias, *sides, self.groups)
        return y.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


class OverTime(_FlatConv3d):
    """A kernel of one pixel: a convolution over time, of each channel alone a sum of frames."""

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
            later = position * dilation - padding
            if 0 < later < x.shape[1]:
                y[:, :-later].addcmul_(x[:, later:], weight)
            elif 0 < -later < x.shape[1]:
                y[:, -later:].addcmul_(x[:, :later], weight)
        return y.permute(0, 4, 1, 2, 3)


def _flat(conv: nn.Conv3d) -> type[nn.Conv3d] | None:
    """A cheaper module that a convolution of a flat kernel can run as."""
    if not isinstance(conv.padding, tuple) or conv.padding_mode != "zeros":
        return None
    if (conv.kernel_size[0], conv.stride[0], conv.padding[0]) == (1, 1, 0):
        return InFrames
    if (conv.kernel_size[1:], conv.stride[1:], conv.padding[1:]) == ((1, 1), (1, 1), (0, 0)):
        return OverTime
    return None


def norms_folded(module: nn.Module) -> int:
    """How many BatchNorms were folded into a convolution of a graph: the papers' counts have them."""
    return getattr(module, "_norms_folded", 0)


def fold(module: fx.GraphModule) -> None:
    """Make a graph in eval mode cheaper, in place: modules are replaced, never changed.

    What does nothing is removed, each BatchNorm is folded into the convolution before it, each ReLU joins its
    convolution, and 3-D convolutions of flat kernels become 2-D ones. A BatchNorm that follows something else than one
    convolution of its own stays.

    `torch.fx.experimental.optimization.fuse` does less: it passes by timm's BatchNormAct2d and Conv2dSame, and is wrong
    where a convolution is called twice, before two BatchNorms or before one and something else.
    """
    modules, graph = dict(module.named_modules()), module.graph
    uses = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def kind(node: Any) -> type | None:
        return type(modules[node.target]) if isinstance(node, fx.Node) and node.op == "call_module" else None

    def put(node: fx.Node, replacement: nn.Module) -> None:
        modules[node.target] = replacement
        module.set_submodule(str(node.target), replacement)

    def drop(node: fx.Node) -> None:
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.erase_node(node)

    for node in list(graph.nodes):
        if kind(node) in _IDLE:
            drop(node)
    for node in list(graph.nodes):
        conv: Any = node.args[0] if node.args else None
        norms = _NORMS_BEHIND.get(kind(conv), ())
        if kind(node) not in (*norms, nn.ReLU) or not norms or len(conv.users) > 1 or uses[conv.target] > 1:
            continue
        layer = modules[node.target]
        if kind(node) in norms and uses[node.target] == 1 and layer.running_mean is not None:
            put(conv, _fused(modules[conv.target], layer))
            layer = getattr(layer, "act", nn.Identity())
            put(node, layer)
        if type(layer) is nn.ReLU and kind(conv) is nn.Conv2d:
            put(conv, _as(ConvReLU, modules[conv.target]))
            drop(node)
        elif type(layer) is nn.Identity:
            drop(node)
    for node in graph.nodes:
        if kind(node) is nn.Conv3d and (flat := _flat(modules[node.target])) is not None:
            put(node, _as(flat, modules[node.target]))
    _reuse_memory(graph, modules)
    module.delete_all_unused_submodules()
    graph.lint()
    module.recompile()


def _fused(conv: Any, norm: Any) -> nn.Module:
    fused: Any = fuse_conv_bn_eval(conv, norm)
    fused._norms_folded = norms_folded(conv) + 1
    return fused


def _as(kind: type[nn.Module], conv: nn.Module) -> nn.Module:
    """The same convolution, its weights shared, as one of another class."""
    other: Any = copy.copy(conv)
    other.__class__ = kind
    return other


def _reuse_memory(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Let sums and layers write into what they read, where that is new and nobody else reads it: for networks of
    video fresh memory is a large part of the time."""

    def spare(node: Any) -> bool:
        """Whether a node's output may be overwritten by its only reader."""
        if not isinstance(node, fx.Node) or len(node.users) != 1:
            return False
        if node.op == "call_module":
            return isinstance(modules[str(node.target)], _MAKES_NEW)
        return node.op == "call_function" and node.target in (*_SUMS, operator.mul, torch.mul, *_IN_PLACE)

    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _IN_PLACE and spare(node.args[0]):
            node.update_kwarg("inplace", True)
        elif node.target is operator.add and all(isinstance(arg, fx.Node) for arg in node.args):
            a, b = node.args
            if a is not b and (spare(a) or spare(b)):
                node.target, node.args = operator.iadd, (a, b) if spare(a) else (b, a)
