"""A counter of multiply-accumulates, operator by operator, that says what it could not count."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry

from .._recording import counting

Formula = Callable[..., int]
"""An operator's arguments, and its output as `out=`, -> multiply-accumulates."""

PLAIN = {"aten", "prim", "prims", "profiler", "torchvision", "c10d", "_c10d_functional", "rngprims", "debugprims"}
"""Libraries of operators whose names tell which of them multiply matrices. In any other each may."""
PRODUCTS = re.compile(
    r"attention|multi_head|transformer|matmul|mm(_|$)|(^|add)mv_?$|^v?dot$|(?<!bi)(?<!tri)linear(?!1d|_combination)|"
    r"conv(?!ert)|mkldnn|fbgemm|gru(?!_cell)|lstm(?!_cell)|rnn(?!.*flatten)|^_trilinear|cdist|pdist|euclidean_dist|_fft_|"
    r"linalg_(?!vector_norm|cross|diagonal|check)|cholesky|(^|_)lu_(solve|with)|^_?svd|geqrf|or[gm]qr|(?<!re)solve|^inverse"
)
"""Names of operators that multiply matrices, attend, convolve or decompose."""


class MacCounter:
    """Adds up the multiply-accumulates of all operators that run in its context.

    The count follows from shapes alone. Attention counts the same whichever kernel computes it, masked or not, on every
    device and in every version of torch; the formulas of `torch.utils.flop_counter`, which are used for everything
    else, are of some kernels in some versions.

    Args:
        extra: further formulas, by names of operators.
        only: nothing is counted but what runs inside these modules.
    """

    def __init__(self, extra: Mapping[str, Formula] | None = None, only: Iterable[nn.Module] | None = None) -> None:
        self.total = 0.0
        self.unknown: set[str] = set()
        """Operators that multiply matrices, or may, and for which no formula is known."""
        self.formulas = {**FORMULAS, **(extra or {})}
        self._only = None if only is None else list(only)
        self._silent = self._inside = 0
        self._context = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as context:
            # What is compiled runs as it was written: nobody sees what is in a generated kernel.
            context.enter_context(torch.compiler.set_stance("force_eager"))
            context.enter_context(counting())
            # torch's own encoder layers have a fast path in which all is one operator.
            context.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            for module in self._only or ():
                context.callback(module.register_forward_pre_hook(self._enters).remove)
                context.callback(module.register_forward_hook(self._leaves).remove)
            context.enter_context(_Calls(self))
            context.enter_context(_Operators(self))
            self._context = context.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    @property
    def counting(self) -> bool:
        return not self._silent and (self._only is None or self._inside > 0)

    @contextmanager
    def silent(self) -> Iterator[None]:
        self._silent += 1
        try:
            yield
        finally:
            self._silent -= 1

    def add(self, name: str, operator: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """Count one call of an operator, or note it: without the operator itself no formula is asked."""
        base_name = name.removesuffix("_")  # what works in place costs the same
        if operator is not None and base_name != name:
            library, _, plain = base_name.partition("::")
            operator = getattr(getattr(torch.ops, library), plain, operator)
        if operator is not None and base_name in self.formulas:
            self.total += self.formulas[base_name](*args, **kwargs, out=out)
        elif operator in flop_registry:
            self.total += flop_registry[operator](*args, **kwargs, out_val=out) / 2
        elif _multiplies(base_name):
            self.unknown.add(name)

    def _enters(self, *_call: Any) -> None:
        self._inside += 1

    def _leaves(self, *_call: Any) -> None:
        self._inside -= 1


class _Operators(TorchDispatchMode):
    """Sees the operators that are left once all that is made of others is taken apart."""

    def __init__(self, counter: MacCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if any(kind.__name__ == "NestedTensor" for kind in types):
            return NotImplemented  # a ragged batch calls operators on what it holds, and those are seen
        operator = func._overloadpacket
        name = operator._qualified_op_name
        ragged = any(isinstance(arg, Tensor) and arg.is_nested for arg in args)  # whose shapes are no numbers
        if not ragged and name not in self.counter.formulas and func is not torch.ops.prim.device.default:
            with self:  # inference_mode leaves whole what else comes in parts
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if self.counter.counting:
            self.counter.add(name, None if ragged else operator, args, kwargs, out)
        return out


class _Calls(TorchFunctionMode):
    """Sees what is called before it becomes operators.

    Attention is counted where it is called, and not again in what computes it: what a kernel is given is no measure,
    on GPUs flash attention gets heads padded to a multiple of 8 channels. Operators that call functions
    (`flex_attention`, `cond`) are seen here alone, since not every version of torch shows them with the others.
    """

    def __init__(self, counter: MacCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            with _disable_current_modes():
                out = func(*args, **kwargs)
            if self.counter.counting:
                self.counter.add(func.name(), func, args, kwargs, out)
            return out
        if func is not F.scaled_dot_product_attention or not self.counter.counting:
            return func(*args, **kwargs)
        q, k, v = _asked(*args, **kwargs)
        if q.is_nested or k.is_nested:  # the lengths in a ragged batch are known to the kernel alone
            return func(*args, **kwargs)
        with self.counter.silent():
            out = func(*args, **kwargs)
        self.counter.total += _attention(q, k, v)
        return out


def _asked(query: Tensor, key: Tensor, value: Tensor, *_rest: Any, **_named: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query, key, value


def _multiplies(name: str) -> bool:
    """Whether an operator such as `aten::mv` multiplies matrices, or may."""
    library, _, operator = name.partition("::")
    return library not in PLAIN or PRODUCTS.search(operator) is not None


def _attention(q: Tensor, k: Tensor, v: Tensor, *_rest: Any, **_named: Any) -> int:
    """Of (..., H, M, d), (..., H or fewer, N, d), (..., N, d'): every query meets every key, masked or not."""
    batch = torch.broadcast_shapes(q.shape[:-3], k.shape[:-3])
    return prod(batch) * prod(q.shape[-3:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attention_backward(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_rest: Any, **_named: Any) -> int:
    """Four products to two of the forward. What a kernel computes again, instead of keeping it, does not count."""
    return 2 * _attention(q, k, v)


def _packed_attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> int:
    """Of (..., M, H, d): whole batches, or sequences end to end, whose beginnings are told beside them."""
    width = q.shape[-2] * (q.shape[-1] + v.shape[-1])
    begins = [x for x in (*rest, *named.values()) if isinstance(x, Tensor) and x.dtype == torch.int32 and x.ndim == 1]
    if len(begins) >= 2:
        queries, keys = (offsets.long().diff() for offsets in begins[:2])
        return int((queries * keys).sum()) * width
    return prod(q.shape[:-2]) * k.shape[-3] * width


def _eigenvectors(matrix: Tensor, *_rest: Any, **_named: Any) -> int:
    """9 n^3 flops by the symmetric QR algorithm (Golub and Van Loan, section 8.3)."""
    return prod(matrix.shape[:-2]) * 9 * matrix.shape[-1] ** 3 // 2


def _recurrent_layer(x: Tensor, input_weight: Tensor, hidden: Tensor, *_rest: Any, **_named: Any) -> int:
    """At each step one product by either weight."""
    return prod(x.shape[:-1]) * (input_weight.numel() + hidden.numel())


def _recurrent(x: Tensor, weights: Sequence[Tensor], *_rest: Any, **_named: Any) -> int:
    """All layers and directions at once."""
    return prod(x.shape[:-1]) * sum(weight.numel() for weight in weights if weight.ndim == 2)


def _product(a: Tensor, b: Tensor, **_named: Any) -> int:
    return a.numel() * b.shape[-1]


def _packed_linear(x: Tensor, *_rest: Any, out: Tensor, **_named: Any) -> int:
    return x.shape[-1] * out.numel()


KERNELS = (
    "flash_attention_for_cpu",
    "flash_attention",
    "efficient_attention",
    "cudnn_attention",
    "fused_attention_overrideable",
)
FORMULAS: dict[str, Formula] = {
    **{f"aten::_scaled_dot_product_{kernel}": _attention for kernel in (*KERNELS, "attention_math_for_mps")},
    **{f"aten::_scaled_dot_product_{kernel}_backward": _attention_backward for kernel in KERNELS},
    "aten::_triton_scaled_dot_attention": _attention,
    "flex_attention": _attention,
    "flex_attention_backward": lambda q, k, v, *_, **__: 2 * _attention(q, k, v),
    **{f"aten::_{kernel}_attention_forward": _packed_attention for kernel in ("flash", "efficient", "cudnn")},
    "aten::_flash_attention_forward_no_dropout_inplace": lambda _, *call, **named: _packed_attention(*call, **named),
    "aten::mkldnn_rnn_layer": _recurrent_layer,
    "aten::_cudnn_rnn": _recurrent,
    "aten::miopen_rnn": _recurrent,
    "aten::mv": lambda a, *_, **__: a.numel(),
    "aten::addmv": lambda _, a, *__, **___: a.numel(),
    "aten::dot": lambda a, *_, **__: a.numel(),
    "aten::vdot": lambda a, *_, **__: a.numel(),
    "aten::addbmm": lambda _, a, b, **__: _product(a, b),
    "aten::_int_mm": _product,
    "aten::_addmm_activation": lambda _, a, b, **__: _product(a, b),
    "aten::_linalg_eigh": _eigenvectors,
    "mkldnn::_linear_pointwise": _packed_linear,
    "mkl::_mkl_linear": _packed_linear,
}
"""By the operator's name, which not every version of torch has: what the registry of torch lacks, or not always has."""
