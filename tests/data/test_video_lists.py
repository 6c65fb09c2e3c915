"""Lists of videos and labels, as people have them."""

from __future__ import annotations

import json

import pytest

from tokensieve.data.video_lists import list_annotated
from tokensieve.errors import InputError


@pytest.fixture
def listed(tmp_path):
    """listed(text, name="x.csv", **settings): names below the folder, labels and classes."""

    def call(text, name="x.csv", **settings):
        path = tmp_path / name
        path.write_text(text)
        found = list_annotated(path, **settings)
        return [str(source.relative_to(tmp_path)) for source in found.sources], found.labels, found.classes

    return call


class TestPlain:
    @pytest.mark.parametrize(
        "text",
        [
            "a/1.mp4,3\nb/2.webm,0\n",
            "a/1.mp4 3\nb/2.webm 0\n",
            "a/1.mp4\t3\nb/2.webm\t0\n",
            "# all\na/1.mp4;3\n\nb/2.webm;0",
        ],
    )
    def test_a_path_and_an_index_a_line(self, listed, text):
        assert listed(text) == (["a/1.mp4", "b/2.webm"], [3, 0], {})

    def test_names_of_classes_are_numbered(self, listed):
        assert listed("1.mp4,jump\n2.mp4,fall\n3.mp4,jump\n") == (
            ["1.mp4", "2.mp4", "3.mp4"], [1, 0, 1], {"fall": 0, "jump": 1},
        )  # fmt: skip

    def test_an_index_says_which_is_which(self, listed):
        found = listed("1.mp4,jump\n2.mp4,fall\n", index={"fall": 7, "jump": 2, "sit": 0})
        assert found[1:] == ([2, 7], {"fall": 7, "jump": 2, "sit": 0})
        with pytest.raises(InputError, match=r"label 'stand' of .* is not in the class index"):
            listed("1.mp4,stand\n", index={"fall": 7})

    def test_paths_with_spaces(self, listed):
        assert listed("arm wrestling/a b.mp4 12\n", "x.txt")[:2] == (["arm wrestling/a b.mp4"], [12])
        assert listed("arm wrestling/a b.mp4\n", "x.txt")[:2] == (["arm wrestling/a b.mp4"], [-1])

    def test_columns_under_a_header(self, listed):
        assert listed("label,split,path\n4,val,1.mp4\n5,val,2.mp4\n")[:2] == (["1.mp4", "2.mp4"], [4, 5])

    def test_videos_without_labels(self, listed):
        assert listed("1.mp4\n2.mp4\n") == (["1.mp4", "2.mp4"], [-1, -1], {})

    def test_a_folder_for_the_paths(self, listed, tmp_path):
        assert listed("1.mp4,0\n", root=tmp_path / "videos")[0] == ["videos/1.mp4"]


class TestKinetics:
    HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"

    def test_names_are_made_of_id_and_times(self, listed):
        rows = "testifying,---QUuC4vJs,84,94,validate,0\nabseiling,--3ouPhoy2A,20.0,30.0,validate,0\n"
        names, labels, classes = listed(self.HEADER + rows)
        assert names == ["---QUuC4vJs_000084_000094.mp4", "--3ouPhoy2A_000020_000030.mp4"]
        assert (labels, classes) == ([1, 0], {"abseiling": 0, "testifying": 1})

    @pytest.mark.parametrize("folder", ["eating ice cream", "eating_ice_cream"])
    def test_in_folders_of_their_labels(self, listed, tmp_path, folder):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "abc_000001_000011.mp4").touch()
        assert listed(self.HEADER + "eating ice cream,abc,1,11,val,0\n")[0] == [f"{folder}/abc_000001_000011.mp4"]

    def test_a_test_set_has_no_labels(self, listed):
        assert listed("youtube_id,time_start,time_end,split\nabc,1,11,test\n")[1] == [-1]

    def test_times_that_are_none(self, listed):
        with pytest.raises(InputError, match=r"Line 2 of .* has no time_start and time_end in seconds"):
            listed(self.HEADER + "x,abc,one,11,val,0\n")


class TestSomethingSomething:
    ENTRIES = (
        {"id": "74225", "label": "spinning cube", "template": "Spinning [something]", "placeholders": ["cube"]},
        {"id": "9", "label": "holding a pen", "template": "Holding [something]", "placeholders": ["a pen"]},
    )

    def test_the_template_is_the_class(self, listed, tmp_path):
        (tmp_path / "74225.webm").touch()
        names, labels, classes = listed(json.dumps(self.ENTRIES), "validation.json")
        assert names == ["74225.webm", "9"]
        assert (labels, classes) == ([1, 0], {"Holding something": 0, "Spinning something": 1})

    def test_its_own_index_has_no_brackets(self, listed, tmp_path):
        from tokensieve.data import class_index

        (tmp_path / "labels.json").write_text(json.dumps({"Spinning something": "41", "Holding something": "7"}))
        index = class_index(tmp_path / "labels.json")
        assert index == {"Spinning something": 41, "Holding something": 7}
        assert listed(json.dumps(self.ENTRIES), "validation.json", index=index)[1] == [41, 7]


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "name", "said"),
        [
            ("", "x.csv", "lists no videos"),
            ("[]", "x.json", "lists no videos"),
            ("[3]", "x.json", "Entry 1 of .* names no video"),
            ("{", "x.json", "is not valid JSON"),
            ("a/frames 120 7\nb/frames 90 3\n", "x.csv", "columns under no header"),
            ("a,120,7\n", "x.csv", "has 3 columns under no header: lists of folders of frames"),
            ("path,label\n1.mp4\n", "x.csv", "Line 2 of .* has 1 columns, its header 2"),
        ],
    )
    def test_they_are_sentences(self, listed, text, name, said):
        with pytest.raises(InputError, match=said):
            listed(text, name)

    def test_a_list_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot be read: .* Expected one of"):
            list_annotated(tmp_path / "none.csv")
