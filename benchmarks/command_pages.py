"""The reference of the command line, from the commands themselves. `readme.py` puts it in its place."""

from __future__ import annotations

from typing import Any

import typer

from tables import table
from tokensieve.cli import app


def every_command() -> str:
    """A section for each command, and one for each kind of a command that has kinds."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    sections = []
    for name in sorted(commands):
        sections.append(section(name, commands[name]))
        sections += [section(f"{name} {kind}", of) for kind, of in getattr(commands[name], "kinds", {}).items()]
    return "\n\n".join(sections)


def section(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [
        parameter for parameter in command.params if parameter.param_type_name == "option" and not hidden(parameter)
    ]
    usage = " ".join(["tokensieve", name, "[OPTIONS]", *(placeholder(parameter) for parameter in arguments)])
    rows = [[f"`{cell(placeholder(parameter))}`", cell(parameter.help or ""), ""] for parameter in arguments]
    rows += [[names(parameter), cell(parameter.help or ""), default(parameter)] for parameter in options]
    told = " ".join((command.help or "").split())
    return f"## {name}\n\n{told}\n\n```text\n{usage}\n```\n\n{table(['', '', 'default'], rows)}"


def hidden(parameter: Any) -> bool:
    return bool(parameter.hidden) or "--help" in parameter.opts


def placeholder(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def names(parameter: Any) -> str:
    told = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if parameter.is_flag:
        return told
    return f"{told} `{cell(placeholder(parameter))}`"


def default(parameter: Any) -> str:
    value = parameter.default
    if (
        value is None
        or callable(value)
        or parameter.required
        or value in ("", (), [])
        or parameter.show_default is False
    ):
        return "required" if parameter.required else ""
    if isinstance(value, bool):
        given = parameter.opts if value else parameter.secondary_opts
        return f"`{given[0]}`" if given else ""
    if isinstance(value, list | tuple):
        return " ".join(f"`{cell(str(each))}`" for each in value)
    return f"`{cell(str(value))}`"


def cell(text: str) -> str:
    """Text for one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
