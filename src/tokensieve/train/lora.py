"""Low-rank adapters (Hu et al., arXiv 2106.09685) of a host's linear layers, by peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import InputError, UnsupportedHost


class Adapter:
    """Adds adapters to a host, in place: only two small matrices in each linear layer are trainable.

    The classifier has no adapter. Before training the adapters do not change the outputs.

    Args:
        host: the model.
        rank: rank of the matrices.
        folder: folder to save them to after training, for `peft.PeftModel.from_pretrained(model, folder)`.

    Raises:
        InputError: peft is not installed.
        UnsupportedHost: the model has no `nn.Linear` layer except its classifier.
    """

    def __init__(self, host: nn.Module, rank: int, folder: Path) -> None:
        peft = need_peft()
        names = adaptable(host)
        if not names:
            raise UnsupportedHost(
                f"{type(host).__name__} has no linear layers for adapters: train all parameters, or norms."
            )
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, lora_dropout=0.0, bias="none")
        self.peft: Any = peft.get_peft_model(host, config)
        self.folder = folder

    def finish(self, trained: Any) -> dict[str, Tensor]:
        """Save the adapters of the sieved model `trained`, which may be the moving average.

        Returns the state dict of the host with the adapters merged into its weights.
        """
        merged = copy.deepcopy(self.peft)
        merged.base_model.model.load_state_dict(trained.model.state_dict())
        merged.save_pretrained(self.folder)
        return {key: value.detach().clone() for key, value in merged.merge_and_unload().state_dict().items()}


def adaptable(host: nn.Module) -> list[str]:
    """Names of the linear layers that get adapters: those of type exactly `nn.Linear`, without the classifier and
    without layers whose weight is read directly, such as the output layer of `nn.MultiheadAttention`."""
    heads = {"head", "heads", "classifier", "fc", "head_dist", "fc_norm"}
    return [name for name, part in host.named_modules() if type(part) is nn.Linear and name.split(".")[0] not in heads]


def need_peft() -> Any:
    """The module peft. Raises `InputError` if it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise InputError(
            f"Adapters need peft ({error.name} is not installed): pip install 'tokensieve[lora]', or train all "
            "parameters, or norms."
        ) from None
    return peft
