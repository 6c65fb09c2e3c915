"""The registry of hosts: which host class opens which model class."""

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
"""Model class, or its dotted name such as "transformers.models.ViTModel", -> host class."""


def register_host(*models: type[nn.Module] | str) -> Callable[[Registered], Registered]:
    """Class decorator on a `Host` or a `StagedHost`: `sieve()` opens models of these classes with it.

    Classes are matched exactly, since a subclass may compute something else: list each class that the host opens. If a
    class is registered twice the later host is used, so your own host can replace a built-in one.

    Args:
        models: model classes; or, for a library that may not be installed, strings "module.Class": a class of that
            name, defined in that module or in a submodule of it.

    Raises:
        UnsupportedHost: the decorated class is not a host or lacks a method of one; an entry of `models` is not a
            model class.
    """
    for model in models:
        by_path = isinstance(model, str) and "." in model
        if not by_path and not (isinstance(model, type) and issubclass(model, nn.Module)):
            description = model.__name__ if isinstance(model, type) else repr(model)
            raise UnsupportedHost(
                f"register_host() takes model classes, or strings such as 'library.module.Class', not {description}: "
                "write @register_host(ModelClass) above the class of the host."
            )
    if not models:
        raise UnsupportedHost("register_host() got no model class: write @register_host(ModelClass).")

    def register(host: Registered) -> Registered:
        if not (isinstance(host, type) and issubclass(host, Host | StagedHost)):
            raise UnsupportedHost(f"register_host() decorates a Host or a StagedHost, not {_name(host)}.")
        if inspect.isabstract(host):
            lacking = ", ".join(sorted(host.__abstractmethods__))
            raise UnsupportedHost(f"{_name(host)} lacks {lacking}, which every host must have: add it to the class.")
        HOSTS.update(dict.fromkeys(models, host))
        return host

    return register


def host_for(kind: type[nn.Module]) -> Opener | None:
    """The host class registered for a model class, or None."""
    if kind in HOSTS:
        return HOSTS[kind]
    module = kind.__module__
    while module:
        if (host := HOSTS.get(f"{module}.{kind.__name__}")) is not None:
            return host
        module = module.rpartition(".")[0]
    return None


def stated_input(module: nn.Module) -> InputSpec | None:
    """The input that the host of a model, or of a sieved model, defines itself; None if it uses the model's config."""
    host_class = host_for(type(module))
    if host_class is not None:
        return host_class.opened(module).input_spec if _overrides_input_spec(host_class) else None
    host = getattr(module, "host", None)  # set if `module` is a sieved model
    return host.input_spec if isinstance(host, Host | StagedHost) and _overrides_input_spec(type(host)) else None


def _overrides_input_spec(host_class: Opener) -> bool:
    return host_class.input_spec not in (Host.input_spec, StagedHost.input_spec)


SPEC_PROVIDERS.append(stated_input)


def complete(host: Host | StagedHost) -> Host | StagedHost:
    """Return the host, if it has all attributes that its base class declares.

    Raises:
        UnsupportedHost: an attribute is missing.
    """
    contract = Host if isinstance(host, Host) else StagedHost
    lacking = [name for name in contract.__annotations__ if not hasattr(host, name)]
    if lacking:
        raise UnsupportedHost(
            f"{_name(type(host))} does not set {', '.join(lacking)}: set it in the class or in its __init__."
        )
    return host


def _name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__
