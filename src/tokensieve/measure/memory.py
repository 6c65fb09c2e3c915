"""Peak memory of one call."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from .pair import check_call

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler logs every start and stop


@torch.no_grad()
def peak_memory(call: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Peak memory of a call in bytes, above what was allocated before it: activations, not weights.

    On CUDA the allocator's own count; on the CPU the running sum of what torch allocates and frees, without the
    scratch space of matrix libraries.
    """
    check_call(call, "peak_memory")
    device = torch.device(device)
    call()  # so that lazy initialisation is not measured
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    allocated = peak = 0
    events = (event for event in record.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak
