"""Networks with random weights and random BatchNorm statistics, as a trained network has them."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tokensieve import zoo


def shake(model: nn.Module) -> nn.Module:
    """Give every BatchNorm values other than the initial 0 and 1, such that activations stay in range."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.3, 0.8)
            nn.init.uniform_(module.bias, -0.2, 0.4)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.fixture
def shaken(monkeypatch):
    """shaken(name): the model, and from then on `zoo.create` gives copies of the same one."""
    original = zoo.create

    def make(name, **words):
        loaded = original(name, pretrained=False, **words)
        shake(loaded.model)
        state = {key: value.clone() for key, value in loaded.model.state_dict().items()}

        def create(name, **words):
            words.pop("pretrained", None)
            again = original(name, pretrained=False, **words)
            again.model.load_state_dict(state)
            return again

        monkeypatch.setattr(zoo, "create", create)
        return loaded.model

    return make


@pytest.fixture
def images():
    return torch.randn(2, 3, 96, 96)


class Tiny(nn.Module):
    """A ConvNet small enough for loops: convolution, ReLU, global average, linear."""

    def __init__(self, channels: int = 6, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=4, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels, classes)

    def forward(self, images):
        return self.fc(self.act(self.conv(images)).mean((2, 3)))


@pytest.fixture
def tiny():
    return Tiny().eval()
