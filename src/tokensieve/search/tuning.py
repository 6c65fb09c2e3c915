"""`tune()`: the recipes that lose least within a budget, found on a few hundred unlabelled images."""

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
    """Find recipes for a model within a budget, by how far its outputs on unlabelled images change.

    Every recipe is scaled to use its budget of MACs exactly, so that each budget has one objective to minimise: the
    mean KL(dense || sieved) over the search images (of class maps over their pixels too; for embeddings
    and maps of features 1 - cosine, for maps of depth the relative error). CMA-ES does that over
    some ten numbers (how the schedule runs over the depth, two guards, what a proposal drops). The front comes from
    five such searches, each started from the best of the neighbouring budget, and not from one search with two
    objectives: CMA-ES has no form for two, and genetic algorithms spread their trials over the whole front, of which
    the user wants one point.

    Args:
        model: the host, or a model around it, see `backbone`: images to scores (B, K), embeddings (B, D), or maps
            (B, C, H, W), as a tensor or in transformers' `ModelOutput`. Its modes are restored.
        loader: batches of images (B, 3, H, W), or of clips as the model lays them out, normalised as the model reads
            them, or tuples that begin with images and labels, or one tensor. A few hundred are enough; all are held in
            memory. With labels accuracy is reported, with a label for each pixel the mean IoU of class maps, or how
            right depths are.
        macs: wanted saving factor, 1.9 for 1.9 times fewer MACs than the dense model, proposal included. Give this,
            `time`, `divergence` or `agree`.
        time: wanted speed-up, measured on this machine where the model is.
        divergence: largest allowed divergence on the search images.
        agree: the share of images, between 0 and 1, that must be answered as by the dense model: searched are cascades,
            a cheap recipe whose unsure answers are read again (see `tokensieve.cascade`), recipe and thresholds, for
            the cheapest total. The promise is certified on the held-out images, which must be many: 0.98 takes 149 at
            least, and the more, the cheaper. The front has cascades for several promises, and plain recipes.
        confidence, score: of the promise, as of `tokensieve.cascade`.
        families: what to search, see `tokensieve.search.families.family_names()`, for hosts with stages
            `tokensieve.search.stages.NAMES`; None is all that the host takes.
        proposals: networks that may rank patches: names, or name -> file of weights; of videos also "motion", which
            asks none. Whether one pays, with what it costs, is found out; one that cannot be had is left out, and the
            result says so.
        trials: recipes to try in the searches, half of them at the wanted budget.
        timeout: seconds after which the search ends with the trials so far. Measuring and correcting the result come on
            top.
        storage: SQLite file that keeps the trials: an interrupted search resumes, and more trials can be
            added later. Other settings are refused.
        holdout: share of the images that the search does not see, on which its results are reported too.
        seed: of the split of the images and of CMA-ES.
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
        batch: batch size.
        backbone: the name of the sub-module that is sieved, where the model itself is none that can be, such as a
            segmenter. The model gives it the images as they are and calls it, its `forward_features` or its
            `forward_intermediates`. MACs and speed are of the whole model; the recipes found are the sub-module's:
            `model.backbone = sieve(model.backbone, front.recommended.recipe)`.
        kind: "depth" where tensors (B, H, W) are meant as that; see `measure.comparison.KINDS`.
        ignore_index: the label of pixels that are not scored.

    Raises:
        InputError: images, weights or a storage that cannot be used; no recipe could be evaluated; optuna is missing.
        RecipeError: settings that make no sense.
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
    from .budget_search import Clock, OutOfTime, Search, search_budgets, towards
    from .cascade_search import SPARES, cascade_front, check_classes, search_cascades

    names, proposal_settings = names_of(families, host.model, staged), proposals_of(proposals)
    clock = Clock(timeout)
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
        costs.add(evaluator.outside)
        # a model around the host may read the patches that readout() leaves out
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
        if correction is not None and (why := cannot_correct(evaluator)) is not None:
            left_out["correction"], correction = str(why), None
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
        evaluator.check = clock
        try:
            if agree is not None:
                search_cascades(search, agree, confidence, score, trials)
            elif macs is not None:
                search_budgets(search, macs, trials)
            elif divergence is not None:
                towards(search, divergence, trials)
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
                left_out.tell("Setting thresholds in place of the best numbers of merges.")
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
            keep(front_of(False))  # at once: a user who ended the search may not wait for the rest
        left_out.tell("Judging what was found on the held-out images.")
        front = front_of(True)
        if keep is not None:
            keep(front)
        if "time" not in target:
            left_out.tell("Measuring how fast it is.")
            front = timed(front, evaluator)
        if correction is not None:
            left_out.tell("Fitting the correction.")
            front = corrected(front, evaluator, correction, include_proposal, seed)
        return front


class _LeftOut(dict[str, str]):
    """What was left out: name -> reason, reported as soon as it is known."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__()
        self.tell = tell

    def __setitem__(self, name: str, reason: str) -> None:
        super().__setitem__(name, reason)
        self.tell(left_out_sentence(name, reason))
