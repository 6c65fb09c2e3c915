import json

import pytest

from tokensieve.data import class_descriptions, class_index
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


SYNSETS = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn01484850 great white shark\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LOC_synset_mapping.txt", SYNSETS),
        ("lemma.txt", SYNSETS.replace(" ", "\t", 1).replace("n01443537 ", "n01443537\t")),
        ("lines.txt", SYNSETS.replace("\n", "\r\n")),
        (
            "a.csv",
            'wnid,description\nn01440764,"tench, Tinca tinca"\nn01443537,"goldfish, Carassius auratus"\n'
            "n01484850,great white shark\n",
        ),
        (
            "a.tsv",
            "index\tfolder\twords\n2\tn01484850\tgreat white shark\n0\tn01440764\ttench, Tinca tinca\n"
            "1\tn01443537\tgoldfish, Carassius auratus\n",
        ),
        (
            "a.txt",
            "Class Index;Synset;Name\n0;n01440764;tench, Tinca tinca\n1;n01443537;goldfish, Carassius auratus\n\n"
            "2;n01484850;great white shark\n",
        ),
    ],
    ids=["synsets", "tabs", "crlf", "csv", "tsv", "semicolons"],
)
def test_synsets_and_columns(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert class_index(tmp_path / name) == {"n01440764": 0, "n01443537": 1, "n01484850": 2}
    assert class_descriptions(tmp_path / name) == {
        0: "tench, Tinca tinca",
        1: "goldfish, Carassius auratus",
        2: "great white shark",
    }


@pytest.mark.parametrize(
    ("header", "rows", "index", "words"),
    [
        ("class,label", ["tench,7", "shark,9"], {"tench": 7, "shark": 9}, {7: "tench", 9: "shark"}),
        ("class,name", ["7,tench", "9,shark"], {"tench": 7, "shark": 9}, {7: "tench", 9: "shark"}),
        ("id,name", ["7,tench", "9,shark"], {"tench": 7, "shark": 9}, {7: "tench", 9: "shark"}),
        ("id,name", ["n1,tench", "n2,shark"], {"n1": 0, "n2": 1}, {0: "tench", 1: "shark"}),
        ("folder,index", ["10,0", "2,1"], {"10": 0, "2": 1}, {0: "10", 1: "2"}),
        ("folder", ["tench", "shark"], {"tench": 0, "shark": 1}, {0: "tench", 1: "shark"}),
        ('"folder","index"', ['"a, b",0', '"c ""d""",2'], {"a, b": 0, 'c "d"': 2}, {0: "a, b", 2: 'c "d"'}),
        ("pictures,folder,target", ["50,a,3", "60,b,4"], {"a": 3, "b": 4}, {3: "a", 4: "b"}),
    ],
)
def test_which_column_is_which(header, rows, index, words, tmp_path):
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]))
    assert class_index(tmp_path / "a.csv") == index
    assert class_descriptions(tmp_path / "a.csv") == words


def test_names_a_line_may_look_like_headers_or_hold_commas(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("name\nlabel\ntench, Tinca tinca\ngreat white shark\n")
    assert class_index(file) == {"name": 0, "label": 1, "tench, Tinca tinca": 2, "great white shark": 3}


def test_descriptions_in_json():
    assert class_descriptions({"0": ["n1", "tench"], "1": ["n2"]}) == {0: "tench", 1: "n2"}
    assert class_descriptions({"wnids": ["n1", "n2"], "names": ["tench", "shark"]}) == {0: "tench", 1: "shark"}
    assert class_descriptions({"wnids": ["n1", "n2"], "names": ["tench"]}) == {0: "n1", 1: "n2"}
    assert class_descriptions(["tench"]) == {0: "tench"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "n01440764 tench\nn01443537\n", "Line 2 of .*'n01443537'"),
        ("a.txt", "n01440764,0\nn01443537,1\n", "without a header: begin it with folder,index"),
        ("a.csv", "tench,0\nshark,1\n", "no header with a column of folder names"),
        ("a.csv", "index,words\n0,tench\n", "no header with a column of folder names"),
        ("a.csv", "folder,index\n", "must hold a folder name in each row"),
        ("a.csv", "folder,index\n,0\n", "must hold a folder name in each row"),
        ("a.csv", "folder,index\na,one\n", "indices from 0 under 'index', not 'one'"),
        ("a.csv", "folder,index\na,-1\n", "indices from 0 under 'index', not '-1'"),
        ("a.csv", "folder,index\na,0,x\n", "Row 1 of .* has 3 columns, its header 2"),
        ("a.csv", "folder,index\na,0\na,1\n", "'a' twice, at 0 and 1"),
        ("a.csv", "folder,index\na,1\nb,2\n", "counts classes from 1"),
    ],
)
def test_columns_that_make_no_sense(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        class_index(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", '{"other": ["a"]}', "a\n\nb\n", "n01440764 a\nb\n"])
def test_errors_say_what_is_expected(text, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError) as caught:
        class_index(tmp_path / "a.txt")
    for form in ("one folder name per line", "n01440764 tench, Tinca tinca", "folder,index,description", "JSON"):
        assert form in str(caught.value)


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
