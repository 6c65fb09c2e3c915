"""Shows the effect of a recipe on each picture, as panels, figures and plain records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from ..data import class_descriptions
from ..errors import InputError
from ..measure.comparison import OutputKind
from ..measure.outputs import as_tensor, class_count, evaluating, forward_batches
from ..stream import Sieved, Trace
from .page import Fact, Panel
from .pictures import HEIGHT, groups, heat, kept, photo
from .segments import class_panel, exit_counts, exits_panel
from .tables import percent


@dataclass(frozen=True)
class Answer:
    """The class that a model predicts for a picture, its name if known, and its probability."""

    index: int
    name: str | None
    probability: float

    @property
    def label(self) -> str:
        return self.name or f"class {self.index}"

    def __str__(self) -> str:
        return f"{self.label} {percent(self.probability)}"


@dataclass(frozen=True)
class Verdict:
    """Both models' predictions for a picture; `confidence` is the sieved probability of the dense prediction."""

    dense: Answer
    sieved: Answer
    confidence: float

    @property
    def same(self) -> bool:
        return self.dense.index == self.sieved.index

    def record(self) -> dict[str, Any]:
        """The predictions as plain JSON."""
        return {**asdict(self), "same": self.same}


@dataclass(frozen=True)
class Explained:
    """One picture under a recipe.

    Attributes:
        panels: the picture; its significance map, its kept patches and its merged patches, if the recipe has them;
            for a segmenter both class maps, and the early exits of patches.
        facts: the predictions as text.
        verdict: the predictions; None for a host without a classifier.
        cosine: cosine similarity of the two models' embeddings or feature maps, if there is no classifier and both have
            equal shape.
        agreement: percent of the pixels of a class map with the same class, or of a depth map with the same depth
            within a factor of 1.25; None for other outputs.
        kept: number of patches kept before block 0, or of pixels in the first stage that drops any; None if all were.
        tokens_per_block: tokens of this picture, prefix included, that each block's MLP read.
        left_behind: for a recipe with early exits, block index as text -> number of patches that exit after that block;
            patches that never exit early count for the last block.
    """

    panels: tuple[Panel, ...]
    facts: tuple[Fact, ...]
    verdict: Verdict | None
    cosine: float | None
    kept: int | None
    tokens_per_block: tuple[int, ...]
    agreement: float | None = None
    left_behind: dict[str, int] | None = None

    def record(self) -> dict[str, Any]:
        """The figures as plain JSON, without the panels."""
        answers = {"dense": None, "sieved": None} if self.verdict is None else self.verdict.record()
        counts = {"kept": self.kept, "tokens_per_block": list(self.tokens_per_block)}
        compared = {"cosine": self.cosine, "agreement": self.agreement, "left_behind": self.left_behind}
        return {**answers, **compared, **counts}


@dataclass(frozen=True)
class BothOutputs:
    """The outputs of both models on a batch, their comparison for each image, and the trace; see `Explained`."""

    trace: Trace
    dense: Tensor
    sieved: Tensor
    verdicts: Sequence[Verdict | None]
    cosines: Sequence[float | None]
    agreements: Sequence[float | None]
    kind: OutputKind

    def facts(self, index: int) -> tuple[Fact, ...]:
        """The predictions for one image as text."""
        return _facts(self.verdicts[index], self.cosines[index], self.agreements[index], self.kind)


def run_both(fast: Sieved, dense: nn.Module, images: Tensor, classes: Sequence[str] | None = None) -> BothOutputs:
    """Run both models on images or clips, on their device and in their dtype; arguments as in `explain`."""
    output, kind = dense_output_and_kind(dense, images)
    trace = traced(fast, images)
    sieved = as_tensor(trace.output, fast, len(images))
    verdicts = compare_answers(_probabilities(output, kind), sieved, classes)
    return BothOutputs(trace, output, sieved, verdicts, *_compared(kind, output, sieved), kind)


def explain(
    fast: Sieved,
    dense: nn.Module,
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None = None,
    *,
    height: int = HEIGHT,
) -> list[Explained]:
    """Run both models on images and draw the effect of the recipe on each.

    Args:
        fast: the sieved model.
        dense: the host, or any model with the same kind of output.
        images: (B, 3, H, W), normalised with `mean` and `std`; they are moved to the models' device and dtype.
        mean, std: the normalisation of the images.
        classes: the names of the classes in index order; see `class_names`.
        height: height of the panels in pixels.

    Returns:
        One `Explained` for each image.
    """
    result = run_both(fast, dense, images, classes)
    trace, tokens = result.trace, result.trace.tokens
    assert tokens is not None
    grid = (tokens.grid[0], tokens.grid[1])
    merging, staged = tokens.size is not None, fast.units == "pixels"
    grid_text = _map_sizes(fast, images) if staged else f"{grid[0] * grid[1]} patches"

    explained = []
    for i, image in enumerate(images):
        picture = photo(image, mean, std, height)
        size = f"{image.shape[-2]} x {image.shape[-1]} pixels, {grid_text}"
        panels = [Panel(picture, "Input", size, "The picture as the model reads it")]
        if trace.significance is not None:
            note = "blue is low, yellow is high"
            panels.append(Panel(heat(picture, trace.significance[i]), "Significance map", note, "Its significance map"))
        for mask in trace.masks:
            share = f"{mask.kept.shape[1]} of {mask.grid[0] * mask.grid[1]}"
            kept_picture = kept(picture, mask.kept[i], mask.grid)
            panels.append(
                Panel(kept_picture, mask.title, share, f"The {share} {'pixels' if staged else 'patches'} kept")
            )
        if merging:
            left = f"{tokens.x.shape[1] - tokens.prefix} after the last block"
            merged_picture = groups(picture, trace.source[i], grid)
            panels.append(Panel(merged_picture, "Merged patches", left, f"The patches merged, {left}"))
        if result.kind.name == "class-map":
            for maps, owner in ((result.dense, "dense"), (result.sieved, "sieved")):
                panels.append(class_panel(picture, maps[i].argmax(0), maps.shape[1], classes, f"Classes, {owner}"))
        if trace.exits:
            panels.append(exits_panel(picture, trace, i))
        explained.append(
            Explained(
                panels=tuple(panels),
                facts=result.facts(i),
                verdict=result.verdicts[i],
                cosine=result.cosines[i],
                kept=trace.masks[0].kept.shape[1] if trace.masks else None,
                tokens_per_block=tuple(int(count[i]) for count in trace.lengths) or tuple(trace.tokens_per_block),
                agreement=result.agreements[i],
                left_behind=exit_counts(trace, i) if trace.exits else None,
            )
        )
    return explained


@torch.no_grad()
def _map_sizes(fast: Sieved, images: Tensor) -> str:
    """The sizes of the first and last feature map as text."""
    parameter = next(fast.model.parameters())
    sizes = fast.sizes(images[:1].to(parameter.device, parameter.dtype))
    return f"maps of {sizes[0][0]} x {sizes[0][1]} to {sizes[-1][0]} x {sizes[-1][1]}"


def dense_output(dense: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """The dense model's output on the CPU, and its class probabilities (B, K); None for a host without a classifier."""
    output, kind = dense_output_and_kind(dense, images)
    return output, _probabilities(output, kind)


def dense_output_and_kind(dense: nn.Module, images: Tensor) -> tuple[Tensor, OutputKind]:
    """The dense model's output on the CPU, and its kind."""
    with evaluating(dense):
        (batch_outputs,) = forward_batches([dense], [images])
    return batch_outputs.outputs[0], batch_outputs.kind()


def _probabilities(output: Tensor, kind: OutputKind) -> Tensor | None:
    return output.float().softmax(-1) if kind.name == "classes" else None


def _compared(kind: OutputKind, dense: Tensor, sieved: Tensor) -> tuple[Sequence[float | None], Sequence[float | None]]:
    """For each image the cosine of outputs without classes, and the percentage of pixels of a map that agree."""
    nothing: list[float | None] = [None] * len(dense)
    if dense.shape != sieved.shape or kind.name in ("classes", "tokens"):
        return nothing, nothing
    if kind.name in ("embeddings", "feature-map"):
        return kind.cosine(dense, sieved).tolist(), nothing
    shares = kind.agreement(dense, sieved)
    return nothing, nothing if shares is None else (100 * shares).tolist()


@torch.no_grad()
def traced(fast: Sieved, images: Tensor) -> Trace:
    """`fast.trace` in evaluation mode, on the host's device and in its dtype."""
    parameter = next(fast.model.parameters())
    with evaluating(fast):
        return fast.trace(images.to(parameter.device, parameter.dtype))


def compare_answers(
    probabilities: Tensor | None, output: Tensor, classes: Sequence[str] | None
) -> list[Verdict | None]:
    """Compare predictions, from probabilities of `dense_output` and a sieved output (B, K); a list of None for a host
    without a classifier."""
    if probabilities is None:
        return [None] * len(output)
    verdicts: list[Verdict | None] = []
    for sieved_probabilities, dense_probabilities in zip(output.float().softmax(-1).cpu(), probabilities, strict=True):
        dense, sieved = (
            _answer(row_probabilities, classes) for row_probabilities in (dense_probabilities, sieved_probabilities)
        )
        verdicts.append(Verdict(dense, sieved, float(sieved_probabilities[dense.index])))
    return verdicts


def class_names(model: nn.Module, file: str | Path | None = None) -> list[str] | None:
    """The names of a model's classes in index order.

    Args:
        model: the host. Names come from a segmenter trained by tokensieve, from the config of a transformers model, or
            from ImageNet if the model has as many classes.
        file: a file with other names, in any form that `data.class_index` reads.

    Returns:
        The names; None if they are not known.

    Raises:
        InputError: the file cannot be read, or does not name every class of the model.
    """
    count = class_count(model)
    if file is None and (model_names := _own_names(model)):
        return model_names
    if file is None:
        subset = infer_imagenet_subset(model) if count else None
        if subset is None:
            return None
        info = ImageNetInfo(subset)
        return [info.index_to_description(index).split(",")[0] for index in range(info.num_classes())]
    names = class_descriptions(file)
    if not count:
        raise InputError(f"The class names of {file} cannot be used: {type(model).__name__} has no classifier.")
    for index in range(count):
        if index not in names:
            raise InputError(f"{file} names {len(names)} classes, but not class {index} of the model's {count}.")
    return [names[index] for index in range(count)]


def _own_names(model: nn.Module) -> list[str]:
    """Class names stored in the model; empty if it only has numbers."""
    if model_names := getattr(model, "class_names", ()):
        return list(model_names)
    labels = getattr(getattr(model, "config", None), "id2label", None) or {}
    names = [str(labels[index]) for index in sorted(labels)]
    numbered = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return [] if numbered else names


def _answer(probabilities: Tensor, classes: Sequence[str] | None) -> Answer:
    index = int(probabilities.argmax())
    return Answer(index, None if classes is None else classes[index], float(probabilities[index]))


def _facts(
    verdict: Verdict | None, cosine: float | None, agreement: float | None, kind: OutputKind
) -> tuple[Fact, ...]:
    if agreement is not None:
        quantity = "class" if kind.classes else "depth, within a factor of 1.25"
        return (Fact(percent(agreement / 100), f"of the pixels keep their {quantity}"),)
    if verdict is None:
        noun = "feature map" if kind.name == "feature-map" else "embedding"
        return () if cosine is None else (Fact(f"{cosine:.3f}", f"cosine of the dense and the sieved {noun}"),)
    facts = [Fact(str(verdict.dense), "dense answer")]
    if verdict.same:
        return (*facts, Fact(str(verdict.sieved), "sieved answer: the same"))
    left = Fact(percent(verdict.confidence), f"left for {verdict.dense.label}")
    return (*facts, Fact(str(verdict.sieved), "sieved answer: another", alert=True), left)
