"""Counts multiply-accumulates operator by operator, and records operators that it cannot count."""

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

from .._recording import while_counting_macs

Formula = Callable[..., int]
"""Function from an operator's arguments, and its output as `out=`, to multiply-accumulates."""

PLAIN = {"aten", "prim", "prims", "profiler", "torchvision", "c10d", "_c10d_functional", "rngprims", "debugprims"}
"""Operator libraries in which the name shows whether an operator multiplies matrices. In others any operator may."""
PRODUCTS = re.compile(
    r"attention|multi_head|transformer|matmul|mm(_|$)|(^|add)mv_?$|^v?dot$|(?<!bi)(?<!tri)linear(?!1d|_combination)|"
    r"conv(?!ert)|mkldnn|fbgemm|gru(?!_cell)|lstm(?!_cell)|rnn(?!.*flatten)|^_trilinear|cdist|pdist|euclidean_dist|_fft_|"
    r"linalg_(?!vector_norm|cross|diagonal|check)|cholesky|(^|_)lu_(solve|with)|^_?svd|geqrf|or[gm]qr|(?<!re)solve|^inverse"
)
"""Names of operators that multiply matrices, attend, convolve or decompose."""


class MacCounter:
    """Adds up the multiply-accumulates of all operators that run in its context.

    The count depends on shapes alone. Attention has the same count for every kernel, masked or not, on every device and
    in every version of torch. All other operators use the formulas of `torch.utils.flop_counter`, whose own attention
    formulas cover only some kernels in some versions.

    Args:
        extra: further formulas, by operator name.
        only: count only what runs inside these modules.
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
            # Compiled modules run eagerly: operators inside a generated kernel cannot be seen.
            context.enter_context(torch.compiler.set_stance("force_eager"))
            context.enter_context(while_counting_macs())
            # torch's own encoder layers have a fast path that is a single operator.
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
        """Count one call of an operator, or record it as unknown. With `operator` None no formula is used."""
        base_name = name.removesuffix("_")  # an in-place operator costs the same
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
    """Counts the basic operators, after composite operators are decomposed into them."""

    def __init__(self, counter: MacCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if any(kind.__name__ == "NestedTensor" for kind in types):
            return NotImplemented  # a nested tensor calls operators on its inner tensors, which are counted
        operator = func._overloadpacket
        name = operator._qualified_op_name
        ragged = any(isinstance(arg, Tensor) and arg.is_nested for arg in args)  # its shape is not a fixed number
        if not ragged and name not in self.counter.formulas and func is not torch.ops.prim.device.default:
            with self:  # under inference_mode composite operators arrive undecomposed
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if self.counter.counting:
            self.counter.add(name, None if ragged else operator, args, kwargs, out)
        return out


class _Calls(TorchFunctionMode):
    """Counts function calls before torch turns them into operators.

    Attention is counted at the call, and not again in its kernels: the kernels' arguments would give a wrong count, as
    flash attention on GPUs gets heads padded to a multiple of 8 channels. Higher-order operators (`flex_attention`,
    `cond`) are counted here too, since not every version of torch dispatches them like the others.
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
        q, k, v = _query_key_value(*args, **kwargs)
        if q.is_nested or k.is_nested:  # only the kernel knows the lengths in a nested tensor
            return func(*args, **kwargs)
        with self.counter.silent():
            out = func(*args, **kwargs)
        self.counter.total += _attention(q, k, v)
        return out


def _query_key_value(
    query: Tensor, key: Tensor, value: Tensor, *_rest: Any, **_named: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The first three arguments of an attention call, given by position or by keyword."""
    return query, key, value


def _multiplies(name: str) -> bool:
    """Whether an operator such as `aten::mv` multiplies matrices, or may."""
    library, _, operator = name.partition("::")
    return library not in PLAIN or PRODUCTS.search(operator) is not None


def _attention(q: Tensor, k: Tensor, v: Tensor, *_rest: Any, **_named: Any) -> int:
    """For (..., H, M, d), (..., H or fewer, N, d) and (..., N, d'): all pairs of query and key count, masked or not."""
    batch = torch.broadcast_shapes(q.shape[:-3], k.shape[:-3])
    return prod(batch) * prod(q.shape[-3:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attention_backward(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_rest: Any, **_named: Any) -> int:
    """Four matrix products where the forward has two. What a kernel recomputes instead of storing is not counted."""
    return 2 * _attention(q, k, v)


def _packed_attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> int:
    """For (..., M, H, d): batches, or concatenated sequences whose offsets are further int32 arguments."""
    width = q.shape[-2] * (q.shape[-1] + v.shape[-1])
    offsets = [x for x in (*rest, *named.values()) if isinstance(x, Tensor) and x.dtype == torch.int32 and x.ndim == 1]
    if len(offsets) >= 2:
        queries, keys = (starts.long().diff() for starts in offsets[:2])
        return int((queries * keys).sum()) * width
    return prod(q.shape[:-2]) * k.shape[-3] * width


def _eigenvectors(matrix: Tensor, *_rest: Any, **_named: Any) -> int:
    """9 n^3 flops by the symmetric QR algorithm (Golub and Van Loan, section 8.3)."""
    return prod(matrix.shape[:-2]) * 9 * matrix.shape[-1] ** 3 // 2


def _recurrent_layer(x: Tensor, input_weight: Tensor, hidden: Tensor, *_rest: Any, **_named: Any) -> int:
    """One product with each of the two weights per step."""
    return prod(x.shape[:-1]) * (input_weight.numel() + hidden.numel())


def _recurrent(x: Tensor, weights: Sequence[Tensor], *_rest: Any, **_named: Any) -> int:
    """A recurrent network: all layers and directions in one call."""
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
"""Formulas by operator name, for operators that torch's own registry lacks in some or all versions. By name, because
not every version of torch has each operator."""
