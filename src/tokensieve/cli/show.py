"""`tokensieve show`: pictures of what a recipe reads, drops and merges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..search.default import RANKED
from .opening import read_spec, record_of
from .options import CLASS_FILES, JsonOption, MachineOptions, NetworkOptions, OwnRecipeOption
from .output import print_record

if TYPE_CHECKING:  # heavy imports wait until a command needs them, so that --help answers at once
    from ..recipe import Recipe

OUT = ("tokensieve-show.png", "tokensieve-show.html")
BATCH = 8
MAPS = ("papr", "cam", "grad-cam", "grad-cam++", "eigen-cam", "score-cam", "random", "centre")


def show(
    *,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES", help="Image files, folders, tars; scenes has some generated.")
    ],
    network: NetworkOptions,
    recipe: OwnRecipeOption = None,
    proposal_weights: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|NAME=FILE", help="Weights of the recipe's proposal, or of the named one; repeats."),
    ] = None,
    keep: Annotated[str | None, typer.Option(metavar="K,...", help="Keep ratios, beside each other.")] = None,
    proposals: Annotated[str | None, typer.Option(metavar="NAME,...", help="Proposals, below each other.")] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="MAP,...", help=f"Significance maps beside each other: {', '.join(MAPS)}.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most N pictures, evenly spread.")] = 12,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE", help=f"Names of the model's classes. {CLASS_FILES}")
    ] = None,
    out: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help=f"A .png or .html; repeats. Default {' and '.join(OUT)}.")
    ] = None,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Draw what a recipe reads: the significance map, the patches kept and merged, the answers before and after.

    With --keep and --proposals a grid of both; with --compare a column for each map, and what each map costs.
    """
    keeps, nets, maps = _ratios(keep), _words(proposals, "--proposals"), _words(compare, "--compare")
    if maps and (nets or len(keeps) > 1):
        raise InputError("--compare takes one --keep and the recipe's own proposal: leave --proposals out.")
    files = _files(proposal_weights or [], nets)
    from .._files import check_place
    from ..show.page import SUFFIXES, write_page, write_png

    places = [check_place(place, SUFFIXES) for place in out or OUT]
    if recipe is None and (keeps or nets or maps or files):
        recipe = RANKED  # they vary what ranks the patches
    spec = read_spec(network, machine, recipe=recipe)
    from ..data import load_batches
    from ..show import gallery, rivals
    from ..show.explain import class_names
    from ..show.files import files_record, tell_files
    from ..show.progress import Watched, list_failures, working
    from ..show.sheet import sheet

    recipes: dict[str, Recipe] = {}
    if (given := spec.parsed_recipe()) is not None:
        recipes = rivals.choose(given, keeps=keeps, proposals=nets, maps=maps, files=files)
        spec = spec.with_recipe(next(iter(recipes.values())))
    several = bool(keeps or nets or maps)
    with working("opening the model"):
        dense, fast, own = opened = spec.open()
        recipes = recipes or {"": fast.recipe}
        known = class_names(dense, classes)
        record = {**record_of(spec, opened), "proposal_weights": files or None}
        record["random"] = gallery.random_parts(spec, recipes.values())
        fasts = rivals.open_rivals(dense, recipes, own.mean, own.std, pretrained=spec.pretrained) if several else {}
        pictures = gallery.Pictures(images, own, limit)
        tell_files(pictures)
        seen = Watched(load_batches(pictures, 1 if several else BATCH))
    if maps:
        shown = gallery.compared(rivals.Rivals(fasts, dense, known), own, seen, pictures.names)
    elif several:
        cells = rivals.with_keeps(fasts, keeps)
        shown = gallery.grid(rivals.Rivals(cells, dense, known), own, seen, pictures.names)
    else:
        shown = gallery.explained(opened, seen, pictures.names, known)
    record |= {**shown.record, "found": pictures.found}
    record |= files_record(pictures, len(shown.record["pictures"]), seen.failures)
    record["out"] = [str(place) for place in places]
    report = gallery.report(record, shown, next(iter(recipes.values())))
    with working("drawing"):
        for place in places:
            if place.suffix.lower() == ".html":
                write_page(place, report)
            else:
                write_png(place, sheet(report))
    print_record(record, "gallery.show_view", as_json)
    list_failures(seen.failures)


def _ratios(text: str | None) -> list[float]:
    """'0.8,0.4' -> [0.8, 0.4]; whether they are keep ratios, the recipe says."""
    try:
        return [] if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--keep must be keep ratios joined by commas, such as 0.8,0.4, not {text!r}.") from None


def _words(text: str | None, option: str) -> list[str]:
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if not all(words):
        raise InputError(f"{option} must be names joined by commas, not {text!r}.")
    return words


def _files(given: Sequence[str], nets: Sequence[str]) -> dict[str, str]:
    """Weights by the name of their proposal, which is empty where the recipe's own is meant."""
    files: dict[str, str] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not equals or Path(text).is_file():
            name, file = nets[0] if len(nets) == 1 else "", text
        if name in files or (not name and nets):
            raise InputError(f"--proposal-weights {text} does not say which proposal it is for: write NAME=FILE.")
        if not Path(file).is_file():
            raise InputError(f"There is no weights file {file}.")
        files[name] = file
    return files
