"""`tokensieve methods`, `models` and `doctor`: what there is, what opens, and whether this machine is ready."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import InputError, SieveError
from .completion import METHODS, one_of
from .options import JsonOption
from .output import print_record


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One method, told whole.", autocompletion=one_of(METHODS)),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the methods that recipes are made of, with their settings."""
    from ..about.methods import method_facts

    print_record({"methods": method_facts(name)}, f"about_view.{'method' if name else 'methods'}_view", as_json)


def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Names to build and try, such as 'deit*'.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what opens neither way, and why.")] = False,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Only with pretrained weights, naming them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the models that open as hosts or as proposals: without a PATTERN by family, with one each match, tried."""
    if everything and pattern is None:
        raise InputError("--all says why models are refused, and needs a pattern that names them, such as 'beit*'.")
    from ..about.models import bundled_names, families, matching, weights_of

    if pattern is None:
        modules = families()
        if pretrained:
            modules = [{**family, "models": family["pretrained"]} for family in modules if family["pretrained"]]
        print_record({"bundled": _tried(bundled_names()), "families": modules}, "about_view.families_view", as_json)
        return
    names = [name for name in matching(pattern) if not pretrained or weights_of(name)]
    if not names:
        raise InputError(f"No model that fits {pattern!r} has pretrained weights: leave out --pretrained.")
    tried = _tried(names)
    opening = [model for model in tried if model["opens_as"]]
    record = {
        "pattern": pattern,
        "all": everything,
        "pretrained": pretrained,
        "matches": len(tried),
        "refused": len(tried) - len(opening),
        "models": tried if everything else opening,
    }
    print_record(record, "about_view.models_view", as_json)


def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine has and whether tokensieve works on it. Exit code 2 where it does not."""
    try:
        from ..about.machine import machine_facts
    except ImportError as error:
        raise SieveError(
            f"tokensieve cannot start: {error}. Install what it needs with: pip install tokensieve."
        ) from error
    record = machine_facts()
    print_record(record, "about_view.doctor_view", as_json)
    if record["failures"]:
        raise SieveError(" ".join(record["failures"]))


def _tried(names: list[str]) -> list[dict[str, Any]]:
    from ..about.models import model_facts
    from ..show.progress import working

    tried = []
    with working("building models") as status:
        for index, name in enumerate(names):
            status.update(f"building model {index + 1} of {len(names)}: {name}")
            tried.append(model_facts(name))
    return tried
