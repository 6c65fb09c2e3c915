import json

import pytest

from tokensieve.data import class_index
from tokensieve.errors import InputError

EXPECTED = {"tench": 0, "goldfish": 1, "shark": 2}


@pytest.mark.parametrize(
    "content",
    [
        ["tench", "goldfish", "shark"],
        {"shark": 2, "tench": 0, "goldfish": 1},
        {"0": "tench", "1": "goldfish", "2": "shark"},
        {"0": ["tench", "a fish"], "1": ["goldfish", "gold"], "2": ["shark", "teeth"]},
        {"wnids": ["tench", "goldfish", "shark"], "names": ["a", "b", "c"], "some": {"tench": 0}},
        {"classes": ["tench", "goldfish", "shark"]},
    ],
)
def test_json_shapes_say_the_same(content, tmp_path):
    file = tmp_path / "classes.json"
    file.write_text(json.dumps(content))
    assert class_index(file) == class_index(content) == EXPECTED


def test_text_file_with_a_name_a_line(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("tench\r\n goldfish \nshark\n\n")
    assert class_index(str(file)) == EXPECTED


def test_folder_names_may_be_numbers():
    assert class_index({"10": 0, "2": 1}) == {"10": 0, "2": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "folder names"),
        ("a\n\nb\n", "none of them empty"),
        ("a\nb\na\n", "'a' twice, at 0 and 2"),
        ("[1, 2]", "folder names"),
        ("{", "not valid JSON"),
        ('{"a": 1.5}', "map folder names"),
        ('{"a": -1}', "map folder names"),
        ('{"other": ["a"]}', "wnids, classes"),
    ],
)
def test_what_is_no_class_index_is_named(text, words, tmp_path):
    file = tmp_path / "classes"
    file.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        class_index(file)
    assert str(file) in str(caught.value)


def test_missing_or_binary_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        class_index(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="cannot be read"):
        class_index(tmp_path / "binary")
