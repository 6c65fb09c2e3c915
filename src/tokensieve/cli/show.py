"""`tokensieve show`: pictures, and films of videos, of what a recipe reads, drops and merges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..search.default import RANKED
from .opening import read_spec, record_of
from .options import CLASS_FILES, JsonOption, MachineOptions, NetworkOptions, OwnRecipeOption, SetOptions
from .output import print_record

if TYPE_CHECKING:  # heavy imports wait until a command needs them, so that --help answers at once
    from ..model_spec import OpenedModel
    from ..recipe import Recipe
    from ..show.page import Report

OUT = ("tokensieve-show.png", "tokensieve-show.html")
FILM = ("tokensieve-show.mp4", "tokensieve-show.html")
"""Files written by default for videos."""
BATCH = 8
MAPS = ("papr", "cam", "grad-cam", "grad-cam++", "eigen-cam", "score-cam", "random", "centre")


def show(
    *,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES", help="Images or videos: files, folders, tars, lists; scenes are generated."),
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
    whole: Annotated[
        bool, typer.Option("--whole", help="Of videos: all of it, clip after clip, instead of a clip of its middle.")
    ] = False,
    out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help=f"A .png, .html, of videos .mp4 or .gif; repeats. Default {' and '.join(OUT)}, of videos {FILM[0]}.",
        ),
    ] = None,
    clips: SetOptions,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Draw what a recipe reads: the significance map, the patches kept and merged, the answers before and after.

    With --keep and --proposals a grid of both; with --compare a column for each map, and what each map costs. Of videos
    it is a film of clips, one for each of --views or --whole, and a page with strips of them.
    """
    keeps, nets, maps = _ratios(keep), _words(proposals, "--proposals"), _words(compare, "--compare")
    if maps and (nets or len(keeps) > 1):
        raise InputError("--compare takes one --keep and the recipe's own proposal: leave --proposals out.")
    files = _files(proposal_weights or [], nets)
    from .._files import check_place
    from ..data import Preprocessing
    from ..show.page import SUFFIXES
    from ..show.video_file import SUFFIXES as FILMS

    out_paths = None if out is None else [check_place(path, (*SUFFIXES, *FILMS)) for path in out]
    if recipe is None and (keeps or nets or maps or files):
        recipe = RANKED  # they vary what ranks the patches
    spec = read_spec(network, machine, clips, recipe=recipe)
    from ..cascade_recipe import CascadeRecipe
    from ..data import load_batches
    from ..show import gallery, variants
    from ..show.explain import class_names
    from ..show.files import files_record, tell_files
    from ..show.progress import TrackedBatches, list_failures, working
    from ..show.sources import Pictures

    recipes: dict[str, Recipe] = {}
    if (own_recipe := spec.parsed_recipe()) is not None:
        assert not isinstance(own_recipe, CascadeRecipe)  # cascades are refused by `read_spec`
        recipes = variants.choose(own_recipe, keeps=keeps, proposals=nets, maps=maps, files=files)
        spec = spec.with_recipe(next(iter(recipes.values())))
    several = bool(keeps or nets or maps)
    with working("opening the model"):
        dense, fast, preprocessing = opened = spec.open()
        recipes = recipes or {"": fast.recipe}
        names = class_names(dense, classes)
        record = {**record_of(spec, opened), "proposal_weights": files or None}
        record["random"] = gallery.random_parts(spec, recipes.values())
        if "T" in opened.input_spec.layout:
            if several:
                raise InputError("--keep, --proposals and --compare are for models that read images: leave them out.")
            _show_videos(record, opened, images, names, limit, clips, whole, out_paths, as_json)
            return
        assert isinstance(preprocessing, Preprocessing)
        if whole or any(path.suffix.lower() in FILMS for path in out_paths or ()):
            raise InputError(f"--whole, .mp4 and .gif are for models that read videos, and {spec.model} reads images.")
        fasts = (
            variants.open_variants(dense, recipes, preprocessing.mean, preprocessing.std, pretrained=spec.pretrained)
            if several
            else {}
        )
        pictures = Pictures(images, preprocessing, limit)
        tell_files(pictures)
        tracked = TrackedBatches(load_batches(pictures, 1 if several else BATCH))
    if maps:
        result = gallery.compared(variants.Variants(fasts, dense, names), preprocessing, tracked, pictures.names)
    elif several:
        cells = variants.with_keeps(fasts, keeps)
        result = gallery.grid(variants.Variants(cells, dense, names), preprocessing, tracked, pictures.names)
    else:
        result = gallery.explained(opened, tracked, pictures.names, names)
    record |= {**result.record, "total": pictures.total}
    record |= files_record(pictures, len(result.record["pictures"]), tracked.failures)
    out_paths = out_paths or [check_place(path) for path in OUT]
    record["out"] = [str(path) for path in out_paths]
    _write(out_paths, gallery.report(record, result, next(iter(recipes.values()))))
    print_record(record, "gallery.show_view", as_json)
    list_failures(tracked.failures)


def _show_videos(
    record: dict[str, Any],
    opened: OpenedModel,
    sources: Sequence[str],
    classes: Sequence[str] | None,
    limit: int,
    options: SetOptions,
    whole: bool,
    out_paths: list[Path] | None,
    as_json: bool,
) -> None:
    """Films and strips of clips."""
    from .._files import check_place
    from ..data import Views
    from ..measure.outputs import class_count
    from ..show import clip_gallery, gallery
    from ..show.files import files_record, tell_files
    from ..show.progress import Counting, list_failures
    from ..show.sources import Videos
    from ..show.video_file import SUFFIXES

    preprocessing: Any = opened.preprocessing
    if Views.parse(preprocessing.views).crops > 1 or (whole and options.views is not None):
        raise InputError("--views of show says how many clips of each video, such as 3x1, and --whole reads them all.")
    out_paths = out_paths or [check_place(path) for path in FILM]
    videos = Videos(sources, preprocessing, limit, options.root)
    tell_files(videos)
    own_names = names if (names := videos.class_names) and len(names) == class_count(opened.dense) else None
    with Counting("clips shown") as counting:
        reel = clip_gallery.show_clips(
            opened,
            clip_gallery.clips_of(videos, videos.names, whole=whole),
            classes or own_names,
            [path for path in out_paths if path.suffix.lower() in SUFFIXES],
            lambda done: counting.update(done, None),
        )
    result = reel.gallery()
    record |= {
        **result.record,
        "total": videos.total,
        "whole": whole,
        "views": preprocessing.views,
        "out": list(map(str, out_paths)),
    }
    record |= files_record(videos, reel.videos, reel.failures)
    _write(out_paths, gallery.report(record, result, opened.fast.recipe))
    print_record(record, "gallery.show_view", as_json)
    list_failures(reel.failures, videos.kind)


def _write(out_paths: Sequence[Path], report: Report) -> None:
    """Write the page and the sheet, if requested."""
    from ..show.page import write_page, write_png
    from ..show.progress import working
    from ..show.sheet import sheet

    with working("drawing"):
        for path in out_paths:
            if path.suffix.lower() == ".html":
                write_page(path, report)
            elif path.suffix.lower() == ".png":
                write_png(path, sheet(report))


def _ratios(text: str | None) -> list[float]:
    """'0.8,0.4' -> [0.8, 0.4]; whether they are keep ratios, the recipe says."""
    try:
        return [] if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--keep must be keep ratios joined by commas, such as 0.8,0.4, not {text!r}.") from None


def _words(text: str | None, option: str) -> list[str]:
    names = [] if text is None else [word.strip() for word in text.split(",")]
    if not all(names):
        raise InputError(f"{option} must be names joined by commas, not {text!r}.")
    return names


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
