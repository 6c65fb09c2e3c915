"""Packs linear weights once for the CPU's matrix units, instead of at each call."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


def prepack(model: nn.Module, *, rows: int = 1024) -> nn.Module:
    """A copy of the model with linear weights in the layout of the CPU's matrix product. For inference only.

    A plain linear layer converts its weights to that layout at each call. This constant cost reduces the gain from
    fewer tokens, most of all in bf16 on CPUs with matrix units. Packing pays it once. Pack the model, then sieve it:
    `sieve(prepack(model), recipe)`.

    Args:
        model: on the CPU, in fp32 or bf16. It is not changed. The copy has the same classes and shares its tensors, and
            holds the packed weights too: linear layers take twice the memory. Pack again after changing weights.
        rows: batch size times tokens of a typical call, for which the layout is chosen; others work too.

    Raises:
        InputError: weights on another device or in another precision, or in bf16 on a processor without instructions
            for it; or oneDNN is missing.
    """
    if not torch.backends.mkldnn.is_available():
        raise InputError("This build of torch has no oneDNN, which packs the weights; run the model unpacked.")
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    packed = copy.deepcopy(model, memo=shared)
    for parent in list(packed.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child, rows))
    return packed


def packs_bf16() -> bool:
    """Whether this processor multiplies packed weights in bf16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Linear):
    """A linear layer that computes with its packed weight; `weight` and `bias` stay those of the original."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            raise InputError(
                f"prepack() is for fp32 or bf16 weights on the CPU, not {weight.dtype} on {weight.device}: "
                "move or convert the model first."
            )
        if weight.dtype == torch.bfloat16 and not packs_bf16():
            raise InputError(
                "This processor has no instructions for bf16 that the packed layout needs (AVX-512 or "
                "AVX-NE-CONVERT): pack the model in fp32, or run it unpacked in bf16."
            )
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad):
            raise InputError(
                "Packed weights have no gradient: call the model under torch.no_grad() or inference_mode()."
            )
        if input.dtype != self.weight.dtype:  # under autocast, which does not support packed weights
            return F.linear(input, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, packed"
