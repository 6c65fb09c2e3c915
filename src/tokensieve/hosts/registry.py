"""Which host opens which class of models."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from ..data.inputs import SPEC_PROVIDERS, InputSpec
from ..errors import UnsupportedHost
from .base import Host
from .staged import StagedHost

Opener = type[Host] | type[StagedHost]
Registered = TypeVar("Registered", bound=Opener)

HOSTS: dict[type[nn.Module] | str, Opener] = {}
"""Model class, or a dotted name, -> its host; such as "transformers.models.ViTModel"."""


def register_host(*models: type[nn.Module] | str) -> Callable[[Registered], Registered]:
    """Class decorator on a `Host` or a `StagedHost`: `sieve()` opens models of these classes with it.

    Classes are matched exactly, since a subclass may compute anything: name each one that the host opens. Of two hosts
    for one class the later counts, so that a host of your own may take the place of a built-in one.

    Args:
        models: classes; or, for a library that need not be installed, text "module.Class": a class of that name,
            defined in that module or in one below it.

    Raises:
        UnsupportedHost: what is decorated is no host, or lacks a part of one; what it is registered for is no class of
            models.
    """
    for model in models:
        by_path = isinstance(model, str) and "." in model
        if not by_path and not (isinstance(model, type) and issubclass(model, nn.Module)):
            given = model.__name__ if isinstance(model, type) else repr(model)
            raise UnsupportedHost(
                f"register_host() is given classes of models, or text such as 'library.module.Class', not {given}: "
                "write @register_host(ModelClass) above the class of the host."
            )
    if not models:
        raise UnsupportedHost("register_host() is given no class of models: write @register_host(ModelClass).")

    def register(host: Registered) -> Registered:
        if not (isinstance(host, type) and issubclass(host, Host | StagedHost)):
            raise UnsupportedHost(f"register_host() decorates a Host or a StagedHost, not {_name(host)}.")
        if inspect.isabstract(host):
            lacking = ", ".join(sorted(host.__abstractmethods__))
            raise UnsupportedHost(f"{_name(host)} lacks {lacking}, without which it is no host: write it first.")
        HOSTS.update(dict.fromkeys(models, host))
        return host

    return register


def host_for(kind: type[nn.Module]) -> Opener | None:
    """The host that is registered for a class, or None."""
    if kind in HOSTS:
        return HOSTS[kind]
    module = kind.__module__
    while module:
        if (host := HOSTS.get(f"{module}.{kind.__name__}")) is not None:
            return host
        module = module.rpartition(".")[0]
    return None


def stated_input(module: nn.Module) -> InputSpec | None:
    """The input that the host of a model, or of a sieved one, states; None where it leaves that to the model."""
    kind = host_for(type(module))
    if kind is not None:
        return None if _leaves_it(kind) else kind.opened(module).input_spec
    host = getattr(module, "host", None)  # a sieved model's
    return host.input_spec if isinstance(host, Host | StagedHost) and not _leaves_it(type(host)) else None


def _leaves_it(kind: Opener) -> bool:
    return kind.input_spec in (Host.input_spec, StagedHost.input_spec)


SPEC_PROVIDERS.append(stated_input)


def complete(host: Host | StagedHost) -> Host | StagedHost:
    """The host, if it has everything that its contract requires.

    Raises:
        UnsupportedHost: it does not.
    """
    contract = Host if isinstance(host, Host) else StagedHost
    lacking = [name for name in contract.__annotations__ if not hasattr(host, name)]
    if lacking:
        raise UnsupportedHost(
            f"{_name(type(host))} does not say {', '.join(lacking)}: set it in its class or in its __init__."
        )
    return host


def _name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__
