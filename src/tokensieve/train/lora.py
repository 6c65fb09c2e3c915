"""Low-rank adapters (Hu et al., arXiv 2106.09685) of a host's linear layers, by peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import InputError, UnsupportedHost


class Adapter:
    """Adapters in a host, which is changed in place: its linear layers get two small matrices each, which alone learn.

    The classifier has none. An adapter begins as nothing: the answers are as before.

    Args:
        host: the model.
        rank: of the matrices.
        folder: where they are written when they have learnt, for `peft.PeftModel.from_pretrained(model, folder)`.

    Raises:
        InputError: peft is not installed.
        UnsupportedHost: the model has no linear layer of torch's own beside its classifier.
    """

    def __init__(self, host: nn.Module, rank: int, folder: Path) -> None:
        peft = need_peft()
        names = adaptable(host)
        if not names:
            raise UnsupportedHost(
                f"{type(host).__name__} has no linear layers that adapters fit: let all parameters learn, or norms."
            )
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, lora_dropout=0.0, bias="none")
        self.peft: Any = peft.get_peft_model(host, config)
        self.folder = folder

    def finish(self, learnt: Any) -> dict[str, Tensor]:
        """Write the adapters of the sieved model `learnt`, which may be the moving average, and give the state dict of
        the host without adapters, what they say added to it."""
        whole = copy.deepcopy(self.peft)
        whole.base_model.model.load_state_dict(learnt.model.state_dict())
        whole.save_pretrained(self.folder)
        return {key: value.detach().clone() for key, value in whole.merge_and_unload().state_dict().items()}


def adaptable(host: nn.Module) -> list[str]:
    """The names of linear layers that adapters fit: torch's own class, no classifier, none whose weight is read from
    outside (the output layer of `nn.MultiheadAttention` is of another class)."""
    heads = {"head", "heads", "classifier", "fc", "head_dist", "fc_norm"}
    return [name for name, part in host.named_modules() if type(part) is nn.Linear and name.split(".")[0] not in heads]


def need_peft() -> Any:
    """The module peft; raises InputError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise InputError(
            f"Adapters need peft ({error.name} is not here): pip install 'tokensieve[lora]', or heal all parameters, "
            "or norms."
        ) from None
    return peft
