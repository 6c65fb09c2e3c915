"""How commands speak: the result on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any


def say(sentence: str) -> None:
    print(f"tokensieve: {sentence}", file=sys.stderr)


def print_record(record: dict[str, Any], view: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from ..show import tables

    Console(highlight=False).print(getattr(tables, view)(record))
