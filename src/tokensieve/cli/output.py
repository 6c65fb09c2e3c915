"""How commands speak: the result on stdout, everything else on stderr."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from ..show.messages import say as say  # where commands find it


def print_record(record: dict[str, Any], view: str, as_json: bool) -> None:
    """One JSON object, or what a view shows of it: `view` is "module.function" in `show/`, imported only then."""
    if as_json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
        return
    from ..show.tables import print_whole

    module, _, function = view.partition(".")
    print_whole(getattr(import_module(f"..show.{module}", __package__), function)(record))
