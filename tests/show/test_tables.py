"""Tables in a file, in a pipe and on a narrow terminal: nothing is cut."""

import re

import pytest
from rich.console import Group
from rich.text import Text

from tokensieve.show.tables import new_table, print_whole

NAMES = ("English springer 73 %", "scheduled-guarded with squeezenet1_1", "a/very/long/path/of/a/picture/" * 4)


def view():
    table = new_table("", "answer", "KL", text=(1,))
    for name in NAMES:
        table.add_row(name, name, "0.0123")
    return Group(Text("Prose goes on in the next line where the first one ends. " * 4), Group(table))


def test_a_file_has_whole_cells(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_whole(view())
    out = capsys.readouterr().out
    for name in NAMES:
        assert out.count(name) == 2
    assert "…" not in out
    prose = out.split("answer")[0].splitlines()[:-1]
    assert max(map(len, prose)) <= 80


@pytest.mark.parametrize("columns", [50, 80])
def test_a_terminal_folds_words_and_keeps_figures_whole(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich's word for a terminal
    print_whole(view())
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= columns
    assert "…" not in out
    assert out.count("0.0123") == 3
