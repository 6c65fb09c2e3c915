"""Hardware and software of this machine, and whether tokensieve works on it, tested by running it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sysconfig
import tomllib
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from timm.models.vision_transformer import VisionTransformer
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import __version__, zoo
from .._spec_models import load
from ..errors import SieveError
from ..measure import macs
from ..measure.attention import attention_kernels
from ..show.record import machine_name
from ..stream import sieve
from .models import bundled_names

LISTED_PACKAGES = ("torch", "timm", "torchvision", "transformers", "onnx", "onnxscript", "onnxruntime")
"""Packages whose versions are listed, if they are installed."""

SOURCE = Path(__file__).resolve().parents[3]
"""The project's folder, if the package runs from its source."""


def machine_facts() -> dict[str, Any]:
    """What `tokensieve doctor` reports of this machine, as plain JSON: versions, processor, accelerators, attention
    kernels, extras, bundled weights, a check of the MAC counter, and a self-test.

    `failures` are sentences about errors that prevent tokensieve from working, `warnings` about limitations.
    """
    needs, installed = requirements()
    versions = {name: version for name in LISTED_PACKAGES if (version := _version(name))}
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    facts: dict[str, Any] = {
        "versions": {"tokensieve": __version__, "python": platform.python_version(), **versions},
        "installed": installed,
        "machine": machine_name(devices[0]),
        "architecture": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "accelerators": [_accelerator(device) for device in devices[1:]],
        "attention": [kernels(device, dtype) for device in devices[:2] for dtype in (torch.float32, torch.bfloat16)],
        "compiler": compiler(),
        "python_headers": (Path(sysconfig.get_path("include")) / "Python.h").is_file(),
        "extras": [_extra(name, needs, installed) for name in needs if name],
        "bundled": [_bundled(name) for name in bundled_names()],
        "macs": check_mac_counter(),
    }
    facts["failures"] = [*self_test(), *_wrong_counts(facts["macs"])]
    return {**facts, "warnings": [*_outdated(needs.get("", [])), *_warnings(facts)]}


def requirements() -> tuple[dict[str, list[Requirement]], bool]:
    """Requirements of the package by extra ("" is the core), and whether they come from an installed distribution.

    If the package is not installed they are read from the project's `pyproject.toml`; without that file there are none.
    """
    needs: dict[str, list[Requirement]] = {}
    try:
        distribution = metadata.metadata("tokensieve")
    except metadata.PackageNotFoundError:
        file = SOURCE / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"] if file.is_file() else {}
        for extra, texts in {"": project.get("dependencies", []), **project.get("optional-dependencies", {})}.items():
            needs[extra] = [need for need in map(Requirement, texts) if not need.marker or need.marker.evaluate()]
        return needs, False
    needs = {extra: [] for extra in ("", *(distribution.get_all("Provides-Extra") or []))}
    for need in map(Requirement, distribution.get_all("Requires-Dist") or []):
        match = re.search(r"""extra\s*==\s*["']([^"']+)""", str(need.marker))
        extra = match[1] if match else ""
        if need.marker is None or need.marker.evaluate({"extra": extra}):
            needs.setdefault(extra, []).append(need)
    return needs, True


def cores() -> int:
    """Number of cores that this process may use: those of its CPU affinity, at most its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or the quota "max"
        return count


def kernels(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The attention kernel that torch selects without a mask (`plain`) and with the mask of merged tokens (`masked`),
    and all kernels that can run each of them (`available`)."""
    q = torch.randn(1, 2, 17, 64, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    selected: dict[str, str] = {}
    available: dict[str, list[str]] = {}
    for name, mask in (("plain", None), ("masked", torch.zeros(1, 1, 1, 17, device=device, dtype=dtype))):
        call = partial(F.scaled_dot_product_attention, q, q, q, attn_mask=mask)
        selected[name] = ", ".join(attention_kernels(call)) or "unknown"
        available[name] = [
            backend_name for backend_name, backend in SDPBackend.__members__.items() if _runs(backend, call)
        ]
    return {"device": str(device), "dtype": str(dtype).removeprefix("torch."), **selected, "available": available}


def _runs(backend: SDPBackend, call: Callable[[], Any]) -> bool:
    try:
        # torch warns about the reasons why a kernel is not available.
        with warnings.catch_warnings(action="ignore"), torch.no_grad(), sdpa_kernel(backend):
            call()
    except RuntimeError:
        return False
    return True


def compiler() -> str | None:
    """The C++ compiler that torch.compile uses for CPUs; None if there is none."""
    from torch._inductor import cpp_builder, exc

    try:
        command = cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return None
    return shutil.which(command) or command


def _tiny_vit() -> VisionTransformer:
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5).eval()


def check_mac_counter() -> dict[str, Any]:
    """MACs of a tiny ViT as `macs` counts them (`counted`, or its error message) and by a formula (`expected`)."""
    patches, width, depth, classes = 16, 32, 3, 5
    tokens = patches + 1
    blocks = depth * (12 * tokens * width**2 + 2 * tokens**2 * width)  # projections and MLP, and attention's products
    with torch.random.fork_rng(devices=[]):
        try:
            counted: float | str = macs(_tiny_vit())
        except SieveError as error:
            counted = str(error)
    return {"counted": counted, "expected": patches * 3 * 8 * 8 * width + blocks + width * classes}


def _wrong_counts(counts: dict[str, Any]) -> list[str]:
    if isinstance(counts["counted"], str):
        return [counts["counted"]]
    if counts["counted"] == counts["expected"]:
        return []
    return [
        f"MACs are counted wrongly with torch {torch.__version__}: {counts['counted']:,.0f} for a tiny ViT, where "
        f"{counts['expected']:,} are right. Counts of MACs are not reliable on this machine."
    ]


def self_test() -> list[str]:
    """Sieve a tiny random ViT. Returns sentences about errors; empty if everything works."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _tiny_vit()
        images = torch.randn(2, 3, 32, 32)
    failures = []
    with torch.no_grad():
        dense = model(images)
        if not torch.equal(sieve(model, "papr(keep=1) + tome(r=0)")(images), dense):
            failures.append(
                "With papr(keep=1) + tome(r=0), which removes no token, the output differs from the dense model's."
            )
        recipe = "papr(keep=0.5, significance=centre) + tome(r=1)"
        fast = sieve(model, recipe)
        trace, planned = fast.trace(images), [reads.mlp for reads in fast.plan.reads(16)]
        if trace.tokens_per_block != planned or not bool(trace.output.isfinite().all()):
            failures.append(
                f"{recipe} left {trace.tokens_per_block} tokens where {planned} were planned, or its output is not "
                "finite."
            )
    return failures


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _accelerator(device: torch.device) -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(device)
    return {
        "device": str(device),
        "name": machine_name(device),
        "memory_bytes": facts.total_memory,
        "capability": f"{facts.major}.{facts.minor}",
    }


def _missing(needs: list[Requirement]) -> list[str]:
    """Requirements that are not installed, or not in a version that they admit."""
    missing = []
    for need in needs:
        version = _version(need.name)
        if version is None or not need.specifier.contains(version, prereleases=True):
            missing.append(f"{need.name}{need.specifier}")
    return missing


def _extra(name: str, needs: dict[str, list[Requirement]], installed: bool) -> dict[str, Any]:
    collected, pending = list[Requirement](), [name]
    for extra in pending:  # an extra may require another extra of the same package
        for need in needs[extra]:
            if need.name == "tokensieve":
                pending += [other for other in sorted(need.extras) if other not in pending]
            else:
                collected.append(need)
    missing = _missing(collected)
    install_command = f'pip install "tokensieve[{name}]"' if installed else f'pip install -e "{SOURCE}[{name}]"'
    return {
        "name": name,
        "needs": [need.name for need in collected],
        "versions": {need.name: version for need in collected if (version := _version(need.name))},
        "missing": missing,
        "install": install_command if missing else None,
    }


def _bundled(name: str) -> dict[str, Any]:
    """Whether a bundled model loads strictly from its file, and the file's SHA-256."""
    try:
        load(name, {}, None, {}, pretrained=True)
    except SieveError as error:
        return {"name": name, "loads": False, "sha256": None, "reason": str(error)}
    return {"name": name, "loads": True, "sha256": zoo.file_sha256(zoo.bundled_weights(name)), "reason": None}


def _outdated(core: list[Requirement]) -> list[str]:
    """Warnings about requirements of the core that are missing or outdated."""
    messages = []
    for need in core:
        for requirement in _missing([need]):
            version = _version(need.name)
            state = "is not installed" if version is None else f"{version} is installed"
            messages.append(f'{need.name} {state}, but {requirement} is needed: pip install --upgrade "{requirement}".')
    return messages


def _warnings(facts: dict[str, Any]) -> list[str]:
    messages = []
    if not facts["installed"] and not facts["extras"]:
        messages.append(
            "tokensieve is imported from a folder without package metadata: its requirements and extras are not known."
        )
    threads, available = facts["threads"], facts["cores"]
    if threads > available:
        messages.append(
            f"torch runs {threads} threads on {available} cores, which slows all of them down: "
            f"give --threads {available}, or set OMP_NUM_THREADS={available}."
        )
    x86 = facts["architecture"].lower() in ("x86_64", "amd64")
    if x86 and not facts["machine"].endswith(("(amx_bf16)", "(avx512_bf16)")):
        messages.append(
            "The processor has no instructions for bf16 (AMX, AVX-512 BF16): bf16 saves memory here, not time."
        )
    for kernel in facts["attention"]:
        for case in ("plain", "masked"):
            if kernel[case] == "math":
                mask = "with the mask of merged tokens " if case == "masked" else ""
                messages.append(
                    f"Attention in {kernel['dtype']} {mask}is not fused on {kernel['device']}, and therefore slow."
                )
    if facts["compiler"] is None:
        messages.append(
            "torch.compile finds no C++ compiler: install g++ or clang++, or set the environment variable CXX to one."
        )
    if not facts["python_headers"]:
        messages.append(
            "torch.compile needs Python's C headers for CPUs: install them (package python3-dev or python3-devel)."
        )
    broken = (model for model in facts["bundled"] if not model["loads"])
    messages += [f"The bundled {model['name']} does not load: {model['reason']}" for model in broken]
    return messages
