"""Output of commands: the result goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from ..show.messages import say as say  # re-exported for the commands


def print_record(record: dict[str, Any], view: str, as_json: bool) -> None:
    """Print the record as one JSON object, or as a view: `view` is "module.function" in `show/`, imported if needed."""
    if as_json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
        return
    from ..show.tables import print_whole

    module, _, function = view.partition(".")
    print_whole(getattr(import_module(f"..show.{module}", __package__), function)(record))
