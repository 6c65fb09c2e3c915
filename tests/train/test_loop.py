"""The training loop: the same curve however often it is killed, and every setting does what it says."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from tests.train.small import CLASSES, SETTINGS, Small, Sorting
from tokensieve import sieve
from tokensieve.errors import InputError, RecipeError
from tokensieve.train.loop import make_optimizer, make_schedule, need_accelerate, read_log, train
from tokensieve.train.task import Loss

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """Like what a signal raises: nothing of the loop's own may catch it."""


def quiet(row):
    pass


def learn(folder, task=None, **settings):
    """(state dict, rows with all digits) of a training."""
    task, rows = task or Sorting(), []
    weights = train(replace(SETTINGS, **settings), task, folder, report=rows.append)
    return load_file(weights), rows


def same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for key in one:
        if tolerance:
            torch.testing.assert_close(one[key], other[key], **tolerance)
        else:
            assert torch.equal(one[key], other[key]), key


def kill(folder, at, task=None, **settings):
    """A training killed in the middle of the step behind so many batches."""
    task = task or Sorting()
    loss = task.loss

    def dying(module, batch):
        if task.calls == at:
            raise Killed
        return loss(module, batch)

    task.loss = dying
    with pytest.raises(Killed):
        train(replace(SETTINGS, **settings), task, folder, report=quiet)


class Scripted(Sorting):
    """Says of each validation what it is told to, by the number of steps that have been made."""

    def __init__(self, told):
        super().__init__()
        self.told, self.seen = told, {}

    def evaluate(self, module):
        step = self.calls
        self.seen[step] = {key: value.clone() for key, value in module.state_dict().items()}
        return {"score": self.told[step]}


class TestTheBestIsKept:
    TOLD: ClassVar = {2: 1.0, 4: 5.0, 6: 5.0, 8: 4.0, 10: 9.0, 12: 2.0, 14: 3.0}
    """The best of the first four is that of step 4: as large later is no better."""

    @pytest.mark.parametrize("ema", [None, 0.9])
    def test_the_weights_of_the_best_validation_are_written(self, tmp_path, ema):
        task = Scripted(self.TOLD)
        state, rows = learn(tmp_path, task, validate_every=2, best="score", ema=ema)
        assert len(rows) == 7
        same(state, task.seen[10])
        with pytest.raises(AssertionError):
            same(state, task.seen[14])

    def test_it_ends_when_nothing_has_become_better_for_so_long(self, tmp_path):
        task = Scripted(self.TOLD)
        state, rows = learn(tmp_path, task, validate_every=2, best="score", patience=2)
        assert [row["step"] for row in rows] == [2, 4, 6, 8]
        same(state, task.seen[4])
        again = Scripted(self.TOLD)  # ended is ended: nothing is learnt, the same is written
        same(state, learn(tmp_path, again, validate_every=2, best="score", patience=2)[0])
        assert again.calls == 0

    def test_killed_and_gone_on_it_knows_the_best_so_far(self, tmp_path):
        settings = {"validate_every": 2, "best": "top1", "ema": 0.9}
        whole, rows = learn(tmp_path / "whole", **settings)
        kill(tmp_path / "parts", 9, **settings)
        same(whole, learn(tmp_path / "parts", **settings)[0])
        assert len({row["top1"] for row in rows}) > 1

    def test_what_makes_no_sense_is_refused(self, tmp_path):
        with pytest.raises(RecipeError, match="no metric 'miou': best must be one of"):
            learn(tmp_path, best="miou")
        with pytest.raises(RecipeError, match="patience needs"):
            replace(SETTINGS, patience=2)


def curve(folder):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_log(folder, "sorting")]


EVERYTHING = {
    "ema": 0.9, "schedule": "poly", "min_lr": 1e-4, "optimizer": "nadamw", "checkpoint_every": 3, "accumulation": 2,
}  # fmt: skip


class TestResuming:
    @pytest.mark.parametrize("settings", [{}, EVERYTHING, {"optimizer": "sgd"}], ids=["plain", "everything", "sgd"])
    @pytest.mark.parametrize("at", [7, 11])
    def test_killed_inside_an_epoch_it_ends_to_the_bit_as_if_nothing_had_been(self, tmp_path, settings, at):
        """Order, augmentation, dropout, batch norm, schedule, optimizer, average and log, all of them."""
        whole, rows = learn(tmp_path / "whole", **settings)
        parts = settings.get("accumulation", 1)
        kill(tmp_path / "parts", at * parts + parts - 1, **settings)
        state = torch.load(tmp_path / "parts" / "sorting.checkpoint.pt", weights_only=True)
        every = settings.get("checkpoint_every", 4)
        assert state["step"] == at // every * every < at
        resumed, rest = learn(tmp_path / "parts", **settings)
        same(whole, resumed)
        assert curve(tmp_path / "whole") == curve(tmp_path / "parts")
        exact = [{key: row[key] for key in ("step", "loss", "right", "top1")} for row in rows]
        assert exact[-len(rest) :] == [{key: row[key] for key in exact[0]} for row in rest], "before any rounding"

    def test_killed_twice_and_read_by_workers(self, tmp_path):
        whole, _ = learn(tmp_path / "whole")
        for at, workers in ((6, 2), (5, 0)):  # the second time from step 4, to step 9
            kill(tmp_path / "parts", at, workers=workers)
        same(whole, learn(tmp_path / "parts", workers=1)[0])
        assert curve(tmp_path / "whole") == curve(tmp_path / "parts")

    def test_a_finished_training_has_nothing_left_to_do(self, tmp_path):
        first, _ = learn(tmp_path)
        task = Sorting()
        again, rows = learn(tmp_path, task)
        same(first, again)
        assert (task.calls, rows) == (0, [])

    def test_what_was_begun_otherwise_is_refused_by_name_and_stays(self, tmp_path):
        learn(tmp_path)
        before = (tmp_path / "sorting.checkpoint.pt").read_bytes()
        with pytest.raises(InputError, match=r"belongs to another training \(other lr, clip\): give another folder"):
            learn(tmp_path, lr=1, clip=None)
        task = Sorting()
        task.identity = "fifty points"
        with pytest.raises(InputError, match="belongs to another training: give another folder"):
            learn(tmp_path, task)
        assert (tmp_path / "sorting.checkpoint.pt").read_bytes() == before
        learn(tmp_path, workers=1, checkpoint_every=2)

    @pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"", lambda data: b"no checkpoint"])
    def test_a_damaged_checkpoint_is_refused(self, tmp_path, damage):
        learn(tmp_path)
        file = tmp_path / "sorting.checkpoint.pt"
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(InputError, match=r"sorting\.checkpoint\.pt cannot be read as a checkpoint .*delete it"):
            learn(tmp_path)

    def test_a_file_of_something_else_is_refused(self, tmp_path):
        torch.save([1, 2], tmp_path / "sorting.checkpoint.pt")
        with pytest.raises(InputError, match="belongs to another training"):
            learn(tmp_path)


class TestSettings:
    @pytest.mark.parametrize(
        "settings",
        [
            {"seed": 1},
            {"lr": 0.02},
            {"weight_decay": 0.5},
            {"optimizer": "lamb"},
            {"optimizer_args": {"betas": (0.5, 0.9)}},
            {"schedule": "constant"},
            {"schedule": "poly"},
            {"min_lr": 0.005},
            {"warmup": 0},
            {"clip": 0.1},
            {"clip": None},
            {"precision": "bf16"},
            {"ema": 0.9},
            {"epochs": 1},
            {"batch_size": 4},
        ],
        ids=str,
    )
    def test_each_changes_what_is_learnt(self, tmp_path, settings):
        one, other = learn(tmp_path / "one")[0], learn(tmp_path / "other", **settings)[0]
        assert not torch.equal(one["model.0.weight"], other["model.0.weight"])

    def test_a_batch_in_parts_teaches_the_same(self, tmp_path):
        """Where neither chance nor batch norm looks at the batch."""
        tasks = [Sorting(Small(dropout=0.0, norm=False), noise=0.0) for _ in range(2)]
        tasks[1].module.load_state_dict(tasks[0].module.state_dict())
        whole, rows = learn(tmp_path / "whole", tasks[0])
        parts, others = learn(tmp_path / "parts", tasks[1], accumulation=4)
        same(whole, parts, atol=1e-5, rtol=1e-4)
        assert tasks[1].calls == 4 * tasks[0].calls
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in others], rel=1e-4)
        assert [row["images"] for row in rows] == [row["images"] for row in others] == [32, 64, 96, 112]

    def test_a_batch_that_cannot_be_shared_is_refused_before_anything_is_written(self, tmp_path):
        with pytest.raises(RecipeError, match="batch_size 8 cannot be shared evenly by 1 devices in 3 parts"):
            learn(tmp_path / "out", accumulation=3)
        assert not (tmp_path / "out").exists()

    def test_rows_and_checkpoints_come_when_they_are_due(self, tmp_path):
        seen = []

        def look(row):
            file = tmp_path / "sorting.checkpoint.pt"
            seen.append((row["step"], torch.load(file, weights_only=True)["step"] if file.is_file() else None))

        train(replace(SETTINGS, validate_every=6, checkpoint_every=4), Sorting(), tmp_path, report=look)
        assert seen == [(6, 4), (12, 8), (14, 12)]
        assert torch.load(tmp_path / "sorting.checkpoint.pt", weights_only=True)["step"] == 14
        assert [row["step"] for row in read_log(tmp_path, "sorting")] == [6, 12, 14]

    def test_the_log_has_means_since_the_last_row_and_the_tasks_metrics(self, tmp_path):
        task, losses = Sorting(), []
        loss = task.loss

        def noted(module, batch):
            result = loss(module, batch)
            losses.append(result.value.item())
            return result

        task.loss = noted
        _, rows = learn(tmp_path, task)
        parts = losses[:4], losses[4:8], losses[8:12], losses[12:]
        assert [row["loss"] for row in rows] == pytest.approx([sum(part) / len(part) for part in parts], rel=1e-5)
        assert rows[-1]["top1"] == task.evaluate(task.module)["top1"] > 60
        assert list(read_log(tmp_path, "sorting")[0]) == ["step", "images", "seconds", "loss", "right", "top1"]

    @pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
    def test_the_forward_runs_in_the_asked_precision_and_weights_stay(self, tmp_path, precision, kind):
        task, kinds = Sorting(), set()
        task.module.model[0].register_forward_hook(lambda module, args, output: kinds.add(output.dtype))
        task.evaluate = lambda module: {}
        state, _ = learn(tmp_path, task, precision=precision)
        assert kinds == {kind}
        assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}

    @pytest.mark.skipif(torch.cuda.is_available(), reason="asks what the processor has")
    @pytest.mark.parametrize("has", [False, True])
    def test_auto_is_bf16_only_where_the_processor_has_units_for_it(self, tmp_path, monkeypatch, has):
        found = {"architecture": "x86_64", "avx512_bf16": has}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
        task, kinds = Sorting(), set()
        task.module.model[0].register_forward_hook(lambda module, args, output: kinds.add(output.dtype))
        task.evaluate = lambda module: {}
        learn(tmp_path, task, precision="auto")
        assert kinds == {torch.bfloat16 if has else torch.float32}

    def test_gradients_are_clipped_together(self, tmp_path):
        task, moves = Sorting(), []
        before = torch.cat([p.detach().flatten() for p in task.module.parameters()])

        def note(row):
            moves.append(torch.cat([p.detach().flatten() for p in task.module.parameters()]) - before)

        settings = {"optimizer": "sgd", "optimizer_args": {"momentum": 0.0, "nesterov": False}, "weight_decay": 0.0}
        settings |= {"clip": 1e-3, "lr": 1.0, "warmup": 0, "epochs": 0.2, "validate_every": 1}
        train(replace(SETTINGS, **settings), task, tmp_path, report=note)
        assert moves[0].norm().item() == pytest.approx(1e-3, rel=1e-3)

    def test_the_average_is_validated_and_written_and_follows_the_weights(self, tmp_path):
        task, steps = Sorting(), []
        seen = task.loss

        def note(module, batch):
            steps.append({key: value.clone() for key, value in module.state_dict().items()})  # before this step
            return seen(module, batch)

        task.loss = note
        task.evaluate = lambda module: {"averaged": float(module is not task.module)}
        averaged, rows = learn(tmp_path, task, ema=0.4)
        steps.append(task.module.state_dict())
        key = "model.0.weight"
        expected = steps[1][key]  # the first step's, whole
        for number, state in enumerate(steps[2:], 1):
            decay = min(0.4, 1 - (1 + number) ** (-2 / 3))
            expected = decay * expected + (1 - decay) * state[key]
        torch.testing.assert_close(averaged[key], expected)
        assert not torch.equal(averaged[key], task.module.state_dict()[key])
        assert {row["averaged"] for row in rows} == {1.0}

    def test_the_cosine_begins_with_a_rate_and_is_the_one_the_bundled_models_were_trained_by(self):
        rates = self.rates(schedule="cosine", warmup=4, steps=20)
        expected = [0.01 * (step + 1) / 4 for step in range(4)]
        expected += [0.01 * (0.5 + 0.5 * math.cos(math.pi * (step - 4) / 16)) for step in range(4, 20)]
        assert rates == pytest.approx(expected)

    def test_the_other_schedules(self):
        poly = self.rates(schedule="poly", power=2.0, min_lr=0.001, steps=10)
        assert poly == pytest.approx([0.001 + 0.009 * (1 - step / 10) ** 2 for step in range(10)])
        assert self.rates(schedule="constant", warmup=2, steps=6) == pytest.approx([0.005, *[0.01] * 5])
        assert self.rates(schedule="cosine", warmup=5, steps=3) == pytest.approx([0.002, 0.004, 0.006])

    @staticmethod
    def rates(steps, **settings):
        """What the optimizer of a training of so many steps is told at each of them."""
        rates, task = [], Sorting()
        config = replace(SETTINGS, **{"warmup": 0, "epochs": steps * 8 / 40, **settings})
        optimizer = make_optimizer(task.module, config)
        schedule = make_schedule(optimizer, config, steps)
        for step in range(steps):
            schedule.step_update(step + 1 if step < config.warmup else step)
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    def test_biases_and_norms_do_not_decay_and_what_is_frozen_is_left_out(self):
        module = Small()
        module.model[3].requires_grad_(False)
        groups = make_optimizer(module, SETTINGS).param_groups
        found = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        linear, norm = module.model[0], module.model[1]
        assert found == {
            id(linear.weight): 0.05, id(linear.bias): 0.0, id(norm.weight): 0.0, id(norm.bias): 0.0,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"optimizer": "adamww"}, "timm cannot make the optimizer 'adamww'"),
            ({"optimizer_args": {"nonsense": 1}}, "the optimizer 'adamw' with {'nonsense': 1}"),
            ({"layer_decay": 0.7}, "Small does not define its layers"),
        ],
    )
    def test_an_optimizer_that_cannot_be_made_is_refused_before_anything_is_written(self, tmp_path, settings, sentence):
        with pytest.raises(RecipeError, match=sentence):
            learn(tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()

    def test_nothing_trainable_is_refused(self, tmp_path):
        task = Sorting()
        task.module.requires_grad_(False)
        with pytest.raises(RecipeError, match="Small has no parameter that requires a gradient"):
            learn(tmp_path, task)


class TestWhatGoesWrong:
    @pytest.mark.parametrize("of", ["loss", "gradient"])
    def test_no_checkpoint_is_replaced_by_weights_that_are_no_numbers(self, tmp_path, of):
        task = Sorting()
        seen = task.loss

        def breaking(module, batch):
            loss = seen(module, batch)
            if task.calls != 6:
                return loss
            wrong = module.model[0].weight.sum() * math.nan
            return loss._replace(value=wrong if of == "loss" else loss.value + (wrong - wrong.detach()).nan_to_num())

        if of == "gradient":
            task.module.model[0].weight.register_hook(lambda g: g * math.inf if task.calls == 6 else g)
        task.loss = breaking
        with pytest.raises(
            InputError, match="The loss of sorting, or its gradient, became NaN or infinite before step 8"
        ):
            learn(tmp_path, task)
        state = torch.load(tmp_path / "sorting.checkpoint.pt", weights_only=True)
        assert state["step"] == 4
        assert all(value.isfinite().all() for value in state["module"].values())
        assert not (tmp_path / "sorting.safetensors").exists()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_sample_that_cannot_be_read_is_a_sentence_and_training_goes_on_once_it_is_mended(self, tmp_path, workers):
        whole, _ = learn(tmp_path / "whole")
        task = Sorting()
        batches = task.batches

        def broken(size, count, seed):
            made = batches(size, count, seed)
            made.__class__ = Unreadable
            return made

        task.batches = broken
        sentence = "cat.png is not a picture: training stopped after step 9"
        with pytest.raises(InputError, match=sentence):
            learn(tmp_path / "parts", task, workers=workers)
        same(whole, learn(tmp_path / "parts")[0])

    def test_without_accelerate_it_says_what_to_install(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "accelerate", None)
        sentence = r"Training needs accelerate \(accelerate is not installed\): pip install 'tokensieve\[train\]'"
        with pytest.raises(InputError, match=sentence):
            need_accelerate()
        with pytest.raises(InputError, match=sentence):
            learn(tmp_path / "out")
        assert not (tmp_path / "out").exists()


class Unreadable(Sorting().batches(1, 1, 0).__class__):
    def __getitem__(self, number):
        if number == 9:
            raise InputError("cat.png is not a picture.")
        return super().__getitem__(number)


class TracedTask(Sorting):
    """A sieved model that learns from what its trace tells: answers, and its last tokens back on the grid."""

    name, identity = "traced", "noise"

    def __init__(self):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", img_size=64, num_classes=CLASSES, drop_path_rate=0.2)
        super().__init__(sieve(model, "tome(r=1)"))
        self.x = torch.randn(len(self.y), 3, 64, 64, generator=torch.Generator().manual_seed(2))

    def loss(self, module, batch):
        self.calls += 1
        x, y = batch
        trace = module.trace(x)
        assert trace.tokens_per_block[-1] < trace.tokens_per_block[0]
        smooth = trace.restore().float().diff(dim=-1).square().mean()
        return Loss(nn.functional.cross_entropy(trace.output.float(), y) + smooth, {"smooth": smooth})


def test_a_loss_may_be_one_over_a_trace(tmp_path):
    settings = {"ema": 0.5, "layer_decay": 0.8, "epochs": 1.6}
    whole, rows = learn(tmp_path / "whole", TracedTask(), **settings)
    assert whole.keys() == timm.create_model("test_vit", img_size=64, num_classes=CLASSES).state_dict().keys()
    assert rows[-1]["smooth"] < rows[0]["smooth"]
    kill(tmp_path / "parts", 6, TracedTask(), **settings)
    same(whole, learn(tmp_path / "parts", TracedTask(), **settings)[0])


ONE_OF_TWO = """
import json, os, sys, torch
from dataclasses import replace
from pathlib import Path
from accelerate import PartialState
from tests.train.small import CLASSES, SETTINGS, Small, Sorting
from tokensieve.train.loop import train
if sys.argv[2] == "beside":  # an Accelerator of somebody else, with other settings
    from accelerate import Accelerator
    Accelerator(mixed_precision="bf16", gradient_accumulation_steps=3)
torch.manual_seed(0)
task = Sorting(Small(dropout=0.0, norm=False), noise=0.0)
if sys.argv[2] == "killed":
    loss = task.loss
    task.loss = lambda module, batch: os._exit(9) if task.calls == 6 else loss(module, batch)
tell = lambda row: print(json.dumps(row | {"calls": task.calls, "devices": PartialState().num_processes}))
train(replace(SETTINGS, checkpoint_every=3), task, Path(sys.argv[1]), report=tell)
"""


def python(*arguments, devices=1):
    """A process of its own, or two that share each batch."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    call = [sys.executable, *(launch if devices == 2 else ()), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(call, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == ("killed" not in arguments), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_processes_that_are_not_joined_do_not_train_side_by_side(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one of 2 processes that accelerate does not connect"):
        learn(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_devices_share_each_batch_and_learn_the_same(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ONE_OF_TWO)
    alone = python(script, tmp_path / "one", "alone")
    both = python(script, tmp_path / "two", "alone", devices=2)
    assert len(alone) == len(both) == 4, "one of them reports"
    for one, two in zip(alone, both, strict=True):
        assert (one["devices"], two["devices"]) == (1, 2)
        assert (one["step"], one["images"], one["calls"]) == (two["step"], two["images"], two["calls"])
        assert [one["loss"], one["right"]] == pytest.approx([two["loss"], two["right"]], rel=1e-4)
    files = [load_file(tmp_path / folder / "sorting.safetensors") for folder in ("one", "two")]
    same(*files, atol=1e-5, rtol=1e-4)
    # Killed two steps behind a validation, with a checkpoint between, and resumed.
    assert len(python(script, tmp_path / "parts", "killed", devices=2)) == 1
    rest = python(script, tmp_path / "parts", "alone", devices=2)
    assert [(row["loss"], row["top1"]) for row in rest] == [(row["loss"], row["top1"]) for row in both[1:]]
    same(files[1], load_file(tmp_path / "parts" / "sorting.safetensors"))


@pytest.mark.slow
def test_somebody_elses_accelerator_in_the_same_process_changes_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ONE_OF_TWO)
    rows = [python(script, tmp_path / kind, kind) for kind in ("alone", "beside")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
