"""`tune()`: searches the recipes that lose least within a budget, on a few hundred unlabelled images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .._files import check_place
from ..errors import RecipeError
from ..hosts import open_host
from ..measure.outputs import evaluating
from ..measure.scores import IGNORE_INDEX
from ..methods import METHODS
from ..recipe import Recipe
from ..show.front_text import left_out as left_out_sentence
from .bars import adapt_all
from .budgets import budget, until_fast
from .candidates import families_for, names_of, proposals_of, refusal
from .evaluator import Evaluator
from .exit_costs import ExitCosts
from .families import ADAPTIVE, Scheduled
from .fit import Fit
from .front import Front
from .results import assemble_front, cannot_correct, corrected
from .stages import costs_of
from .storage import digest, identity, import_optuna, quiet, storage_for
from .timing import timed
from .wrapped import submodule

if TYPE_CHECKING:
    from .budget_search import Progress


def tune(
    model: nn.Module,
    loader: Iterable[Any] | Tensor,
    *,
    macs: float | None = None,
    time: float | None = None,
    divergence: float | None = None,
    agree: float | None = None,
    confidence: float = 0.95,
    score: str = "margin",
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
    """Search recipes for a model within a budget, by the change of its outputs on unlabelled images.

    Every recipe is scaled to use its budget of MACs exactly, so that each budget has a single objective: the mean
    KL(dense || sieved) over the search images (for class maps also over their pixels; 1 - cosine for embeddings and
    feature maps; the relative error for depth maps). CMA-ES minimises it over about ten numbers (the shape of the
    schedule over the depth, two guards, the share that a proposal drops). The front comes from five such searches, each
    started from the best of the nearest budget. A single search with two objectives would be worse: CMA-ES does not
    support it, and genetic algorithms spread their trials over the whole front, of which the user needs one point.

    Args:
        model: the host, or a model around it, see `backbone`: maps images to scores (B, K), embeddings (B, D), or maps
            (B, C, H, W), as a tensor or in transformers' `ModelOutput`. Its modes are restored.
        loader: batches of images (B, 3, H, W), or of clips in the model's layout, normalised as the model reads them;
            tuples that begin with images and labels; or one tensor. A few hundred images are enough; all are held in
            memory. With labels accuracy is reported too, with labels for pixels the mean IoU of class maps, or the
            errors of depth maps.
        macs: requested saving factor, 1.9 for 1.9 times fewer MACs than the dense model, proposal included. Give
            exactly one of `macs`, `time`, `divergence` and `agree`.
        time: requested speed-up, measured on this machine and the model's device.
        divergence: largest allowed divergence on the search images.
        agree: share of images, between 0 and 1, for which the prediction must equal the dense model's. The search is
            then over cascades (see `tokensieve.cascade`): a cheap recipe whose uncertain images go on to the next
            member. Recipe and thresholds are chosen for the smallest total cost. The promise is certified on the
            held-out images: 0.98 needs at least 149, and more images allow a cheaper cascade. The front has cascades
            for several promises, and single recipes.
        confidence, score: confidence level and score for `agree`, as for `tokensieve.cascade`.
        families: families to search, see `tokensieve.search.families.family_names()`, for hosts with stages
            `tokensieve.search.stages.NAMES`; None is all that the host supports.
        proposals: networks that may rank patches: names, or name -> weights file; for videos also "motion", which needs
            no network. The search shows whether one is worth its cost. A proposal that cannot be loaded is left out,
            and listed in the result.
        trials: number of recipes to try, half of them at the requested budget.
        timeout: seconds after which the search ends with the trials so far. Measuring and correcting the result take
            further time.
        storage: SQLite file for the trials: an interrupted search resumes from it, and more trials can be added later.
            Raises `InputError` if the file belongs to a search with other settings.
        holdout: share of held-out images, on which results are reported too.
        seed: random seed of the split of the images and of CMA-ES.
        include_proposal: False leaves the proposal's MACs out of the budget, for maps that cost nothing extra.
        correction: weights file to write, .safetensors: the recommended recipe is corrected on the search images, see
            `tokensieve.correct`; the correction's cost is part of the budget. Its folder is made if needed and if the
            parent folder exists. None: no correction.
        report: called after every trial.
        tell: called with a sentence when something is left out, after each round of the search, and when its result is
            measured or corrected.
        keep: called with the front before it is measured and corrected (with `time`: after it is measured), so that the
            result can be saved even if the rest is interrupted.
        mean, std, pretrained: as in `sieve`.
        batch: batch size.
        backbone: name of the sub-module to sieve, if the model itself cannot be sieved, such as a segmenter. The model
            must pass the images to it unchanged, by its call, `forward_features` or `forward_intermediates`. MACs and
            speed are those of the whole model; the recipes are for the sub-module:
            `model.backbone = sieve(model.backbone, front.recommended.recipe)`.
        kind: "depth" if outputs (B, H, W) are depths; see `measure.comparison.KINDS`.
        ignore_index: the label of pixels that are not scored.

    Raises:
        InputError: images, weights or a storage that cannot be used; no recipe could be evaluated; optuna is missing.
        RecipeError: invalid settings.
        UnsupportedHost: the model cannot be sieved.
    """
    target = budget(macs, time, divergence, agree)
    if trials < 0 or not 0 <= holdout < 1 or batch < 1 or (timeout is not None and timeout <= 0):
        raise RecipeError(
            f"trials={trials} must be 0 or more, holdout={holdout:g} in [0, 1), batch={batch} at least 1, and timeout "
            "more than 0 seconds."
        )
    host = open_host(model if backbone is None else submodule(model, backbone))
    staged = host.units == "pixels"
    if correction is not None:
        correction = check_place(correction, (".safetensors",), new_folder=True)
    folder = None if correction is None else correction.parent
    if storage is not None:
        check_place(storage, new_folder=Path(storage).parent == folder)  # before anything slow begins
    optuna = import_optuna()
    from .budget_search import OutOfTime, Search, TimeLimit, search_budgets, search_for_divergence
    from .cascade_search import SPARES, cascade_front, check_classes, search_cascades

    names, proposal_settings = names_of(families, host.model, staged), proposals_of(proposals)
    time_limit = TimeLimit(timeout)
    stopped = None
    with evaluating(model), quiet(optuna):
        evaluator = Evaluator(
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
        exits = getattr(host, "exits", ())
        costs = ExitCosts(evaluator) if len(exits) > 1 else costs_of(evaluator.empty, evaluator.input_size)
        costs.add(evaluator.outside_macs)
        # a model around the host may read patches that readout() does not compute
        readout = backbone is None and "readout" in METHODS and refusal(evaluator, Recipe.parse("readout()")) is None
        left_out = _LeftOut(tell or (lambda _: None))
        searched_families = families_for(
            names, staged, proposal_settings, evaluator, Fit(costs, 0.9 * costs.dense, readout), left_out
        )
        if agree is not None:
            check_classes(evaluator, backbone, score)
            searched_families = [
                replace(family, spares=SPARES) if isinstance(family, Scheduled) else family
                for family in searched_families
            ]
            correction = None
        if correction is not None and (error := cannot_correct(evaluator)) is not None:
            left_out["correction"], correction = str(error), None
        spare = 0 if correction is None else evaluator.empty.host.width**2
        settings = {
            **target,
            "model": digest(model.state_dict().items()),
            "images": digest([("images", evaluator.images)]),
            "families": [family.title for family in searched_families],
            "proposals": [identity(proposal) for proposal in proposal_settings],
            "holdout": holdout,
            "seed": seed,
            "include_proposal": include_proposal,
            "corrected": correction is not None,
            "pretrained": pretrained,
            "backbone": backbone,
            "kind": kind,
            **({} if agree is None else {"confidence": confidence, "score": score}),
        }
        search = Search(
            families=searched_families,
            fit=lambda ratio: Fit(costs, costs.dense / ratio - spare, readout, include_proposal),
            evaluator=evaluator,
            storage=storage_for(optuna, storage, settings, folder),
            seed=seed,
            report=report or (lambda _: None),
            tell=left_out.tell,
        )
        evaluator.check = time_limit
        try:
            if agree is not None:
                search_cascades(search, agree, confidence, score, trials)
            elif macs is not None:
                search_budgets(search, macs, trials)
            elif divergence is not None:
                search_for_divergence(search, divergence, trials)
            else:
                assert time is not None
                until_fast(search, time, trials)
        except OutOfTime:
            stopped = "timeout"
        except KeyboardInterrupt:
            stopped = "interrupted"
        if agree is None and stopped != "interrupted" and (names is None or ADAPTIVE in names) and not staged:
            search.recommends_adapted = names is not None
            try:
                left_out.tell("Replacing the numbers of the best schedules by thresholds.")
                adapt_all(search, macs if search.recommends_adapted else None, trials // 8)
            except OutOfTime:
                stopped = "timeout"
            except KeyboardInterrupt:
                stopped = "interrupted"
        evaluator.check = lambda: None

        def front_of(with_heldout: bool) -> Front:
            if agree is not None:
                return cascade_front(
                    search, agree, confidence, left_out, {**settings, "trials": trials}, stopped, with_heldout
                )
            return assemble_front(
                search, target, include_proposal, left_out, {**settings, "trials": trials}, stopped, with_heldout
            )

        if stopped == "interrupted" and keep is not None and "time" not in target:
            keep(front_of(False))  # save the result at once: the user may interrupt the rest too
        left_out.tell("Evaluating the recipes on the held-out images.")
        front = front_of(True)
        if keep is not None:
            keep(front)
        if "time" not in target:
            left_out.tell("Measuring speed.")
            front = timed(front, evaluator)
        if correction is not None:
            left_out.tell("Fitting the correction.")
            front = corrected(front, evaluator, correction, include_proposal, seed)
        return front


class _LeftOut(dict[str, str]):
    """Families, proposals and steps that were left out: name -> reason. Each is reported as soon as it is known."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__()
        self.tell = tell

    def __setitem__(self, name: str, reason: str) -> None:
        super().__setitem__(name, reason)
        self.tell(left_out_sentence(name, reason))
