"""One pass of models over images, shared by accuracy, fidelity and other comparisons of outputs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.inputs import check_images, reading
from ..data.scanning import PICTURES, Kind
from ..errors import InputError
from .comparison import OutputKind, kind_of

FIELDS = ("logits", "predicted_depth", "image_embeds", "pooler_output", "last_hidden_state")
"""Fields of a transformers model's output, the most useful first."""
QUERIES = ("masks_queries_logits", "class_queries_logits")
"""Output fields of a transformers segmenter whose queries each have a mask and a class, such as EoMT; they are combined
to one class map."""


class BatchOutputs(NamedTuple):
    """The outputs of each model on one batch.

    Attributes:
        labels: (B,) int64 on the CPU, -1 for an image without a label; None if the batch has no labels.
        outputs: a tensor per model, batch first, on the CPU.
        classes: whether all outputs are class scores, not embeddings.
        field: the field of transformers' `ModelOutput` that the first output was taken from; None for a tensor.
        batch: the batch as the loader gave it.
    """

    labels: Tensor | None
    outputs: tuple[Tensor, ...]
    classes: bool
    field: str | None = None
    batch: Any = None

    def kind(self, name: str | None = None) -> OutputKind:
        """The kind of the outputs, or the kind with this name; see `comparison.kind_of`."""
        return kind_of(self.outputs[0], self.classes, self.field, name)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models in evaluation mode, and every sub-module back into its own mode afterwards."""
    # Record all modes before changing any: a sieved model and its dense one share modules.
    before = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in before.items():
            module.training = training


def forward_batches(
    models: Sequence[nn.Module],
    batches: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[BatchOutputs]:
    """Run every model on every batch, without gradients; the caller sets evaluation mode (`evaluating`).

    Args:
        models: take images (B, 3, H, W) and return a tensor, or an object with `.logits`, pooled or token features.
        batches: image tensors, or tuples that begin with images and labels, such as `Batch`.
        device: the device that images are moved to; by default each model's.
        dtype: the dtype that images are converted to; by default each model's.

    Raises:
        InputError: a batch of another type, an output that holds no tensor, or NaN in an output.
    """
    targets = [_device_and_dtype(model, device, dtype) for model in models]
    for batch in batches:
        images, labels = unpack(batch)
        outputs, classes, fields = [], True, []
        for model, (model_device, model_dtype) in zip(models, targets, strict=True):
            # Not inference_mode: gradient-based significance enables gradients inside the forward.
            with torch.no_grad(), reading(model, images):
                output = model(images.to(device=model_device, dtype=model_dtype))
            classes = classes and classifies(model, output)
            outputs.append(as_tensor(output, model, len(images)))
            fields.append(field_of(output))
        yield BatchOutputs(labels, tuple(outputs), classes, fields[0], batch)


def collect_outputs(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Outputs of a model for all batches in order, (N, ...) on the CPU: one dense pass to compare many recipes with.

    Arguments and errors as in `forward_batches`; also InputError if there are no images.
    """
    with evaluating(model):
        outputs = [batch.outputs[0] for batch in forward_batches([model], batches, device=device, dtype=dtype)]
    if not outputs:
        raise nothing_read(batches)
    return torch.cat(outputs)


def failures_of(batches: Iterable[Any]) -> tuple[Any, ...]:
    """The pictures that a `Batches` could not read; empty for any other iterable."""
    return tuple(getattr(batches, "failures", ()))


def nothing_read(batches: Iterable[Any]) -> InputError:
    """The error for a pass without any picture."""
    failures = failures_of(batches)
    if failures:
        kind: Kind = getattr(batches, "kind", PICTURES)
        return InputError(f"None of {len(failures)} {kind.many} could be read; the first: {failures[0]}.")
    return InputError("There are no images to measure on: the loader is empty, or was used up by an earlier pass.")


def _device_and_dtype(
    model: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device | str | None, torch.dtype | None]:
    first = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    if first is None:
        return device, dtype
    return device if device is not None else first.device, dtype or first.dtype


def unpack(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images and labels (None if there are none) of a batch."""
    if isinstance(batch, Tensor):
        return _floating_point(batch), None
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
        labels = batch[1] if len(batch) > 1 and isinstance(batch[1], Tensor) else None
        return _floating_point(batch[0]), None if labels is None else labels.cpu()
    raise InputError(
        f"A batch must be a tensor of images, or begin with images and labels, not {type(batch).__name__}."
    )


def _floating_point(images: Tensor) -> Tensor:
    """Check that images are floating-point: integers from 0 to 255 would run, but models read about -2 to 2."""
    return images if images.is_floating_point() else check_images(images)


def class_count(model: Any) -> int:
    """Number of classes of a model from timm, transformers or torchvision; 0 if it has no classifier, or it is not
    known."""
    for name in ("num_classes", "num_labels"):
        if isinstance(count := getattr(model, name, None), int):
            return count
    head = next(
        (module for name in ("head", "heads", "classifier", "fc") if (module := getattr(model, name, None))), None
    )
    last = [module for module in head.modules() if isinstance(module, nn.Linear)] if isinstance(head, nn.Module) else []
    return last[-1].out_features if last else 0


def classifies(model: nn.Module, output: Any) -> bool:
    """Whether the model is a classifier: False if timm's `num_classes` is 0 or a transformers output has no logits."""
    counts = [getattr(holder, "num_classes", None) for holder in (model, getattr(model, "model", None))]
    has_logits = (
        isinstance(output, Tensor) or getattr(output, "logits", None) is not None or field_of(output) == QUERIES[0]
    )
    return has_logits and 0 not in counts


def field_of(output: Any) -> str | None:
    """The name in `FIELDS` or `QUERIES` of the field to use of a model's output; None for a tensor or without one."""
    if isinstance(output, Tensor):
        return None
    if all(isinstance(getattr(output, field, None), Tensor) for field in QUERIES):
        return QUERIES[0]
    return next((field for field in FIELDS if isinstance(getattr(output, field, None), Tensor)), None)


def class_map(masks: Tensor, classes: Tensor) -> Tensor:
    """Class scores (B, K, H, W) of a query-based segmenter: the log of the sum over queries of class times mask
    probability, as transformers' processors compute them for semantic segmentation.

    Args:
        masks: (B, Q, H, W) logits before the sigmoid.
        classes: (B, Q, K + 1) logits before the softmax; the last class is "no object".
    """
    return _logits(torch.einsum("bqk,bqhw->bkhw", classes.softmax(-1)[..., :-1], masks.sigmoid()))


def _logits(probabilities: Tensor) -> Tensor:
    """The logarithm of unnormalised probabilities: its softmax gives them normalised to a sum of 1."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def as_tensor(output: Any, model: nn.Module, count: int) -> Tensor:
    """The output of a model for `count` images as a tensor on the CPU.

    Class scores that are probabilities, as from SegViT, are replaced by their logarithm.

    Raises:
        InputError: the output holds no tensor, or NaN.
    """
    tensor = as_output(output, model, count)
    if tensor.isnan().any():
        raise InputError(f"{type(model).__name__} returns NaN: try another dtype, or look at its weights.")
    return tensor.cpu()


def as_output(output: Any, model: nn.Module, count: int | None = None) -> Tensor:
    """As `as_tensor`, but on the output's own device and with gradients; without `count` for any number of images."""
    name = type(model).__name__
    if (field := field_of(output)) == QUERIES[0]:
        output = class_map(*(getattr(output, query_field) for query_field in QUERIES))
    elif field is not None:
        output = getattr(output, field)
    elif maps := getattr(output, "feature_maps", None):  # a backbone: take its last map
        output = maps[-1]
    if not isinstance(output, Tensor):
        raise InputError(f"{name} returns {type(output).__name__}: a tensor or an output with logits is needed.")
    if output.ndim < 2 or count not in (None, len(output)):
        raise InputError(f"{name} returns shape {tuple(output.shape)} for {count} images: one row each is needed.")
    if output.ndim == 4 and getattr(model, "output_fmt", None) == "NHWC":  # timm's Swin without pooling
        output = output.movedim(3, 1)
    if getattr(model, "probabilities", False):
        output = _logits(output)
    return output
