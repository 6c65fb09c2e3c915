"""Jobs from begin to end: rows are the model's answers, and an interrupted job comes to the same ones."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tests.jobs.conftest import errors, table
from tokensieve.data.scanning import PICTURES
from tokensieve.errors import InputError, RecipeError
from tokensieve.jobs import estimate, job_of, manifest, progress, run
from tokensieve.jobs.output_folder import open_output
from tokensieve.jobs.progress import Progress

SMALL = {"batch": 2, "shard": 4, "workers": 0}


def test_rows_are_what_the_model_says_of_each_picture(tiny, photos, tmp_path):
    root = photos(5)
    result = run(tiny(), root, tmp_path / "out", k=3, **SMALL)
    rows = table(tmp_path / "out")
    assert [row["id"] for row in rows] == ["cat/0.png", "cat/2.png", "cat/4.png", "dog/1.png", "dog/3.png"]
    assert (result.items, result.rows, result.errors, result.shards) == (5, 5, 0, 2)
    _, fast, preprocessing = tiny().open()
    for row in rows:
        picture = preprocessing.transform()(Image.open(root / row["id"]).convert("RGB"))
        with torch.no_grad():
            likely, classes = fast(picture[None]).softmax(1)[0].topk(3)
        assert [row[f"top{place}_class"] for place in (1, 2, 3)] == classes.tolist()
        assert [row[f"top{place}_probability"] for place in (1, 2, 3)] == pytest.approx(likely.tolist(), rel=1e-4)
    assert rows[0]["top1_label"], "the names of ImageNet's classes are known"


def test_json_lines_hold_the_same_rows(tiny, photos, tmp_path):
    root = photos(3, broken=(1,))
    run(tiny(), root, tmp_path / "out", **SMALL)
    run(tiny(), root, tmp_path / "lines", format="jsonl", **SMALL)
    assert table(tmp_path / "lines") == table(tmp_path / "out")
    (error,) = (tmp_path / "lines" / "errors.jsonl").read_text().splitlines()
    assert json.loads(error) == {"id": "dog/1.png", "error": "is not a picture that Pillow can read"}


def test_what_is_missing_is_made_again_bit_for_bit(tiny, photos, tmp_path):
    """As a kill leaves it: some files of rows, the errors of one without its rows, one that is half written."""
    root, out = photos(11, broken=(3, 9)), tmp_path / "out"
    run(tiny(), root, out, **SMALL)
    files = sorted((out / "rows").iterdir())
    before, failed = [file.read_bytes() for file in files], errors(out)
    assert len(files) == 3
    files[1].unlink()
    (out / "errors.parquet").unlink()
    half = out / "rows" / "00001.parquet.0123abcd.unfinished"
    half.write_bytes(before[1][:100])
    result = run(tiny(), root, out, **SMALL)
    assert [file.read_bytes() for file in sorted((out / "rows").iterdir())] == before
    assert errors(out) == failed
    assert set(failed) == {"dog/3.png", "dog/9.png"}
    assert (result.before, result.rows, result.errors) == (7, 9, 2)
    assert not half.exists()


def test_a_job_that_is_done_does_nothing_more(tiny, photos, tmp_path):
    root, out = photos(3), tmp_path / "out"
    run(tiny(), root, out, **SMALL)
    result = run(tiny(), root, out, **SMALL)
    assert (result.before, result.rows, result.per_second) == (3, 3, 0.0)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"batch": 1}, "batch was 2 and is 1"),
        ({"k": 2}, "k was 5 and is 2"),
        ({"limit": 3}, "items was 4 and is 3"),
        ({"recipe": "tome(r=4)"}, r"recipe was tome\(r=8\) and is tome\(r=4\)"),
        ({"size": 96}, r"preprocessing input_size was \[64, 64\] and is \[96, 96\]"),
    ],
)
def test_other_settings_are_refused_with_the_difference(tiny, photos, tmp_path, changed, told):
    root, out = photos(4), tmp_path / "out"
    run(tiny(), root, out, **SMALL)
    spec = tiny(**{name: changed.pop(name) for name in ("recipe", "size") if name in changed})
    with pytest.raises(InputError, match=told):
        run(spec, root, out, **SMALL | changed)


def test_random_weights_are_others_the_next_time(photos, tmp_path, tiny):
    root, out = photos(2), tmp_path / "out"
    run(tiny(), root, out, **SMALL)
    other = tiny()
    object.__setattr__(other, "weights", None)
    object.__setattr__(other, "pretrained", False)
    object.__setattr__(other, "sha256", {})
    with pytest.raises(InputError, match="the weights are different"):
        run(other, root, out, **SMALL)


def test_other_pictures_are_refused(tiny, photos, tmp_path):
    root, out = photos(4), tmp_path / "out"
    run(tiny(), root, out, **SMALL)
    (root / "cat" / "0.png").rename(root / "cat" / "8.png")
    with pytest.raises(InputError, match="the names of the items are different"):
        run(tiny(), root, out, **SMALL)


def test_other_versions_are_told_and_the_job_goes_on(tiny, photos, tmp_path):
    root, out = photos(4), tmp_path / "out"
    run(tiny(), root, out, **SMALL)
    kept = json.loads((out / manifest.FILE).read_text())
    kept["versions"]["timm"] = "0.9"
    (out / manifest.FILE).write_text(json.dumps(kept))
    (said,) = run(tiny(), root, out, **SMALL).notes
    assert "timm 0.9 then" in said


@pytest.mark.parametrize(
    ("threads", "workers", "seconds", "told"),
    [(2, 1, 0.5, True), (1, 1, 0.5, False), (2, 0, 0.5, False), (2, 1, 50.0, False)],
)
def test_a_quick_model_that_shares_its_cores_with_workers_is_told(
    tmp_path, monkeypatch, threads, workers, seconds, told
):
    monkeypatch.setattr(progress, "cores", lambda: 2)
    monkeypatch.setattr(progress.torch, "get_num_threads", lambda: threads)
    output = open_output(str(tmp_path))
    output.prepare()
    meter = Progress(PICTURES, 100, output, done=0, errors=0, max_errors=None, shown=False)
    meter.fresh, meter.computed = 100, seconds
    sentences = meter.shared_cores(workers)
    assert [("--threads 1" in sentence, "share 2 cores" in sentence) for sentence in sentences] == [(True, True)] * told


def test_a_folder_of_somebody_elses_rows_is_left_alone(tiny, photos, tmp_path):
    (tmp_path / "out" / "rows").mkdir(parents=True)
    (tmp_path / "out" / "rows" / "mine.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="not written by a job"):
        run(tiny(), photos(2), tmp_path / "out", **SMALL)


def test_a_shard_of_which_nothing_can_be_read_has_a_file_without_rows(tiny, photos, tmp_path):
    root, out = photos(8, broken=(0, 2, 4, 6)), tmp_path / "out"
    result = run(tiny(), root, out, **SMALL)
    assert (result.rows, result.errors) == (4, 4)
    import pyarrow.parquet as parquet

    first, second = (parquet.read_table(out / "rows" / f"0000{i}.parquet") for i in (0, 1))
    assert (first.num_rows, second.num_rows) == (0, 4)
    assert first.schema == second.schema


def test_more_errors_than_may_be_end_the_job(tiny, photos, tmp_path):
    root, out = photos(12, broken=(6, 8, 10)), tmp_path / "out"
    with pytest.raises(InputError, match="3 pictures could not be read, and --max-errors is 2"):
        run(tiny(), root, out, max_errors=2, **SMALL)
    assert len(table(out)) == 3, "the file before is kept"
    assert run(tiny(), root, out, max_errors=3, **SMALL).errors == 3


def test_a_full_disk_is_a_sentence_and_finished_files_stay(tiny, photos, tmp_path, monkeypatch):
    root, out = photos(8), tmp_path / "out"
    real = os.replace

    def full(source, target):
        if "00001.parquet" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(InputError, match=r"no space left to write to .*out .*run the same command again"):
            run(tiny(), root, out, **SMALL)
    assert [file.name for file in (out / "rows").iterdir()] == ["00000.parquet"]
    assert run(tiny(), root, out, **SMALL).before == 4


def test_where_nothing_can_be_written_is_said_at_once(tiny, photos, tmp_path):
    (tmp_path / "file").write_text("")
    for out, told in (("file", "is a file"), ("nowhere/out", "there is no folder")):
        with pytest.raises(InputError, match=told):
            run(tiny(), photos(1), tmp_path / out, **SMALL)


def test_two_jobs_do_not_work_in_one_folder(tiny, photos, tmp_path):
    pytest.importorskip("fcntl")
    out = tmp_path / "out"
    run(tiny(), photos(2), out, **SMALL)
    holds = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(out / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(InputError, match="Another process is writing"):
            run(tiny(), photos(2), out, **SMALL)
        other.communicate(b"\n")


def test_a_store_holds_the_same_files(tiny, photos, tmp_path):
    import fsspec

    root = photos(5, broken=(3,))
    run(tiny(), root, tmp_path / "out", **SMALL)
    result = run(tiny(), root, "memory://bucket/out", **SMALL)
    store = fsspec.filesystem("memory")
    for file in (tmp_path / "out" / "rows").iterdir():
        assert store.cat_file(f"/bucket/out/rows/{file.name}") == file.read_bytes()
    assert store.exists("/bucket/out/errors.parquet")
    assert result.errors == 1
    assert run(tiny(), root, "memory://bucket/out", **SMALL).before == 5


def test_an_estimate_writes_nothing(tiny, photos, tmp_path):
    job = job_of(tiny(), photos(12), tmp_path / "out", batch=4, shard=4)
    told = estimate(job, workers=0, seconds=0.0)
    assert (told.items, told.shards, told.left) == (12, 3, 12)
    assert told.seconds == pytest.approx(12 / told.per_second)
    assert told.per_second < min(told.decoded_per_second, told.model_per_second), "by turns"
    assert told.bytes > 0
    assert not (tmp_path / "out").exists()


def test_an_estimate_counts_what_is_done_of_the_same_job(tiny, photos, tmp_path):
    root, out = photos(12), tmp_path / "out"
    run(tiny(), root, out, **SMALL)
    (out / "rows" / "00002.parquet").unlink()
    assert estimate(job_of(tiny(), root, out, batch=2, shard=4), workers=0, seconds=0.0).left == 4
    with pytest.raises(InputError, match="batch was 2 and is 4"):
        estimate(job_of(tiny(), root, out, batch=4, shard=4), workers=0, seconds=0.0)


def test_generated_pictures_need_no_files(tiny, tmp_path):
    result = run(tiny(), "scenes", tmp_path / "out", limit=3, **SMALL)
    assert [row["id"] for row in table(tmp_path / "out")] == ["0", "1", "2"]
    assert result.items == 3


def test_settings_that_make_no_sense_are_sentences(tiny, photos, tmp_path):
    for wrong, told in (
        ({"output": "class"}, "output must be one of classes"),
        ({"format": "csv"}, "format must be one of parquet"),
        ({"batch": 0}, "batch must be an integer"),
        ({"normalize": True}, "are only for embeddings"),
        ({"engine": "ray", "devices": ("cpu",)}, "devices are only for the local engine"),
        ({"ray": {"actors": 2}}, "actors is a setting of the ray engine"),
        ({"engine": "spark"}, "engine must be local or ray"),
    ):
        with pytest.raises(RecipeError, match=told):
            run(tiny(), photos(1), tmp_path / "out", **{"workers": 0, **wrong})
    assert not (tmp_path / "out").exists()
