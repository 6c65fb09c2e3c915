"""What a search found, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cascade_recipe import CascadeRecipe
from ..measure.comparison import KINDS

if TYPE_CHECKING:
    from ..search.evaluator import Figures
    from ..search.front import Front, Point


def describe(front: Front) -> str:
    """In plain words: what was found, and whether a proposal paid."""
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
    """The sentence on what could not take part."""
    return f"{name} was left out: {reason.rstrip('.')}."


def _recommended(front: Front) -> str:
    best = front.best
    lost = f"{best.search.divergence:.3g}"
    if best.heldout is not None:
        lost += f" on the search images and {best.heldout.divergence:.3g} on the held-out ones"
    same = ""
    if best.heldout is not None and best.heldout.agreement is not None:
        same = f", and {_keep_class(best.heldout)}{_stay(front, heldout=True)}"
    elif best.search.agreement is not None:
        same = f", and {_keep_class(best.search)}{_stay(front)}"
    varies = "" if best.heldout_macs is None else f" ({front.dense_macs / best.heldout_macs:.2f}x held out)"
    return f"{best.title}: {best.ratio:.2f}x fewer MACs{varies}, at a {front.unit} of {lost}{same}."


def _stay(front: Front, heldout: bool = False) -> str:
    """The end of a sentence on the share of images, or of pixels, whose answer stays."""
    kind = KINDS[front.best.search.kind]
    if kind.name == "classes":
        return f"{' of the held-out ones' if heldout else ''} keep their class"
    return f" of the {'held-out ' if heldout else ''}pixels keep their " + (
        "class" if kind.classes else "depth within a factor of 1.25"
    )


def _measured(front: Front) -> list[str]:
    """The speed of the recommended recipe, and how far it can be trusted."""
    point = front.recommended
    if point.speed is None:
        return ["Its speed was not measured."]
    speed = point.speed
    text = (
        f"Measured here at batch {speed.batch}: {speed.ratio:.2f}x the dense speed "
        f"[{speed.low:.2f}-{speed.high:.2f}], where it has {point.ratio:.2f}x fewer MACs."
    )
    attempts = f", after measuring {speed.attempts} times" if speed.attempts > 1 else ""
    state = f"The machine was quiet meanwhile{attempts}."
    if speed.busy:
        state = f"The machine was busy meanwhile{attempts}, so do not rely on it: {speed.busy}."
    hint = [] if "time" in front.wanted else ["To search for a speed instead of MACs: --time X, in Python time=X."]
    return [text, state, *hint]


def _promise(front: Front) -> list[str]:
    """What a cascade keeps, and whether a plain recipe would do."""
    recipe = front.best.recipe
    if not isinstance(recipe, CascadeRecipe) or recipe.agree is None or recipe.shares is None:
        return []
    again = ", ".join(f"{100 * share:.0f} %" for share in [share for share in recipe.shares if share][1:])
    promise = (
        f"It keeps {100 * recipe.agree:g} % of the answers with confidence {recipe.confidence:g}, certified on "
        f"{recipe.images} held-out images, of which it reads {again or 'none'} again."
    )
    plain = [point for point in front.points if point.kind != "cascade" and point.heldout is not None]
    cheaper = [point for point in plain if point.ratio >= front.best.ratio and point.heldout is not None]
    if not cheaper:
        return [promise]
    best = max(cheaper, key=lambda point: point.heldout.agreement or 0 if point.heldout else 0)
    assert best.heldout is not None
    return [promise, f"The best plain recipe as cheap keeps {_keep_class(best.heldout)} of the held-out ones."]


def _correction(front: Front) -> list[str]:
    point, best = front.corrected, front.best
    if point is None:
        return []
    if point.heldout is None or best.heldout is None:
        return [f"Corrected: a {front.unit} of {point.search.divergence:.3g} on images that it was not fitted on."]
    same = "" if point.heldout.agreement is None else f", {_keep_class(point.heldout)}{_stay(front)}"
    text = f"Corrected: a {front.unit} of {point.heldout.divergence:.3g} on the held-out ones{same}"
    return [f"{text}." if front.recommended is point else f"{text}, which is no better, so best.json goes without."]


def _against_singles(front: Front) -> list[str]:
    singles = [point for point in _beside(front) if point.kind == "single"]
    if not singles:
        return []
    best = min(singles, key=lambda point: point.divergence)
    if front.best.kind == "single":
        return ["No scheduled recipe was better than this method alone."]
    return [f"The best method alone at this budget is {best.title}, {best.divergence:.3g}."]


def _adaptive(front: Front) -> list[str]:
    """What a number of tokens of its own for each image would bring, where that is not what is recommended."""
    better = [point for point in _beside(front) if point.varies and point.divergence < front.best.divergence]
    if front.best.varies or not better:
        return []
    (point,) = better
    return [
        f"Where each image keeps as many tokens as it needs ({point.title}, {point.ratio:.2f}x on average) it is "
        f"{point.divergence:.3g}; compiled and exported graphs cannot take that, so best.json is another: its file "
        "lies beside."
    ]


def _proposal(front: Front) -> list[str]:
    searched = [point for point in _beside(front) if point.kind == "searched"]
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
            "agree": f"{100 * target:g} % the same answers",
        }
        warnings.append(f"The wanted {requested[kind]} was not reached: this is the nearest.")
    best = front.best
    if best.heldout is not None and best.heldout.divergence > 1.5 * best.search.divergence:
        warnings.append("The divergence on held-out images is much larger: search on more images.")
    if front.stopped:
        warnings.append(f"The search was ended early ({front.stopped}) after {front.trials} trials.")
    warnings += [left_out(name, reason) for name, reason in front.left_out.items()]
    return warnings


def _beside(front: Front) -> list[Point]:
    return [point for point in front.points if point.budget == front.best.budget]


def _keep_class(figures: Figures) -> str:
    """The share of images that keep their class, with its interval."""
    interval = figures.agreement_interval
    return f"{figures.agreement:.1f}%" + ("" if interval is None else f" [{interval.low:.1f}-{interval.high:.1f}]")
