"""Files appear whole, with what belongs to them, or not at all."""

import pytest

from tokensieve.errors import InputError
from tokensieve.files import check_place, draft


def test_a_file_appears_when_it_is_done(tmp_path):
    path = tmp_path / "made.txt"
    path.write_text("before")
    with draft(path) as place:
        place.write_text("after")
        place.with_name("made.data").write_text("beside")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert {file.name for file in tmp_path.iterdir()} == {"made.txt", "made.data"}


def test_what_goes_wrong_leaves_what_was_there(tmp_path):
    path = tmp_path / "made.txt"
    path.write_text("before")

    def fail():
        with draft(path) as place:
            place.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("place", "sentence"), [("", "is a folder"), ("absent/made.txt", "there is no folder")])
def test_a_place_that_cannot_be_is_a_sentence(tmp_path, place, sentence):
    with pytest.raises(InputError, match=sentence), draft(tmp_path / place):
        pass
    assert not list(tmp_path.iterdir())


def test_places_are_checked_before_the_work(tmp_path):
    assert check_place(tmp_path / "a.PNG", (".png", ".html")) == tmp_path / "a.PNG"
    assert check_place(tmp_path / "a") == tmp_path / "a"
    for place, sentence in {"a.pdf": "must end in .png or .html", "absent/a.html": "there is no folder"}.items():
        with pytest.raises(InputError, match=sentence):
            check_place(tmp_path / place, (".png", ".html"))
