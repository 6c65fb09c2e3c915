"""`tokensieve demo`: measures and draws a recipe, the dense model and two baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..data import Batch, Failure, scene_set
from ..errors import SieveError
from ..measure import macs
from ..measure.budget import merge_to
from ..methods import PaPr
from ..recipe import Recipe
from ..stream import sieve
from .demo import DemoSettings, Record, demo_images, demo_record, demo_sections, image_preprocessing
from .demo_view import BASELINES, MERGING, RANDOM, RANDOM_PIXELS
from .explain import class_names
from .page import Panel, Section
from .pictures import groups, heat, kept, photo
from .variants import Variants, open_variants, varied

if TYPE_CHECKING:
    from ..model_spec import OpenedModel


def run_demo(opened: OpenedModel, settings: DemoSettings) -> tuple[Record, list[Section], list[Failure]]:
    """Measure and draw a model under its recipe, on generated scenes and on photographs."""
    dense, fast, _ = opened
    preprocessing = image_preprocessing(opened)
    mean, std = preprocessing.mean, preprocessing.std
    size = (3, *preprocessing.input_size)
    recipes = baselines(dense, fast.recipe, size, mean=mean, std=std, pretrained=settings.pretrained)
    fasts = open_variants(dense, recipes, mean, std, pretrained=settings.pretrained)
    names = [str(digit) for digit in range(10)] if settings.generated else class_names(dense)
    variants: Variants[str] = Variants(fasts, dense, names)
    scenes = scene_set(preprocessing, settings.scenes, settings.seed) if settings.generated else None
    images = demo_images(preprocessing, settings, scenes)
    record = demo_record(opened, fasts, images.evaluated, settings, "top1")

    def draw(title: str, lead: str, batch: Batch) -> Section:
        return drawn(title, lead, batch, mean, std, variants)

    scenes_lead = "Wrong predictions are marked."
    photographs_lead = ", on which a model trained on digits can only guess."
    sections = demo_sections(images, settings, draw, scenes_lead, photographs_lead)
    return record | images.record, sections, images.failures


def baselines(model: nn.Module, recipe: Recipe, input_size: Sequence[int], **settings: Any) -> dict[str, Recipe]:
    """Recipes by name: the recipe and its baselines, random patches at its keep ratio and merging at its MACs."""
    recipes = {str(recipe): recipe}
    first = next(iter(recipe), None)
    if isinstance(first, PaPr) and first.ranks and first.needs_proposal:
        fast = sieve(model, recipe, **settings)
        label = RANDOM_PIXELS if fast.units == "pixels" else RANDOM
        recipes[label] = varied(recipe, significance="random", proposal_weights=None)
        try:
            budget = macs(fast, input_size)
            recipes[MERGING] = merge_to(model, budget, input_size)
        except SieveError:
            pass  # merging cannot save as much, or the host cannot merge: leave this baseline out
    return recipes


def drawn(
    title: str, lead: str, batch: Batch, mean: Sequence[float], std: Sequence[float], variants: Variants[str]
) -> Section:
    """A row of panels for each picture: the input, its map, and the patches of each recipe, with predictions."""
    rows = []
    for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
        picture, panels = photo(image, mean, std), list[Panel]()
        for name, (trace, verdict) in variants.run(image).items():
            tokens = trace.tokens
            assert tokens is not None
            grid = (tokens.grid[0], tokens.grid[1])
            if not panels:
                note = "" if verdict is None else f"dense: {verdict.dense}"
                panels.append(Panel(picture, "Input", note, "The picture as the model reads it"))
                if trace.significance is not None:
                    panels.append(Panel(heat(picture, trace.significance[0]), "Significance map", "", "Its map"))
            panel_image = picture
            if tokens.size is not None:
                panel_image = groups(picture, trace.source[0], grid)
            elif trace.masks:
                panel_image = kept(picture, trace.masks[0].kept[0], trace.masks[0].grid)
            wrong = verdict is not None and (verdict.sieved.index != label if label >= 0 else not verdict.same)
            answer = "" if verdict is None else str(verdict.sieved)
            caption = name[0].upper() + name[1:] if name in BASELINES else "What the recipe reads"
            if isinstance(trace.kept, list) and trace.masks:
                caption += f" ({trace.masks[0].title.partition(', ')[2]})"
            panels.append(Panel(panel_image, caption, answer, f"{caption}: {answer}", alert=wrong))
        rows.append(tuple(panels))
    return Section(title, lead, panels=tuple(rows))
