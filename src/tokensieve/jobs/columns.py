"""Converts a model's outputs on a batch to the columns of a table."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import VideoPreprocessing, average_views
from ..data.inputs import reading
from ..errors import InputError, SettingError, UnsupportedHost, cause
from ..measure.comparison import OutputKind, kind_of
from ..measure.outputs import as_tensor, class_count, classifies, field_of
from ..model_spec import ModelSpec, OpenedModel
from ..show.explain import class_names
from .settings import STORES, RowSettings

Columns = dict[str, Any]
"""Column name -> the values for a batch: an array (B, ...), or a list of B strings, bytes or None."""
Predict = Callable[[Tensor], Columns]
"""A function from images (B, 3, H, W), for videos (B, *clip_shape) or (B, views, *clip_shape), to columns."""


class ColumnPredictor:
    """Runs a model on a batch of the dataset's items, and returns columns.

    Args:
        opened: the model; for embeddings, after `without_classifier`.
        rows: the output to store, and how.

    Raises:
        InputError: the model does not return the requested kind of output.
    """

    def __init__(self, opened: OpenedModel, rows: RowSettings) -> None:
        self.opened, self.rows, self.views = opened, rows, opened.views
        self.names = None
        if rows.output == "classes" or (rows.output == "maps" and class_count(opened.dense)):
            self.names = class_names(opened.dense, rows.classes)
        self._columns = getattr(self, f"_{rows.output}")

    def __call__(self, images: Tensor) -> Columns:
        model, clips = self.opened.fast, images.flatten(0, 1) if self.views > 1 else images
        clips = clips.to(self.opened.device, self.opened.dtype, non_blocking=True)
        # Not inference_mode, in which significance maps that need gradients could not enable them.
        with torch.no_grad(), reading(model, clips):
            if self.rows.output == "features":
                return self._columns(self._patches(clips), None)
            output = model(clips)
        output_tensor = as_tensor(output, model, len(clips))
        kind = kind_of(output_tensor, self.rows.output != "embeddings" and classifies(model, output), field_of(output))
        return self._columns(output_tensor, kind)

    def _classes(self, logits: Tensor, kind: OutputKind) -> Columns:
        if kind.name != "classes":
            raise self._wrong_kind(kind, "classes of whole items")
        probabilities = average_views(logits, self.views)
        count = min(self.rows.k, probabilities.shape[1])
        top_probabilities, classes = probabilities.topk(count, dim=1)
        columns: Columns = {}
        for rank in range(count):
            top = classes[:, rank]
            columns[f"top{rank + 1}_class"] = top.numpy().astype(np.int32)
            if self.names is not None:
                columns[f"top{rank + 1}_label"] = [self.names[index] for index in top.tolist()]
            columns[f"top{rank + 1}_probability"] = top_probabilities[:, rank].numpy()
        return columns

    def _embeddings(self, vectors: Tensor, kind: OutputKind) -> Columns:
        if vectors.ndim == 3 and self.rows.pooling == "token":
            vectors = vectors[:, 0]
        if vectors.ndim != 2:
            raise self._wrong_kind(kind, "one vector for each item (see --pooling)")
        vectors = vectors.float().unflatten(0, (-1, self.views)).mean(1)
        if self.rows.normalize:
            vectors = F.normalize(vectors, dim=1)
        return {"embedding": self._stored(vectors)}

    def _features(self, patches: Tensor, _kind: None) -> Columns:
        return {"features": self._stored(patches.movedim(1, -1))}

    def _maps(self, maps: Tensor, kind: OutputKind) -> Columns:
        if kind.name == "class-map" and maps.ndim == 4:
            classes = maps.argmax(1)
            sides = {
                name: np.full(len(maps), maps.shape[axis], np.int32) for name, axis in (("height", 2), ("width", 3))
            }
            return {"map": [_png(class_map.numpy(), maps.shape[1]) for class_map in classes], **sides}
        if kind.name == "depth":
            return {"depth": self._stored(maps.squeeze(1) if maps.ndim == 4 else maps)}
        raise self._wrong_kind(kind, "a class or a depth of each pixel")

    def _patches(self, clips: Tensor) -> Tensor:
        """Features of every patch on the grid, after the last block and the final norm: (B, D, h, w), for video
        (B, D, t, h, w)."""
        if self.views > 1:
            raise InputError("Features of patches can only be computed for one view: leave --views out.")
        fast = self.opened.fast
        norm = fast.units == "tokens"  # hierarchical models have no norm that fits the maps of all stages
        features = fast.forward_intermediates(clips, indices=1, norm=norm, intermediates_only=True, restore=True)[-1]
        if features.isnan().any():
            raise InputError(f"{type(fast.model).__name__} returns NaN: try another dtype, or check its weights.")
        return features.cpu()

    def _stored(self, values: Tensor) -> np.ndarray:
        return values.float().numpy().astype(STORES[self.rows.store])

    def _wrong_kind(self, kind: OutputKind, required: str) -> InputError:
        name = type(self.opened.dense).__name__
        return InputError(f"--output {self.rows.output} needs {required}, but {name} returns {kind.name}.")


def _png(classes: np.ndarray, count: int) -> bytes:
    """Class indices (H, W) as a greyscale PNG, with 8 bits per pixel for up to 256 classes, otherwise 16."""
    data = io.BytesIO()
    Image.fromarray(classes.astype(np.uint8 if count <= 256 else np.uint16)).save(data, "PNG")
    return data.getvalue()


def open_predictor(spec: ModelSpec, rows: RowSettings) -> tuple[OpenedModel, ColumnPredictor]:
    """Open the model of a job, and create the function from a batch to its columns.

    Raises:
        InputError, RecipeError, UnsupportedHost: as `ModelSpec.open`; or the model does not return the requested kind
            of output.
    """
    opened = spec.open()
    if rows.output == "embeddings":
        without_classifier(opened.dense, rows.pooling)
        opened = spec.sieve(opened.dense, opened.preprocessing)
    return opened, ColumnPredictor(opened, rows)


def without_classifier(model: Any, pooling: str | None = None) -> None:
    """Replace a model's classifier by the identity, in place, so that it returns pooled features.

    Args:
        model: a model of timm, torchvision or transformers; one without a classifier is left unchanged.
        pooling: for timm models any value of `global_pool`; for other models that return tokens, "token".

    Raises:
        SettingError: a pooling that the model does not have.
        UnsupportedHost: the classifier of this model cannot be found.
    """
    if hasattr(model, "reset_classifier"):
        try:
            model.reset_classifier(0, **({} if pooling is None else {"global_pool": pooling}))
        except Exception as error:  # for an unknown pooling timm raises various exceptions
            raise SettingError(
                "pooling", f"{pooling!r} is not supported by {type(model).__name__}: {cause(error)}."
            ) from error
        return
    if pooling not in (None, "token"):
        raise SettingError(
            "pooling", f"{pooling!r} is only for timm's models: {type(model).__name__} has its own pooling."
        )
    head = _classifier(model)
    if head is not None:
        owner, _, name = head.rpartition(".")
        setattr(model.get_submodule(owner), name, nn.Identity())
    elif class_count(model) and not _bare(model):
        raise UnsupportedHost(
            f"{type(model).__name__} has a classifier that cannot be removed: give a model without one, or --output "
            "features."
        )


def _classifier(model: nn.Module) -> str | None:
    """The path of the classifier's last linear layer, found by the names used in torchvision and transformers; or
    None."""
    for name in ("classifier", "heads", "head", "fc"):
        layer = getattr(model, name, None)
        if isinstance(layer, nn.Linear):
            return name
        if isinstance(layer, nn.Sequential) and layer and isinstance(layer[-1], nn.Linear):
            return f"{name}.{[*dict(layer.named_children())][-1]}"
    return None


def _bare(model: Any) -> bool:
    """Whether a transformers model has no head, although its configuration has a number of labels."""
    return hasattr(model, "config") and not type(model).__name__.endswith("Classification")


def concatenated(parts: Sequence[Columns]) -> Columns:
    """Concatenate the columns of several batches."""
    if len(parts) == 1:
        return parts[0]
    return {
        name: np.concatenate([batch[name] for batch in parts])
        if isinstance(first, np.ndarray)
        else [value for batch in parts for value in batch[name]]
        for name, first in parts[0].items()
    }


def blank(opened: OpenedModel) -> Tensor:
    """One item of zeros, in the shape of the dataset's items."""
    preprocessing = opened.preprocessing
    shape = (
        preprocessing.clip_shape if isinstance(preprocessing, VideoPreprocessing) else (3, *preprocessing.input_size)
    )
    return torch.zeros(1, *shape) if opened.views == 1 else torch.zeros(1, opened.views, *shape)
