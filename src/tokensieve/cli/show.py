"""`tokensieve show`: draw which patches of pictures and videos a recipe keeps, drops and merges."""

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
        typer.Argument(metavar="IMAGES", help="Images or videos: files, folders, tars, lists; or `scenes`, generated."),
    ],
    network: NetworkOptions,
    recipe: OwnRecipeOption = None,
    proposal_weights: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|NAME=FILE", help="Weights of the recipe's proposal, or of NAME; may be repeated."),
    ] = None,
    keep: Annotated[str | None, typer.Option(metavar="K,...", help="Keep ratios to compare, as columns.")] = None,
    proposals: Annotated[str | None, typer.Option(metavar="NAME,...", help="Proposals to compare, as rows.")] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="MAP,...", help=f"Significance maps to compare: {', '.join(MAPS)}.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most N pictures, evenly spread.")] = 12,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE", help=f"Names of the model's classes. {CLASS_FILES}")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Videos: all clips, instead of one from the middle.")] = False,
    out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help=f"A .png or .html, for videos also .mp4 or .gif; may be repeated. Default {' and '.join(OUT)}, for "
            f"videos {FILM[0]}.",
        ),
    ] = None,
    clips: SetOptions,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Draw the significance map, the patches that a recipe keeps and merges, and the predictions with and without it.

    --keep and --proposals draw a grid; --compare draws a column for each map, with its cost. Videos become a film of
    clips (see --views and --whole) and a page with strips of frames.
    """
    keeps, nets, maps = _ratios(keep), _names(proposals, "--proposals"), _names(compare, "--compare")
    if maps and (nets or len(keeps) > 1):
        raise InputError("--compare takes one --keep and the recipe's own proposal: leave --proposals out.")
    files = _files(proposal_weights or [], nets)
    from .._files import check_place
    from ..data import Preprocessing
    from ..show.page import SUFFIXES
    from ..show.video_file import SUFFIXES as FILMS

    out_paths = None if out is None else [check_place(path, (*SUFFIXES, *FILMS)) for path in out]
    if recipe is None and (keeps or nets or maps or files):
        recipe = RANKED  # these options need a recipe that ranks patches
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
        raise InputError("show reads one crop: --views must be a number of clips such as 3x1, without --whole.")
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
    """'0.8,0.4' -> [0.8, 0.4]; the recipe checks their range later."""
    try:
        return [] if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--keep must be keep ratios joined by commas, such as 0.8,0.4, not {text!r}.") from None


def _names(text: str | None, option: str) -> list[str]:
    """'a,b' -> ['a', 'b']. Raises `InputError` for an empty name."""
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"{option} must be names joined by commas, not {text!r}.")
    return names


def _files(values: Sequence[str], nets: Sequence[str]) -> dict[str, str]:
    """Proposal name -> its weights file; the name is empty for the recipe's own proposal."""
    files: dict[str, str] = {}
    for text in values:
        name, equals, file = text.partition("=")
        if not equals or Path(text).is_file():
            name, file = nets[0] if len(nets) == 1 else "", text
        if name in files or (not name and nets):
            raise InputError(f"--proposal-weights {text} does not name its proposal: write NAME=FILE.")
        if not Path(file).is_file():
            raise InputError(f"There is no weights file {file}.")
        files[name] = file
    return files
