"""What the machine is said to have, and what is said when something is amiss."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import save_file
from torch._inductor import config

from tokensieve import InputError, Sieved, zoo
from tokensieve.about import machine
from tokensieve.about.machine import compiler, cores, kernels, machine_facts, requirements, self_test
from tokensieve.forward.plan import Plan, Reads


class Distribution(dict):
    """What an installed distribution says of itself."""

    def get_all(self, name):
        return self.get(name)


@pytest.fixture
def installed(monkeypatch):
    """Pretends that tokensieve is installed with these needs."""

    def pretend(extras, needs):
        given = Distribution({"Provides-Extra": extras, "Requires-Dist": needs})
        monkeypatch.setattr(importlib.metadata, "metadata", lambda name: given)

    return pretend


def test_facts_of_this_machine() -> None:
    facts = machine_facts()
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["threads"] == torch.get_num_threads()
    assert len(facts["accelerators"]) == torch.cuda.device_count()
    assert {extra["name"] for extra in facts["extras"]} >= {"export", "dev"}
    assert len(facts["attention"]) == 2 * (1 + min(1, torch.cuda.device_count()))
    assert facts["failures"] == []


def test_kernels_are_those_that_ran() -> None:
    told = kernels(torch.device("cpu"), torch.float32)
    assert told["plain"] == told["masked"] == "flash"
    assert {"MATH", "FLASH_ATTENTION"} <= set(told["available"]["plain"])
    assert "CUDNN_ATTENTION" not in told["available"]["plain"]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert kernels(torch.device("cpu"), torch.float32)["plain"] == "math"


def test_needs_come_from_the_source_folder_where_nothing_is_installed(monkeypatch, tmp_path) -> None:
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", absent)
    needs, installed = requirements()
    assert not installed
    assert "torch" in [need.name for need in needs[""]]
    assert "onnx" in [need.name for need in needs["export"]]
    monkeypatch.setattr(machine, "SOURCE", tmp_path)
    assert requirements() == ({"": []}, False)


def test_needs_come_from_the_distribution_where_there_is_one(installed) -> None:
    installed(
        ["export", "dev"],
        [
            "torch>=2.9",
            'old; python_version < "3"',
            'onnx>=1.18; extra == "export"',
            'tokensieve[export]; extra == "dev"',
            'never; extra == "dev" and python_version < "3"',
        ],
    )
    needs, found = requirements()
    assert found
    names = {extra: [need.name for need in wanted] for extra, wanted in needs.items()}
    assert names == {"": ["torch"], "export": ["onnx"], "dev": ["tokensieve"]}


def test_an_extra_is_present_or_says_how_to_install_it(installed) -> None:
    needs = ["torch>=2.9", 'no-such-package>=3; extra == "export"', 'tokensieve[export]; extra == "dev"']
    installed(["export", "dev", "there"], [*needs, 'torch; extra == "there"'])
    export, dev, there = machine_facts()["extras"]
    assert (export["missing"], export["install"]) == (["no-such-package>=3"], 'pip install "tokensieve[export]"')
    assert dev["missing"] == ["no-such-package>=3"]  # through the extra that it asks for
    assert (there["missing"], there["install"]) == ([], None)
    assert (there["versions"], export["versions"]) == ({"torch": importlib.metadata.version("torch")}, {})


def test_what_is_too_old_is_a_warning(installed) -> None:
    installed([], ["torch>=99"])
    facts = machine_facts()
    found = facts["versions"]["torch"]
    assert (
        facts["warnings"][0]
        == f'torch {found} is installed, but torch>=99 is needed: pip install --upgrade "torch>=99".'
    )


def test_cores_are_the_fewest_that_anyone_grants(monkeypatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for text, expected in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)):
        monkeypatch.setattr(machine.Path, "read_text", lambda _, text=text: text)
        assert cores() == expected


def healthy() -> dict:
    return {
        "installed": True,
        "extras": [],
        "threads": 2,
        "cores": 2,
        "architecture": "x86_64",
        "machine": "Some CPU (amx_bf16)",
        "attention": [{"device": "cpu", "dtype": "bfloat16", "plain": "flash", "masked": "flash"}],
        "compiler": "/usr/bin/g++",
        "python_headers": True,
        "bundled": [{"name": "nano_vit", "loads": True, "reason": None}],
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"installed": False}, "imported from a folder without package metadata"),
        ({"threads": 8}, "8 threads on 2 cores, which slows all of them down: give --threads 2"),
        ({"machine": "Some CPU"}, "no instructions for bf16"),
        ({"compiler": None}, "no C++ compiler"),
        ({"python_headers": False}, "Python's C headers"),
        ({"bundled": [{"name": "nano_vit", "loads": False, "reason": "It is gone."}]}, "nano_vit does not load: It is"),
        (
            {"attention": [{"device": "cuda:0", "dtype": "float32", "plain": "flash", "masked": "math"}]},
            "float32 with the mask of merged tokens is not fused on cuda:0",
        ),
    ],
)
def test_a_warning_is_a_sentence(change: dict, words: str) -> None:
    assert machine._warnings(healthy()) == []
    (warning,) = machine._warnings({**healthy(), **change})
    assert words in warning
    assert warning.endswith(".")


def test_other_processors_are_not_judged_by_x86_units() -> None:
    assert machine._warnings({**healthy(), "architecture": "aarch64", "machine": "Neoverse"}) == []


def test_no_compiler_is_none() -> None:
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert compiler() is None


def test_bundled_weights_that_do_not_load_are_told(monkeypatch) -> None:
    def refuse(name, **_):
        raise InputError(f"{name} is not the file that was expected.")

    monkeypatch.setattr(machine.zoo, "create", refuse)
    monkeypatch.setattr(machine, "bundled_names", lambda: ["nano_vit"])
    (told,) = machine_facts()["bundled"]
    assert (told["loads"], told["sha256"]) == (False, None)
    assert told["reason"] == "nano_vit is not the file that was expected."


def test_bundled_weights_that_load_are_told_with_their_checksum(monkeypatch, tmp_path) -> None:
    file = tmp_path / "nano.safetensors"
    save_file(zoo.create("nano_convnet", pretrained=False).model.state_dict(), file)
    monkeypatch.setattr("tokensieve.zoo.models.bundled_weights", lambda name: file)
    monkeypatch.setattr(zoo, "bundled_weights", lambda name: file)
    told = machine._bundled("nano_convnet")
    assert (told["loads"], told["reason"], told["sha256"]) == (True, None, zoo.file_sha256(file))


def test_the_self_test_sees_an_output_that_is_off_by_one_bit(monkeypatch) -> None:
    assert self_test() == []
    forward = Sieved.forward
    monkeypatch.setattr(Sieved, "forward", lambda self, images: forward(self, images) * (1 + 2**-23))
    (sentence,) = self_test()
    assert "which removes no token, the output differs from the dense model's" in sentence


def test_the_self_test_sees_tokens_that_stay(monkeypatch) -> None:
    monkeypatch.setattr(Plan, "reads", lambda self, patches: [Reads(1, 1, 1, 1)] * 3)
    (sentence,) = self_test()
    assert "[8, 7, 6] tokens where [1, 1, 1] were planned" in sentence


def test_macs_of_a_known_model_are_counted() -> None:
    facts = machine_facts()
    assert facts["macs"] == {"counted": 780_640.0, "expected": 780_640}
    assert facts["failures"] == []


@pytest.mark.versions
def test_macs_that_are_counted_wrong_are_told(monkeypatch) -> None:
    # What the count was where torch's own registry lacked the attention of CPUs.
    monkeypatch.setattr(machine, "macs", lambda model: 780_640.0 - 3 * 2 * 17**2 * 32)
    (sentence,) = machine_facts()["failures"]
    assert sentence == (
        f"MACs are counted wrongly with torch {torch.__version__}: 725,152 for a tiny ViT, where 780,640 are right. "
        "Counts of MACs are not reliable on this machine."
    )

    def refuse(model):
        raise InputError("The MACs of VisionTransformer cannot be counted.")

    monkeypatch.setattr(machine, "macs", refuse)
    assert machine_facts()["failures"] == ["The MACs of VisionTransformer cannot be counted."]


def test_the_self_test_leaves_the_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    self_test()
    assert torch.equal(state, torch.get_rng_state())


def test_accelerators_are_named(monkeypatch) -> None:
    properties = SimpleNamespace(total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    told = machine._accelerator(torch.device("cuda", 0))
    assert told == {"device": "cuda:0", "name": "Some GPU", "memory_bytes": 80 * 2**30, "capability": "9.0"}


def test_what_is_missing_from_the_core_is_said() -> None:
    (sentence,) = machine._outdated([Requirement("torch>=1"), Requirement("no-such-package>=3")])
    assert sentence.startswith("no-such-package is not installed, but no-such-package>=3 is needed: pip install")


def test_versions_that_fit() -> None:
    assert machine._missing([Requirement("torch>=1"), Requirement("torch<1"), Requirement("absent")]) == [
        "torch<1",
        "absent",
    ]
