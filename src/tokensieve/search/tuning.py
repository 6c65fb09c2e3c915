"""`tune()`: from a model, a few hundred unlabelled images and a budget to the recipes that lose least."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._files import check_place, make_folder
from ..errors import InputError, RecipeError, SieveError, UnsupportedHost, first_line, nearest
from ..hosts import open_host
from ..measure.load import OtherWork, disturbs
from ..measure.outputs import evaluating
from ..measure.scores import IGNORE_INDEX
from ..measure.speed import Speed, interleaved, summarise
from ..methods import METHODS
from ..methods.base import make
from ..recipe import Recipe
from ..show.verdict import WIDE
from ..stream import sieve
from .families import CONTROLS, Family, Scheduled, family_names
from .families import families as families_of
from .fit import Fit
from .judge import Judge
from .stages import NAMES, costs_of, stage_families
from .wrapped import submodule

if TYPE_CHECKING:  # optuna is an extra: it is imported where a search begins, so that its absence can be explained
    import optuna

    from .front import Front, Measured, Point
    from .ladder import Progress, Search

MEASURED = 16
"""Images a batch when the front's speed is measured."""
ATTEMPTS = 3
"""How often the front's speed is measured while the machine is not quiet."""
FINALISTS = 10


def tune(
    model: nn.Module,
    loader: Iterable[Any] | Tensor,
    *,
    macs: float | None = None,
    time: float | None = None,
    loss: float | None = None,
    families: Sequence[str] | None = None,
    proposals: str | Sequence[str] | Mapping[str, str | os.PathLike[str] | None] | None = ("mobileone_s0",),
    trials: int = 200,
    timeout: float | None = None,
    storage: str | os.PathLike[str] | None = None,
    holdout: float = 0.3,
    seed: int = 0,
    include_proposal: bool = True,
    correction: str | os.PathLike[str] | None = None,
    report: Callable[[Progress], None] | None = None,
    tell: Callable[[str], object] | None = None,
    keep: Callable[[Front], object] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = True,
    batch: int = 32,
    backbone: str | None = None,
    kind: str | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Front:
    """Find recipes for a model within a budget, by how far its answers to unlabelled images move.

    Every recipe that is tried is scaled to take exactly the MACs it may, so that at each budget there is one number to
    make small: the mean KL(dense || sieved) over the search images (of class maps over their pixels too; for embeddings
    and maps of features 1 - cosine, for maps of depth the relative error). CMA-ES does that over
    some ten numbers (how the schedule runs over the depth, two guards, what a proposal drops). A front is five such
    searches, each begun from the best of the budget beside it, and not one search for two aims: CMA-ES has no
    form for two, and the genetic ones spend their trials all over the front, where the user wants one place of it.

    Args:
        model: the host, or a model around it, see `backbone`: images to scores (B, K), embeddings (B, D), or maps
            (B, C, H, W), as a tensor or in transformers' `ModelOutput`. Its modes are restored.
        loader: batches of images (B, 3, H, W) normalised as the model reads them, or tuples that begin with images and
            labels, or one tensor. A few hundred are enough; all are held in memory. With labels accuracy is reported,
            with a label for each pixel the mean IoU of class maps, or how right depths are.
        macs: wanted saving factor, 1.9 for 1.9 times fewer MACs than the dense model, proposal included. Give this,
            `time` or `loss`.
        time: wanted speed-up, measured on this machine where the model is.
        loss: largest allowed loss on the search images.
        families: what to search, see `tokensieve.search.families.family_names()`, for hosts with stages
            `tokensieve.search.stages.NAMES`; None is all that the host takes.
        proposals: networks that may rank patches: names, or name -> file of weights. Whether one pays, with what it
            costs, is found out; one that cannot be had is left out, and the result says so.
        trials: recipes to try in the searches, half of them at the wanted budget.
        timeout: seconds after which the search ends with what it has. Measuring and correcting what was found come on
            top.
        storage: SQLite file that keeps the trials: a search that was ended goes on where it was, and more trials can be
            added later. Other settings are refused.
        holdout: share of the images that the search does not see, on which what it found is reported too.
        seed: of the parting of the images and of CMA-ES.
        include_proposal: False leaves the proposal's MACs out of the budget, where its map comes for free.
        correction: file of weights to write, .safetensors: the recommended recipe is corrected on the search images,
            see `tokensieve.correct`, and what that costs is part of the budget. Its folder is made when there is
            something to write, if the one above is there. None corrects nothing.
        report: called after every trial.
        tell: called with a sentence when something is left out, when a round of the search is over and when what it
            found is measured or corrected.
        keep: called with the front as soon as there is one, before it is measured and corrected, and for a wanted
            `time`, of which the measuring is a part, after that: so that what was found outlives an end in between.
        mean, std, pretrained: as in `sieve`.
        batch: images that go through together.
        backbone: the name of the sub-module that is sieved, where the model itself is none that can be, such as a
            segmenter. The model gives it the images as they are and calls it, its `forward_features` or its
            `forward_intermediates`. MACs and speed are of the whole model; the recipes found are the sub-module's:
            `model.backbone = sieve(model.backbone, front.recommended.recipe)`.
        kind: "depth" where tensors (B, H, W) are meant as that; see `measure.comparison.KINDS`.
        ignore_index: the label of pixels that count nowhere.

    Raises:
        InputError: images, weights or a storage that cannot be used; nothing could be judged; optuna is missing.
        RecipeError: settings that make no sense.
        UnsupportedHost: the model cannot be sieved.
    """
    wanted = budget(macs, time, loss)
    if trials < 0 or not 0 <= holdout < 1 or batch < 1 or (timeout is not None and timeout <= 0):
        raise RecipeError(
            f"trials={trials} must be 0 or more, holdout={holdout:g} in [0, 1), batch={batch} at least 1, and timeout "
            "more than 0 seconds."
        )
    host = open_host(model if backbone is None else submodule(model, backbone))
    staged = host.units == "pixels"
    if correction is not None:
        correction = check_place(correction, (".safetensors",), new_folder=True)
    made = None if correction is None else correction.parent
    if storage is not None:
        check_place(storage, new_folder=Path(storage).parent == made)  # before anything slow begins
    optuna = _optuna()
    from .ladder import Clock, OutOfTime, Search, climb, towards

    names, asked = _names(families, host.model, staged), _proposals(proposals)
    clock = Clock(timeout)
    stopped = None
    with evaluating(model), _quiet(optuna):
        judge = Judge(
            model,
            loader,
            holdout=holdout,
            seed=seed,
            batch=batch,
            mean=mean,
            std=std,
            pretrained=pretrained,
            check=lambda: None,
            kind=kind,
            ignore_index=ignore_index,
            backbone=backbone,
        )
        costs = costs_of(judge.empty, judge.input_size)
        costs.add(judge.outside)
        # a model around the host may read the patches that readout() leaves out
        readout = backbone is None and "readout" in METHODS and _refusal(judge, Recipe.parse("readout()")) is None
        left_out = _LeftOut(tell or (lambda _: None))
        chosen = _families(names, staged, asked, judge, Fit(costs, 0.9 * costs.dense, readout), left_out)
        if correction is not None and (why := _cannot_correct(judge)) is not None:
            left_out["correction"], correction = str(why), None
        spare = 0 if correction is None else judge.empty.host.width**2
        settings = {
            **wanted,
            "model": _digest(model.state_dict().items()),
            "images": _digest([("images", judge.images)]),
            "families": [family.title for family in chosen],
            "proposals": [_identity(proposal) for proposal in asked],
            "holdout": holdout,
            "seed": seed,
            "include_proposal": include_proposal,
            "corrected": correction is not None,
            "pretrained": pretrained,
            "backbone": backbone,
            "kind": kind,
        }
        search = Search(
            families=chosen,
            fit=lambda ratio: Fit(costs, costs.dense / ratio - spare, readout, include_proposal),
            judge=judge,
            storage=_storage(optuna, storage, settings, made),
            seed=seed,
            report=report or (lambda _: None),
            tell=left_out.tell,
        )
        judge.check = clock
        try:
            if macs is not None:
                climb(search, macs, trials)
            elif loss is not None:
                towards(search, loss, trials)
            else:
                assert time is not None
                _until_fast(search, time, trials)
        except OutOfTime:
            stopped = "timeout"
        except KeyboardInterrupt:
            stopped = "interrupted"
        judge.check = lambda: None

        def front_of(held: bool) -> Front:
            return _front(search, wanted, include_proposal, left_out, {**settings, "trials": trials}, stopped, held)

        if stopped == "interrupted" and keep is not None and "time" not in wanted:
            keep(front_of(False))  # at once: whoever ended the search may not wait for the rest
        left_out.tell("Judging what was found on the held-out images.")
        front = front_of(True)
        if keep is not None:
            keep(front)
        if "time" not in wanted:
            left_out.tell("Measuring how fast it is.")
            front = _timed(front, judge)
        if correction is not None:
            left_out.tell("Fitting the correction.")
            front = _corrected(front, judge, correction, include_proposal, seed)
        return front


def _front(
    search: Search,
    wanted: dict[str, float],
    include_proposal: bool,
    left_out: dict[str, str],
    settings: dict[str, Any],
    stopped: str | None,
    held: bool,
) -> Front:
    from .front import Front, mark_dominated

    judge = search.judge
    points = mark_dominated(_points(search, include_proposal, held))
    if not points:
        why = search.failures[0].reason if search.failures else "the time was over before the first one; allow more"
        raise InputError(f"No recipe could be judged: {why.rstrip('.')}.")
    if "time" in wanted:
        points = _with_speed(judge, points, points)
    best, reached = _choose(points, wanted)
    at_budget = [(tried.figures.loss, arm, tried) for arm in search.arms[best.budget] for tried in arm.top(FINALISTS)]
    finalists = [
        _point(search, arm, tried, include_proposal, held)
        for _, arm, tried in sorted(at_budget, key=lambda each: each[0])[:FINALISTS]
    ]
    return Front(
        points=tuple(points),
        best=best,
        wanted=wanted,
        reached=reached,
        objective=judge.kind.divergence_name,
        dense_macs=search.fit(1.0).costs.dense,
        dense_accuracy=dict(judge.dense_accuracy.items()),
        finalists=tuple(finalists),
        trials=search.trials,
        stopped=stopped,
        failures=tuple(search.failures),
        left_out=dict(left_out),
        settings=settings,
    )


class _LeftOut(dict[str, str]):
    """Names to reasons, told as soon as they are known."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__()
        self.tell = tell

    def __setitem__(self, name: str, reason: str) -> None:
        from .front import left_out

        super().__setitem__(name, reason)
        self.tell(left_out(name, reason))


def _timed(front: Front, judge: Judge) -> Front:
    """The front with the speed of what nothing beats, and of all at the recommended budget."""
    chosen = [point for point in front.points if not point.dominated or point.budget == front.best.budget]
    points = _with_speed(judge, front.points, chosen)
    best = next(new for old, new in zip(front.points, points, strict=True) if old is front.best)
    return replace(front, points=tuple(points), best=best)


def _cannot_correct(judge: Judge) -> SieveError | None:
    from ..methods import Corrected
    from .correction import LEAST

    if len(judge.parts["search"]) < LEAST:
        return InputError(f"it takes {LEAST} images to search on.")
    if judge.wrapped is not None:
        return UnsupportedHost("it corrects what the head of a whole model reads, and here a sub-module is sieved.")
    try:
        sieve(judge.model, Corrected(), pretrained=False)
    except SieveError as error:
        return error
    return None


def _corrected(front: Front, judge: Judge, file: Path, include_proposal: bool, seed: int) -> Front:
    """The front with its recommended recipe corrected beside it; as it is where no correction helps.

    What the correction does to the search images is told of each by a correction that was fitted without it.
    """
    from .correction import correct
    from .judge import Figures

    best = front.best
    images = judge.images[judge.parts["search"]]
    try:
        found = correct(judge.model, best.recipe, images, file, batch=judge.batch, seed=seed, **judge.settings)
        if found.ridge is None:
            return front
        cost = judge.macs(found.recipe, include_proposal)
        held = judge.judge(found.recipe, "heldout") if len(judge.parts["heldout"]) else None
    except (SieveError, KeyboardInterrupt) as error:  # what the search found is not lost for it
        return replace(front, left_out={**front.left_out, "correction": str(error) or "it was interrupted"})
    point = replace(
        best, recipe=found.recipe, kind="corrected", macs=cost, ratio=front.dense_macs / cost, heldout=held, speed=None,
        search=Figures(found.corrected_loss, found.corrected_agreement, None, found.images, judge.kind.name),
    )  # fmt: skip
    (point,) = _with_speed(judge, [point], [point])
    return replace(front, corrected=point)


def _points(search: Search, include_proposal: bool, held: bool = True) -> list[Point]:
    """The best of each arm, also judged on the held-out images where that is wanted."""
    return [
        _point(search, arm, tried, include_proposal, held)
        for arms in search.arms.values()
        for arm in arms
        if (tried := arm.best()) is not None
    ]


def _point(search: Search, arm: Any, tried: Any, include_proposal: bool, held: bool) -> Point:
    from .front import Point

    judge, family = search.judge, arm.family
    figures = judge.recalled(tried.recipe, "heldout") if held and len(judge.parts["heldout"]) else None
    cost = judge.macs(tried.recipe, include_proposal)
    return Point(
        recipe=tried.recipe,
        family=family.name,
        proposal=None if family.proposal is None else family.proposal["proposal"],
        kind="searched" if family.searched else "single",
        budget=arm.ratio,
        macs=cost,
        ratio=arm.fit.costs.dense / cost,
        search=tried.figures,
        heldout=figures,
    )


def _choose(points: Sequence[Point], wanted: Mapping[str, float]) -> tuple[Point, bool]:
    """The recommended point, and whether it is what was wanted; if nothing is, the nearest."""
    ((kind, value),) = wanted.items()
    if kind == "loss":
        kept = [point for point in points if point.loss <= value]
        if kept:
            return max(kept, key=lambda point: (point.ratio, -point.loss)), True
        return min(points, key=lambda point: point.loss), False

    def saving(point: Point) -> float:
        return point.ratio if kind == "macs" else 0.0 if point.speed is None else point.speed.ratio

    kept = [point for point in points if saving(point) >= value * (1 - 1e-9)]
    if kept:
        return min(kept, key=lambda point: point.loss), True
    return max(points, key=lambda point: (saving(point), point.ratio)), False


def _until_fast(search: Search, wanted: float, trials: int) -> None:
    """Search by MACs, measure, and move the budget until a recipe is as fast as wanted."""
    from .ladder import climb

    climb(search, wanted, 2 * trials // 3)
    for _ in range(3):
        points = [point for point in _points(search, True) if point.kind == "searched"] or _points(search, True)
        if not points:
            return
        speeds: dict[float, float] = {}
        for point in _with_speed(search.judge, points, points):
            if point.speed is not None:
                speeds[point.budget] = max(speeds.get(point.budget, 0.0), point.speed.ratio)
        fast = [ratio for ratio, speed in speeds.items() if speed >= wanted]
        slow = [ratio for ratio, speed in speeds.items() if speed < wanted and ratio < min(fast, default=float("inf"))]
        if fast and slow:
            low, high = max(slow), min(fast)
            if high / low < 1.02:
                return
            part = (wanted - speeds[low]) / (speeds[high] - speeds[low])
            step = low + (high - low) * min(0.9, max(0.1, part))
        elif fast:
            return
        else:
            step = max(speeds) * min(1.4, 1.02 * wanted / max(speeds.values()))
        step = round(step, 4)
        if step in search.arms:
            return
        search.at(step, trials // 9, near=min(speeds, key=lambda other: abs(other - step)))


@torch.no_grad()
def _with_speed(judge: Judge, points: Sequence[Point], chosen: Sequence[Point], seconds: float = 10.0) -> list[Point]:
    """All points, the chosen ones with their speed: each against the dense model, all of them in the same rounds.

    Where others kept the machine busy, or the rounds differ much, it is measured again; of all the steadiest counts.
    """
    from .front import Measured

    like = next(judge.model.parameters())
    images = judge.images[judge.parts["search"][:MEASURED]].to(like.device)
    fasts = {str(point.recipe): judge.sieved(point.recipe) for point in chosen}
    calls: dict[str, Callable[[], Any]] = {"dense": partial(judge.model, images)}
    calls |= {text: partial(fast, images) for text, fast in fasts.items()}
    found: list[tuple[str, float, float | None, dict[str, Speed]]] = []
    try:
        while len(found) < ATTEMPTS and not (found and not found[-1][0]):
            work = OtherWork()
            times = interleaved(calls, seconds=seconds, min_rounds=5, max_rounds=50)
            others = work.cores()
            speeds = {
                text: summarise({"dense": times["dense"], "sieved": times[text], "limit": times[text]}, len(images))
                for text in fasts
            }
            spread = median((speed.high - speed.low) / speed.ratio for speed in speeds.values())
            found.append((_busy(others, spread), spread, others, speeds))
    except KeyboardInterrupt:  # whoever does not want to wait for this either gets the front without it
        if not found:
            return list(points)
    busy, _, others, speeds = min(found, key=lambda each: (bool(each[0]), each[1]))

    def measured(speed: Speed) -> Measured:
        return Measured(speed.ratio, speed.low, speed.high, len(images), len(found), others, busy)

    return [
        replace(point, speed=measured(speeds[text])) if (text := str(point.recipe)) in fasts else point
        for point in points
    ]


def _busy(others: float | None, spread: float) -> str:
    """Why what was timed is not to be relied on; empty where the machine was quiet."""
    said = []
    if others is not None and disturbs(others, torch.get_num_threads()):
        said.append(f"other processes used {others:.1f} of {os.cpu_count()} cores")
    if spread > WIDE:
        said.append(f"the rounds differ by {100 * spread:.0f} %")
    return ", ".join(said)


def budget(macs: float | None, time: float | None, loss: float | None) -> dict[str, float]:
    """The one of the three that was given, by its name; raises `RecipeError` where there is not exactly one."""
    given = {name: value for name, value in (("macs", macs), ("time", time), ("loss", loss)) if value is not None}
    if len(given) != 1:
        raise RecipeError(
            f"A search has exactly one budget, macs=, time= or loss=; it was given {' and '.join(given) or 'none'}."
        )
    ((name, value),) = given.items()
    least = 0 if name == "loss" else 1
    if not least < value < float("inf"):
        raise RecipeError(f"{name}={value:g} makes no sense: it must be larger than {least}.")
    return given


def _names(given: Sequence[str] | None, model: nn.Module, staged: bool) -> list[str] | None:
    if given is None:
        return None
    known, others = (list(NAMES), family_names()) if staged else (family_names(), list(NAMES))
    for name in [given] if isinstance(given, str) else given:
        if name in others and name not in known:
            kind = "has stages, whose maps keep their size" if staged else "has no stages"
            raise UnsupportedHost(
                f"{type(model).__name__} cannot be tuned by {name}: it {kind}. Families for it: {', '.join(known)}."
            )
        if name not in known:
            raise RecipeError(f"There is no family {name!r}{nearest(name, known)}. Known: {', '.join(known)}.")
    if not given:
        raise RecipeError(f"families is empty: name some of {', '.join(known)}.")
    return [given] if isinstance(given, str) else list(given)


def _proposals(given: str | Sequence[str] | Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Settings of `papr` for each proposal."""
    if isinstance(given, str):
        given = (given,)
    files = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given or ())
    for name, file in files.items():
        if not isinstance(name, str):
            raise RecipeError(f"A proposal is the name of a model, not {type(name).__name__}: recipe files hold names.")
        if file is not None and not Path(file).is_file():
            raise InputError(f"There is no weights file {os.fspath(file)} for the proposal {name}.")
    return [
        {"proposal": name, **({} if file is None else {"proposal_weights": os.fspath(file)})}
        for name, file in files.items()
    ]


def _families(
    names: list[str] | None,
    staged: bool,
    proposals: list[dict[str, Any]],
    judge: Judge,
    mild: Fit,
    left_out: dict[str, str],
) -> list[Family]:
    """Those that the host takes; what it refuses is an error where it was named, and is noted where it was not."""
    usable = []
    for settings in proposals:
        try:
            judge.map_of(make("papr", {"keep": 0.5, **settings}))  # type: ignore[arg-type]
            usable.append(settings)
        except (SieveError, RuntimeError) as error:
            left_out[settings["proposal"]] = " ".join(str(error).split())
    made_of, all_names = (stage_families, NAMES) if staged else (families_of, family_names())
    wanted = names or [name for name in all_names if name not in CONTROLS]
    found: list[Family] = []
    for family in made_of(wanted, usable):
        scheduled = isinstance(family, Scheduled) and any(isinstance(other, Scheduled) for other in found)
        if names is None and scheduled and family.name != "scheduled-guarded":
            continue  # the weaker of the two joins only where the host does not take the stronger, or where it is named
        why = None
        if family.proposal is None:
            try:
                why = _refusal(judge, family.recipe({}, family.variants()[0], mild))
            except RecipeError as error:
                why = error
        elif family.name in left_out:
            continue
        if why is None:
            found.append(family)
        elif names is not None:
            raise why
        else:
            left_out[family.name] = str(why)
    if not found:
        reasons = "; ".join(why.rstrip(".") for why in left_out.values())
        raise InputError(f"There is nothing to search: {reasons or 'papr needs a proposal'}.")
    return found


def _refusal(judge: Judge, recipe: Recipe) -> SieveError | None:
    try:
        judge.sieved(recipe)
    except SieveError as error:
        return error
    return None


def _optuna() -> Any:
    try:
        import cmaes  # noqa: F401  (what optuna's sampler runs on)
        import optuna
    except ImportError as error:
        raise InputError(
            f"Tuning needs optuna and cmaes ({error.name} is not here): pip install 'tokensieve[tune]'."
        ) from None
    return optuna


class _quiet:
    """optuna's own lines on every trial are left out: `report` tells the same."""

    def __init__(self, optuna: Any) -> None:
        self.logging = optuna.logging

    def __enter__(self) -> None:
        self.before = self.logging.get_verbosity()
        self.logging.set_verbosity(self.logging.WARNING)

    def __exit__(self, *_: object) -> None:
        self.logging.set_verbosity(self.before)


def _storage(
    optuna: Any, file: str | os.PathLike[str] | None, settings: dict[str, Any], made: Path | None
) -> optuna.storages.BaseStorage:
    """Where trials are kept; a file that holds another search is refused. Its folder may be `made` for it."""
    if file is None:
        return optuna.storages.InMemoryStorage()
    path = check_place(file, new_folder=Path(file).parent == made)
    make_folder(path.parent)
    from sqlalchemy.exc import SQLAlchemyError

    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        study = optuna.create_study(study_name="tokensieve", storage=storage, load_if_exists=True)
        before, now = study.user_attrs.get("settings"), json.loads(json.dumps(settings))
        if before is None:
            study.set_user_attr("settings", now)
    except (SQLAlchemyError, RuntimeError) as error:
        raise InputError(f"{path} cannot keep the trials, it is no storage of a search: {first_line(error)}.") from None
    changed = [name for name in {**(before or {}), **now} if before is not None and before.get(name) != now.get(name)]
    if changed:
        told = ", ".join(f"{name} was {_brief(before.get(name))} and is {_brief(now.get(name))}" for name in changed)
        raise InputError(f"{path} holds another search ({told}): give another file, or the same settings.")
    return storage


def _brief(value: Any) -> str:
    if value is None:
        return "not given"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 60 else f"{text[:40]}..."


def _identity(proposal: Mapping[str, Any]) -> dict[str, Any]:
    from ..zoo import file_sha256

    file = proposal.get("proposal_weights")
    return {"name": proposal["proposal"], "sha256": None if file is None else file_sha256(file)}


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The first half of the SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
