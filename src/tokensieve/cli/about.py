"""`tokensieve methods`, `models` and `doctor`: the available methods and models, and a check of this machine."""

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
        typer.Argument(metavar="[NAME]", help="Show one method in full.", autocompletion=one_of(METHODS)),
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
    everything: Annotated[bool, typer.Option("--all", help="Also list models that cannot be used, and why.")] = False,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Only models with pretrained weights; list the weights.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the models that can be hosts or proposals: by family, or with PATTERN each match, built and tried."""
    if everything and pattern is None:
        raise InputError("--all lists why models are refused, and needs a pattern for their names, such as 'beit*'.")
    from ..about.models import bundled_names, families, matching, weights_of

    if pattern is None:
        modules = families()
        if pretrained:
            modules = [{**family, "models": family["pretrained"]} for family in modules if family["pretrained"]]
        print_record({"bundled": _tried(bundled_names()), "families": modules}, "about_view.families_view", as_json)
        return
    names = [name for name in matching(pattern) if not pretrained or weights_of(name)]
    if not names:
        raise InputError(f"No model that matches {pattern!r} has pretrained weights: leave out --pretrained.")
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
    """Show the machine's hardware and software, and check that tokensieve works on it. Exit code 2 if it does not."""
    try:
        from ..about.machine import machine_facts
    except ImportError as error:
        raise SieveError(
            f"tokensieve cannot start: {error}. Install its dependencies with: pip install tokensieve."
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
