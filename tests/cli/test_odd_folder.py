"""A folder with every oddity through the commands that read pictures: what was read, failed and skipped is counted."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import timm
from safetensors.torch import save_file

from tests.oddities import BASE, base, odd_folder, packed, place
from tokensieve.data import Failure, Preprocessing, image_set

pytestmark = pytest.mark.slow

MODEL = ["--model", "test_vit", "--no-pretrained", "--threads", 1]
QUICK = ["--proposal", "none", "--family", "tome", "--trials", 0, "--macs", 1.3, "--no-correct", "--batch", 8]
COMMANDS = {
    "eval": ["--data", "{}", *MODEL, "--recipe", "tome(r=8)"],
    "tune": ["--data", "{}", *MODEL, *QUICK],
    "slim": ["--data", "{}", "--out", "made.json", *MODEL, "--tolerance", 0.5, "--granularity", 50],
    "show": ["{}", *MODEL, "--recipe", "tome(r=8)", "--limit", 100, "--out", "made.html"],
    "bench": ["--data", "{}", *MODEL, "--recipe", "tome(r=8)", "--seconds", 0, "--batch", 100],
    "demo": ["{}", *MODEL[:3], "--recipe", "tome(r=8)", "--seconds", 0, "--batch", 1, "--out", "made.html"],
}
COMMANDS["correct"] = ["--recipe", "tome(r=8)", "--data", "{}", "--out", "made.json", *MODEL, "--views", 1]
SMALL = ["--size", 32, "--epochs", 1, "--workers", 0, "--out", "out", "--threads", 1]


@pytest.fixture(autouse=True)
def _quick(brief_timing, monkeypatch):
    brief_timing(monkeypatch)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The folder, a tar of it, and what must come of either."""
    root = tmp_path_factory.mktemp("odd") / "set"
    expected = odd_folder(root)
    return root, packed(root, root.with_suffix(".tar")), expected


def counted(expected):
    """The line of counts, as it is printed."""
    total = sum(expected.skipped.values())
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(expected.skipped.items(), key=lambda kind: -kind[1]))
    return f"{expected.read} pictures read, {expected.failed} failed, {total} skipped", kinds


def call(run, command, source, *more):
    result = run(command, *(str(source) if part == "{}" else part for part in COMMANDS[command]), *more)
    assert result.code == 0, result.err
    return result


def told(result, expected):
    """What stderr says: every kind of skipped file, every failure (the first five by name), what changes labels."""
    for kind, count in expected.skipped.items():
        assert re.search(rf"^  {re.escape(kind)} {count}: \S", result.err, re.MULTILINE), kind
    assert f"{sum(expected.skipped.values())} skipped, which are not read:" in result.err
    assert f"{expected.failed} pictures were left out:" in result.err
    assert "2 class folders hold no picture and keep their numbers: b, c." in result.err
    assert "only the first frame is read of 2 .gif." in result.err
    assert "pictures are in no class folder and have no label." in result.err


@pytest.mark.parametrize(
    ("command", "kind"), [("eval", "folder"), ("eval", "tar"), ("tune", "tar"), ("show", "folder")]
)
def test_counts_are_printed_and_in_json(run, there, odd, command, kind):
    source, expected = odd[0] if kind == "folder" else odd[1], odd[2]
    result = call(run, command, source)
    line, kinds = counted(expected)
    printed = " ".join(result.out.split())
    assert line in printed
    shown = re.search(r"skipped \((.*?)\)", printed)[1]
    assert sorted(shown.split(", ")) == sorted(kinds.split(", "))
    told(result, expected)

    record = json.loads(call(run, command, source, "--json").out)
    found = expected.read + expected.failed
    assert record["files"] == {
        "of": "pictures",
        "total": found,
        "read": expected.read,
        "failed": expected.failed,
        "skipped": expected.skipped,
    }
    assert len(record["failures"]) == expected.failed
    assert len(record["skipped"]) == sum(expected.skipped.values())
    assert all(each["path"].startswith(str(source)) for each in record["skipped"])


@pytest.mark.parametrize("command", ["correct", "slim", "bench", "demo"])
def test_the_other_commands_count_by_the_same_rules(run, there, odd, command):
    source, _, expected = odd
    record = json.loads(call(run, command, source, "--json").out)
    found = expected.read + expected.failed
    assert record["files"]["skipped"] == expected.skipped
    assert record["files"]["total"] == found
    if command == "demo":  # a dozen of them is enough
        assert record["files"]["read"] + record["files"]["failed"] == 12
    else:
        assert (record["files"]["read"], record["files"]["failed"]) == (expected.read, expected.failed)


def test_training_names_what_it_cannot_read_and_then_reads_the_rest(run, there, odd):
    root, _, expected = odd
    shutil.copytree(root, there / "set", symlinks=True, ignore=lambda folder, names: {"pipe.png"} & set(names))
    place(base(there / "validation") / "b" / ".hidden", b"")
    for name in expected.classes:
        (there / "validation" / name).mkdir(exist_ok=True)
    command = ["train", "test_convnext", "--images", "set", "--validation", "validation", *SMALL]

    result = run(*command)
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1].startswith("tokensieve: set/loose.png is not in a class folder")
    (there / "set" / "loose.png").unlink()

    result = run(*command)
    assert (result.code, result.out) == (2, "")
    found = expected.read + expected.failed - 1
    assert (
        f"{expected.failed} of {found} photographs cannot be read: repair or remove them before training" in result.err
    )
    skipped = sum(expected.skipped.values()) - 1  # without the pipe
    assert f"{skipped} skipped, which are not read:" in result.err
    assert not (there / "out").exists()

    pictures = image_set("set", Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3))
    broken = [one.path for one in map(pictures.attempt, range(len(pictures))) if isinstance(one, Failure)]
    assert len(broken) == expected.failed
    for path in broken:
        assert path in result.err
        (there / path).unlink()

    result = run(*command)
    assert result.code == 0, result.err
    read, unseen = expected.read - 1, sum(BASE.values())
    printed = " ".join(result.out.split())
    assert f"images {read} pictures read, 0 failed, {skipped} skipped (" in printed
    assert f"validation {unseen} pictures read, 0 failed, 1 skipped (hidden file 1)" in printed
    assert "2 class folders hold no picture and keep their numbers: b, c." in result.err

    record = json.loads(run(*command, "--json").out)["data"]
    kinds = {kind: count for kind, count in expected.skipped.items() if kind != "not a regular file"}
    assert record["images"]["files"] == {"of": "pictures", "total": read, "read": read, "failed": 0, "skipped": kinds}
    assert record["validation"]["files"]["skipped"] == {"hidden file": 1}


def test_training_learns_as_many_classes_as_there_are_visible_folders(run, there):
    """Hidden folders and empty ones change no label: the same weights come out but for the size of the last layer."""
    for name in ("images", "validation"):
        base(there / name)
    command = ["train", "test_convnext", "--images", "images", "--validation", "validation", *SMALL[:-3]]
    assert run(*command, "plain", "--threads", 1).code == 0
    for name in ("images", "validation"):
        place(there / name / ".ipynb_checkpoints" / "0.png")
        place(there / name / "a" / ".ipynb_checkpoints" / "0.png")
    assert run(*command, "plain", "--threads", 1).code == 0, "the same training, which is done"


def test_other_classes_are_another_training(run, there):
    for name in ("images", "validation"):
        base(there / name)
    command = ["train", "test_convnext", "--images", "images", "--validation", "validation", *SMALL]
    assert run(*command).code == 0
    for name in ("images", "validation"):
        (there / name / "b").mkdir()
    result = run(*command)
    assert result.code == 2
    assert "another training" in result.err


def test_a_limit_says_of_how_many(run, there, tmp_path):
    base(tmp_path / "set")
    result = call(run, "eval", tmp_path / "set", "--limit", 3)
    assert "3 of 4 pictures read, 0 failed, 0 skipped" in result.out
    assert "not read" not in result.err


def test_accuracy_is_left_out_where_a_picture_has_no_label_wherever_it_comes(run, refused, there):
    """Not only where it is in the first batch: "z.png" is the last one."""
    place(base(there / "set") / "z.png")
    (there / "classes.csv").write_text("folder,index\na,3\nd,5\n")
    result = call(run, "eval", "set", "--classes", "classes.csv", "--batch", 1, "--json")
    assert json.loads(result.out)["dense"] is None
    assert "1 of 5 pictures are in no class folder" in result.err
    result = run("tune", "--data", "set", *MODEL, *QUICK, "--classes", "classes.csv")
    assert (result.code, result.out) == (2, "")
    assert "1 are not in a class folder" in result.err


@pytest.mark.parametrize("command", ["eval", "tune", "show"])
def test_help_names_the_class_files(run, command):
    said = "".join(run(command, "--help").out.split())
    for form in ("Onefoldernameperline", "'n01440764tench,Tincatinca'", "CSVorTSVwithaheaderfolder,index", "JSON"):
        assert form in said


@pytest.mark.parametrize("text", ["folder,index\ncat,281\ndog,207\n", "index\tfolder\n281\tcat\n207\tdog\n"])
def test_class_files_reach_eval(run, there, text):
    for name in ("cat", "dog"):
        place(there / "set" / name / "0.png")
    (there / "classes.txt").write_text(text)
    weights = timm.create_model("test_vit").state_dict()
    weights["head.bias"][281] += 1000
    save_file(weights, "vit.safetensors")
    model = ["--model", "test_vit", "--weights", "vit.safetensors"]
    result = run("eval", "--data", "set", *model, "--recipe", "", "--classes", "classes.txt", "--json")
    assert json.loads(result.out)["dense"]["top1"] == 50
