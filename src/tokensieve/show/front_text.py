"""Describes the result of a search in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cascade_recipe import CascadeRecipe
from ..measure.comparison import KINDS

if TYPE_CHECKING:
    from ..search.evaluator import Figures
    from ..search.front import Front, Point


def describe(front: Front) -> str:
    """The recommended recipe, its loss and speed, and how it compares with other recipes, as text."""
    sentences = [
        _recommended(front),
        *_promise(front),
        *_correction(front),
        *_measured(front),
        *_against_singles(front),
        *_adaptive(front),
        *_proposal(front),
        *_warnings(front),
    ]
    return " ".join(sentences)


def left_out(name: str, reason: str) -> str:
    """The sentence about a family or a method that could not be tried."""
    return f"{name} was left out: {reason.rstrip('.')}."


def _recommended(front: Front) -> str:
    best = front.best
    divergence = f"{best.search.divergence:.3g}"
    if best.heldout is not None:
        divergence += f" on the search images and {best.heldout.divergence:.3g} on the held-out ones"
    same = ""
    if best.heldout is not None and best.heldout.agreement is not None:
        same = f", and {_share(best.heldout)}{_unchanged(front, heldout=True)}"
    elif best.search.agreement is not None:
        same = f", and {_share(best.search)}{_unchanged(front)}"
    varies = "" if best.heldout_macs is None else f" ({front.dense_macs / best.heldout_macs:.2f}x held out)"
    return f"{best.title}: {best.ratio:.2f}x fewer MACs{varies}, at a {front.unit} of {divergence}{same}."


def _unchanged(front: Front, heldout: bool = False) -> str:
    """The end of a sentence about the share of images, or of pixels, whose prediction stays the same."""
    kind = KINDS[front.best.search.kind]
    if kind.name == "classes":
        return f"{' of the held-out ones' if heldout else ''} keep their class"
    return f" of the {'held-out ' if heldout else ''}pixels keep their " + (
        "class" if kind.classes else "depth within a factor of 1.25"
    )


def _measured(front: Front) -> list[str]:
    """Sentences about the speed of the recommended recipe, and how reliable the measurement is."""
    point = front.recommended
    if point.speed is None:
        return ["Its speed was not measured."]
    speed = point.speed
    text = (
        f"Measured here at batch {speed.batch}: {speed.ratio:.2f}x the dense speed "
        f"[{speed.low:.2f}-{speed.high:.2f}], where it has {point.ratio:.2f}x fewer MACs."
    )
    attempts = f", after measuring {speed.attempts} times" if speed.attempts > 1 else ""
    state = f"The machine was quiet during the measurement{attempts}."
    if speed.busy:
        state = f"The machine was busy during the measurement{attempts}, so do not rely on it: {speed.busy}."
    hint = [] if "time" in front.wanted else ["To search for a speed instead of MACs: --time X, in Python time=X."]
    return [text, state, *hint]


def _promise(front: Front) -> list[str]:
    """Sentences about the promise of a cascade, and about the best single recipe of the same cost."""
    recipe = front.best.recipe
    if not isinstance(recipe, CascadeRecipe) or recipe.agree is None or recipe.shares is None:
        return []
    later_shares = ", ".join(f"{100 * share:.0f} %" for share in [share for share in recipe.shares if share][1:])
    promise = (
        f"It keeps {100 * recipe.agree:g} % of the predictions with confidence {recipe.confidence:g}, certified on "
        f"{recipe.images} held-out images, of which {later_shares or 'none'} went on to a later recipe."
    )
    plain = [point for point in front.points if point.kind != "cascade" and point.heldout is not None]
    cheaper = [point for point in plain if point.ratio >= front.best.ratio and point.heldout is not None]
    if not cheaper:
        return [promise]
    best = max(cheaper, key=lambda point: point.heldout.agreement or 0 if point.heldout else 0)
    assert best.heldout is not None
    return [promise, f"The best single recipe of at most that cost keeps {_share(best.heldout)} of the held-out ones."]


def _correction(front: Front) -> list[str]:
    point, best = front.corrected, front.best
    if point is None:
        return []
    if point.heldout is None or best.heldout is None:
        return [f"Corrected: a {front.unit} of {point.search.divergence:.3g} on images that it was not fitted on."]
    same = "" if point.heldout.agreement is None else f", {_share(point.heldout)}{_unchanged(front)}"
    text = f"Corrected: a {front.unit} of {point.heldout.divergence:.3g} on the held-out ones{same}"
    return [f"{text}." if front.recommended is point else f"{text}, which is no better, so best.json does not use it."]


def _against_singles(front: Front) -> list[str]:
    singles = [point for point in _at_same_budget(front) if point.kind == "single"]
    if not singles:
        return []
    best = min(singles, key=lambda point: point.divergence)
    if front.best.kind == "single":
        return ["No searched recipe was better than this single method."]
    return [f"The best method alone at this budget is {best.title}, {best.divergence:.3g}."]


def _adaptive(front: Front) -> list[str]:
    """A sentence about a better recipe with a varying number of tokens per image, if it is not the recommended one."""
    better = [point for point in _at_same_budget(front) if point.varies and point.divergence < front.best.divergence]
    if front.best.varies or not better:
        return []
    (point,) = better
    return [
        f"With a different number of tokens for each image ({point.title}, {point.ratio:.2f}x on average) it is "
        f"{point.divergence:.3g}; compiled and exported graphs do not support that, so best.json is another recipe; "
        "the file of this one is in the same folder."
    ]


def _proposal(front: Front) -> list[str]:
    searched = [point for point in _at_same_budget(front) if point.kind == "searched"]
    alone = min((point.divergence for point in searched if point.proposal is None), default=None)
    with_proposal = min(
        (point for point in searched if point.proposal is not None), key=lambda p: p.divergence, default=None
    )
    if alone is None or with_proposal is None:
        return []
    pays = "A proposal paid" if with_proposal.divergence < alone else "No proposal paid"
    return [f"{pays}: {with_proposal.divergence:.3g} with {with_proposal.proposal}, {alone:.3g} without any."]


def _warnings(front: Front) -> list[str]:
    warnings = []
    (kind, target), *_ = front.wanted.items()
    if not front.reached:
        requested = {
            "macs": f"{target:g}x fewer MACs",
            "time": f"{target:g}x the speed",
            "divergence": f"a divergence of {target:g}",
            "agree": f"{100 * target:g} % equal predictions",
        }
        warnings.append(f"The budget, {requested[kind]}, was not reached: this is the closest recipe.")
    best = front.best
    if best.heldout is not None and best.heldout.divergence > 1.5 * best.search.divergence:
        warnings.append("The divergence on held-out images is much larger: search on more images.")
    if front.stopped:
        warnings.append(f"The search was ended early ({front.stopped}) after {front.trials} trials.")
    warnings += [left_out(name, reason) for name, reason in front.left_out.items()]
    return warnings


def _at_same_budget(front: Front) -> list[Point]:
    """The points with the budget of the best one."""
    return [point for point in front.points if point.budget == front.best.budget]


def _share(figures: Figures) -> str:
    """The share of images, or of pixels, with an unchanged prediction, with its interval."""
    interval = figures.agreement_interval
    return f"{figures.agreement:.1f}%" + ("" if interval is None else f" [{interval.low:.1f}-{interval.high:.1f}]")
