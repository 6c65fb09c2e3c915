"""The command line as a user meets it: what it prints, on which stream, with which exit code."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

import tokensieve
from tests.pictures import two_classes
from tokensieve.cli import app

HOST = ["--model", "test_vit", "--recipe", "tome(r=8)"]
QUICK = ["--seconds", "0", "--batch", "2"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return two_classes(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("classes") / "classes.json"
    path.write_text(json.dumps({"cat": 281, "dog": 207}))
    return path


@pytest.fixture(scope="module")
def nan_proposal(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "nan.safetensors"
    state = timm.create_model("test_resnet").state_dict()
    save_file({key: value * torch.nan if value.is_floating_point() else value for key, value in state.items()}, path)
    return path


COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from tokensieve.cli import main; sys.argv[0] = 'tokensieve'; code = main(); "
        "print([name for name in ('torch', 'torchvision', 'timm', 'numpy', 'PIL', 'rich') if name in sys.modules], "
        "code, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[] 0"
    assert (
        f"tokensieve {tokensieve.__version__}" if arguments == ["--version"] else "Usage: tokensieve"
    ) in result.stdout


def test_the_process_ends_with_the_exit_code_and_no_traceback():
    command = [sys.executable, "-m", "tokensieve", "bench", "--batch", "0"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "tokensieve: --batch must be whole numbers from 1 up, joined by ',', not '0'.\n"


def test_bench_json_is_one_object_with_every_figure(run):
    result = run("bench", *HOST, *QUICK, "--threads", 1, "--memory", "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert record["command"].startswith("tokensieve bench --model test_vit --recipe 'tome(r=8)'")
    assert record["recipe"] == "tome(r=8)"
    assert record["recipe_json"]["methods"][0]["r"] == 8
    assert (record["model"], record["weights"], record["pretrained"]) == ("test_vit", None, False)
    assert (record["device"], record["dtype"], record["threads"]) == ("cpu", "fp32", 1)
    assert record["machine"]
    assert record["versions"]["torch"] == torch.__version__
    assert record["input_size"] == [3, 160, 160]
    assert record["tokens"] == {"dense": 101, "per_block": [93, 85, 77, 69, 61, 53]}
    assert record["macs"]["ratio"] == record["macs"]["dense"] / record["macs"]["sieved"] > 1
    assert record["macs"]["proposal"] == 0
    (measured,) = record["runs"]
    assert measured["batch"] == 2
    assert measured["low"] <= measured["ratio"] <= measured["high"]
    assert {"limit", "of_limit", "proposal_share", "rounds"} <= set(measured)
    assert set(measured["seconds"]) == {"dense", "sieved", "limit"}
    assert set(measured["memory_bytes"]) == {"dense", "sieved"}
    assert all(isinstance(sentence, str) for sentence in measured["verdict"])


def test_bench_table_fits_eighty_columns(run):
    recipe = "papr(keep=0.5, proposal=test_resnet) + tome(r=2)"
    result = run("bench", "--model", "test_vit", "--recipe", recipe, "--seconds", 0, "--batch", "1,2", "--memory")
    assert result.code == 0
    assert result.err == ""
    assert max(map(len, result.out.splitlines())) <= 80
    assert "…" not in result.out
    for word in ("test_vit, 160 x 160, random weights", recipe, "fp32", "proposal", "limit", "measured", "peak MiB"):
        assert word in result.out
    assert "101 → 49 in the first block, 39 in the last of 6" in result.out
    assert result.out.count("\nbatch ") >= 3  # the head of the table, and a verdict for each


@pytest.mark.parametrize("settings", [["--dtype", "bf16"], ["--prepack"], ["--size", "96x128"]])
def test_bench_settings(run, settings):
    result = run("bench", *HOST, *QUICK, *settings, "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert record["prepacked"] == ("--prepack" in settings)
    assert record["dtype"] == ("bf16" if "bf16" in settings else "fp32")
    assert record["macs"]["sieved"] < record["macs"]["dense"]
    if "--size" in settings:
        assert record["input_size"] == [3, 96, 128]
        assert record["tokens"]["dense"] == 49


def test_bench_of_the_empty_recipe(run):
    result = run("bench", "--model", "test_vit", "--recipe", "", *QUICK)
    assert result.code == 0
    assert "drops and merges nothing" in " ".join(result.out.split())


def test_eval_json_scores_both_and_lists_what_was_left_out(run, pictures, classes):
    options = ["--no-pretrained", "--classes", classes, "--batch", 4, "--k", "1,900"]
    result = run("eval", "--data", pictures, *HOST, *options, "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert record["images"] == 6
    assert set(record["dense"]) == set(record["sieved"]) == {"top1", "top900"}
    assert 0 <= record["agreement"] <= 100
    assert record["kl"] >= 0
    assert -1 <= record["cosine"] <= 1
    assert record["preprocessing"]["input_size"] == [160, 160]
    (failure,) = record["failures"]
    assert failure["path"].endswith("broken.jpg")
    assert result.err.splitlines()[0] == "tokensieve: 1 picture was left out:"
    assert "broken.jpg is not a picture" in result.err


def test_eval_table(run, pictures, classes):
    result = run("eval", "--data", pictures, *HOST, "--no-pretrained", "--classes", classes, "--limit", 5)
    assert result.code == 0
    assert "5 images, preprocessing timm" in " ".join(result.out.split())
    for word in ("top-1", "top-5", "dense", "sieved", "change", "same class", "KL", "cosine"):
        assert word in result.out


def test_eval_without_labels_tells_fidelity_alone(run, pictures):
    result = run("eval", "--data", pictures / "cat", *HOST, "--no-pretrained", "--json")
    assert result.code == 0
    assert result.err == ""
    record = json.loads(result.out)
    assert record["dense"] is record["sieved"] is None
    assert record["agreement"] is not None
    assert record["images"] == 3
    assert "top-" not in run("eval", "--data", pictures / "cat", *HOST, "--no-pretrained").out


def test_eval_does_not_score_folders_that_are_not_the_models_classes(run, refused, pictures):
    options = ["eval", "--data", pictures / ".", *HOST, "--no-pretrained"]
    result = run(*options, "--json")
    assert result.code == 0
    assert json.loads(result.out)["dense"] is None
    assert "Accuracy is left out: the 2 class folders are not the 1000 classes of the model" in result.err
    assert "--classes FILE" in refused(*options, "--k", 1)


def test_recipes_come_from_files_too(run, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(tokensieve.Recipe.parse("random(keep=0.5)").to_json())
    result = run("bench", "--model", "test_vit", "--recipe", file, *QUICK, "--json")
    assert json.loads(result.out)["recipe"] == "papr(keep=0.5, significance=random)"


def test_proposal_weights_go_to_the_proposal(run, tmp_path):
    file = tmp_path / "proposal.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    recipe = "papr(keep=0.5, proposal=test_resnet)"
    result = run("bench", "--model", "test_vit", "--recipe", recipe, "--proposal-weights", file, *QUICK, "--json")
    assert result.code == 0
    (method,) = json.loads(result.out)["recipe_json"]["methods"]
    assert method["proposal_weights"] == str(file)
    assert method["proposal_sha256"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "vit_bse_patch16_224"], "vit_base_patch16_224"),
        (["--model", "resnet18", "--recipe", "tome(r=8)"], "ResNet cannot be sieved"),
        (["--model", "vit_relpos_small_patch16_224", "--recipe", "tome(r=8)"], "cannot be sieved"),
        (["--recipe", "tomee(r=8)"], "the nearest are tome"),
        (["--recipe", "tome(r="], "cannot be read"),
        (["--recipe", "random(keep=0)"], "keep must be a number in (0, 1], not 0"),
        (["--recipe", "absent.json"], "absent.json"),
        (["--size", "wide"], "--size must be"),
        (["--size", "224x224x3"], "--size must be"),
        ([*HOST, "--size", "100"], "does not divide into test_vit's patches of 16 pixels"),
        (["--dtype", "fp8"], "--dtype must be one of fp32, bf16, fp16, not 'fp8'"),
        (["--batch", "0"], "--batch must be"),
        (["--batch", "8,x"], "--batch must be"),
        (["--threads", "0"], "--threads"),
        (["--device", "tpu"], "--device must be"),
        (["--device", "cuda:99"], "--device cuda:99 does not exist"),
        ([*HOST, "--weights", "absent.safetensors"], "There is no weights file absent.safetensors."),
        ([*HOST, "--proposal-weights", "x"], "has no proposal"),
        (["--model", "test_vit", "--proposal-weights", "absent"], "There is no weights file absent."),
        (["--recipe", "papr(keep=0.5, proposal=no_such_net)", "--model", "test_vit"], "no_such_net"),
        ([*HOST, "--dtype", "fp16", "--prepack"], "fp32 or bf16"),
        (["--colour"], "--colour"),
    ],
)
def test_bench_refuses_in_a_sentence(refused, options, words):
    assert words in refused("bench", *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "absent"], "absent does not exist"),
        (["--data", "{empty}"], "holds no pictures"),
        (["--data", "{pictures}", *HOST, "--no-pretrained", "--classes", "absent.json"], "absent.json cannot be read"),
        (["--data", "{pictures}", *HOST, "--no-pretrained", "--classes", "{wrong}"], "must map folder names"),
        (["--data", "{pictures}", *HOST, "--no-pretrained", "--preprocessing", "mine"], "choose timm or papers"),
        (["--data", "{pictures}", *HOST, "--batch", "0"], "--batch"),
        (["--data", "{pictures}", *HOST, "--k", "0"], "--k must be"),
        (["--data", "{pictures}", *HOST, "--limit", "0"], "--limit"),
        (["--data", "{pictures}/dog/broken.jpg", *HOST, "--no-pretrained"], "could be read"),
        (HOST, "--data"),
    ],
)
def test_eval_refuses_in_a_sentence(refused, tmp_path, pictures, options, words):
    (tmp_path / "wrong.json").write_text('{"cat": "dog"}')
    (tmp_path / "empty").mkdir()
    places = {"pictures": pictures, "empty": tmp_path / "empty", "wrong": tmp_path / "wrong.json"}
    assert words in refused("eval", *(option.format(**places) for option in options))


def test_a_function_in_the_current_folder_is_a_model(run, refused, there, monkeypatch):
    (there / "model_of_mine.py").write_text("import timm\n\ndef build():\n    return timm.create_model('test_vit')\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = run("bench", "--model", "model_of_mine:build", "--recipe", "tome(r=8)", *QUICK, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["model"], found["tokens"]["dense"]) == ("model_of_mine:build", 101)
    assert "--model model_of_mine:bild: model_of_mine has no bild; the nearest is build." in refused(
        "bench", "--model", "model_of_mine:bild", "--recipe", ""
    )


def test_weights_of_another_model_and_files_that_are_none(refused, tmp_path):
    other, junk = tmp_path / "other.safetensors", tmp_path / "junk.safetensors"
    save_file(timm.create_model("test_vit2").state_dict(), other)
    junk.write_text("junk")
    assert "Cannot load other.safetensors into test_vit" in refused("bench", *HOST, "--weights", other)
    assert "cannot be read as weights" in refused("bench", *HOST, "--weights", junk)


def test_a_map_of_nan_is_a_sentence(refused, pictures, nan_proposal):
    recipe = "papr(keep=0.5, proposal=test_resnet)"
    options = ["--model", "test_vit", "--recipe", recipe, "--proposal-weights", nan_proposal]
    assert "NaN" in refused("bench", *options)
    assert "NaN" in refused("eval", "--data", pictures, *options, "--no-pretrained")


def test_our_own_mistakes_keep_their_traceback(run, monkeypatch):
    def broken(*_arguments, **_settings):
        return int("no number")

    monkeypatch.setattr("tokensieve.measure.speed", broken)
    with pytest.raises(ValueError, match="no number"):
        run("bench", *HOST, *QUICK)


@pytest.mark.shared
def test_real_weights_on_photographs(run, shared):
    result = run(
        *("eval", "--data", shared / "data/imagenet_val_a", "--classes", shared / "data/imagenet_classes.json"),
        *("--model", "deit_tiny_patch16_224", "--weights", shared / "weights/deit_tiny_patch16_224.safetensors"),
        *("--preprocessing", "papers", "--recipe", "tome(r=8)", "--limit", 20, "--json"),
    )
    assert result.code == 0
    record = json.loads(result.out)
    assert record["images"] == 20
    assert record["dense"]["top1"] == pytest.approx(80, abs=5.1)
    assert record["agreement"] >= 70


@pytest.mark.parametrize(
    ("name", "code", "said"), [("SIGTERM", 143, "ended by SIGTERM."), ("SIGINT", 130, "ended by Ctrl-C.")]
)
def test_a_signal_that_no_command_keeps_work_for_is_told(name, code, said):
    script = (
        "import os, signal, sys\n"
        "from tokensieve import cli\n"
        "@cli.app.command()\n"
        "def wait():\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
        "    signal.pause()\n"
        "sys.argv = ['tokensieve', 'wait']\n"
        "sys.exit(cli.main())\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (code, f"tokensieve: {said}\n")
