"""Files appear whole, with what belongs to them, or not at all; and they name each other so that they can move."""

import os
from pathlib import Path

import pytest

from tokensieve._files import check_folder, check_place, draft, joined_path, make_folder, relative_path
from tokensieve.errors import InputError


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


def test_a_folder_is_made_where_there_is_one_above_it(there):
    assert check_folder("found") == Path("found")
    assert check_place("found/a.txt", new_folder=True) == Path("found/a.txt")
    assert not list(there.iterdir())
    for _ in range(2):
        assert make_folder("found").is_dir()
    (there / "file").write_text("")
    for place, sentence in {"absent/found": "there is no folder absent", "file": "file is a file"}.items():
        for ask in (check_folder, make_folder, lambda folder: check_place(f"{folder}/a.txt", new_folder=True)):
            with pytest.raises(InputError, match=sentence):
                ask(place)


@pytest.mark.parametrize(
    ("path", "folder", "name"),
    [
        ("a.pt", ".", "a.pt"),
        ("a.pt", "", "a.pt"),
        ("tuned/a.pt", "tuned", "a.pt"),
        ("weights/a.pt", "tuned", "../weights/a.pt"),
        ("../a.pt", "tuned", "../../a.pt"),
    ],
)
def test_paths_are_named_from_a_folder_and_found_from_there(there, path, folder, name):
    for place in ("tuned", "weights"):
        (there / place).mkdir()
    assert relative_path(path, folder) == name
    assert relative_path(str(there / path), there / folder) == name
    assert joined_path(name, folder) == path
    assert joined_path(name, there / folder) == os.path.normpath(there / path)
    assert joined_path(str(there / "a.pt"), folder) == str(there / "a.pt")


def test_links_do_not_lead_astray(there):
    """Above a linked folder is not what its name says; and a file that is a link keeps its own name."""
    (there / "far" / "deep").mkdir(parents=True)
    (there / "far" / "a.pt").write_text("far")
    (there / "a.pt").write_text("near")
    (there / "near").symlink_to(there / "far" / "deep")
    (there / "far" / "deep" / "link.pt").symlink_to(there / "a.pt")
    name = relative_path("a.pt", "near")
    assert (Path("near") / name).read_text() == "near"
    assert Path(joined_path(name, "near")).read_text() == "near"
    assert Path(joined_path("../a.pt", "near")).read_text() == "far"
    assert relative_path("near/link.pt", "near") == relative_path("near/link.pt", "far/deep") == "link.pt"
    assert relative_path("near/link.pt", ".") == "near/link.pt"


def test_a_file_on_another_drive_is_named_in_full(there, monkeypatch):
    def drives(*_):
        raise ValueError

    monkeypatch.setattr(os.path, "relpath", drives)
    assert relative_path("a.pt", "tuned") == str(there / "a.pt")
