"""Which attention kernels torch selected in a call."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import torch
from torch.profiler import ProfilerActivity, profile

from .pair import check_call

_DISPATCHED = re.compile(r"aten::_scaled_dot_product_(?:attention_(math)|(\w+?)_attention)")


@torch.no_grad()
def attention_kernels(call: Callable[[], object]) -> tuple[str, ...]:
    """Names of the kernels to which `scaled_dot_product_attention` dispatched during a call, sorted.

    `flash`, `efficient` and `cudnn` are fused; `math` computes the whole attention matrix. Empty if attention is
    computed without that function.
    """
    check_call(call, "attention_kernels")
    with profile(activities=[ProfilerActivity.CPU]) as record:  # the dispatcher runs on the CPU on every device
        call()
    matches = (_DISPATCHED.match(event.name()) for event in record.profiler.kineto_results.events())
    return tuple(sorted({match[1] or match[2] for match in matches if match}))


def lost_attention(before: Collection[str], after: Collection[str]) -> bool:
    """Whether the kernels were all fused before, and are not all fused after (both from `attention_kernels`)."""
    return bool(before) and "math" not in before and "math" in after
