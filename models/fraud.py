"""The fraud model: a small network in plain PyTorch.

`python -m models.fraud fit` fits it on simulated history and writes its weights beside this file;
`python -m models.fraud evaluate --file FILE` judges weights on recorded payments.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from app.errors import ConfigError
from app.event import Columns
from models.fraud_signals import INPUTS, SIGNALS, signals

WEIGHTS = Path(__file__).with_suffix(".safetensors")


class FraudNetwork(nn.Module):
    """From signals, float32 (rows, SIGNALS), to the logit of fraud, float32 (rows,). Standardises by itself."""

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(SIGNALS))
        self.register_buffer("scale", torch.ones(SIGNALS))
        self.layers = nn.Sequential(
            nn.Linear(SIGNALS, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, raw: Tensor) -> Tensor:
        logits: Tensor = self.layers((raw - self.mean) / self.scale)
        return logits.squeeze(1)


class FraudModel:
    """A network ready to score on a device; `version` names its weights."""

    inputs = INPUTS
    outputs = ("risk",)

    def __init__(self, network: FraudNetwork, version: str, device: str = "cpu") -> None:
        self.network = network.to(device).eval()
        self.version = version
        self.device = device

    def predict(self, columns: Columns) -> Columns:
        """From the columns INPUTS, n rows each, to `risk`: float32, n rows, the probability of fraud."""
        with torch.inference_mode():
            raw = torch.from_numpy(signals(columns)).to(self.device)
            return {"risk": torch.sigmoid(self.network(raw)).cpu().numpy()}


def fit(
    columns: Columns,
    fraud: npt.NDArray[np.bool_],
    *,
    seed: int = 0,
    epochs: int = 12,
    batch_rows: int = 2_048,
    peak_rate: float = 6e-3,
) -> FraudNetwork:
    """Fits a network to payments and their labels: the same for the same arguments on the same machine."""
    torch.manual_seed(seed)
    network = FraudNetwork()
    raw, labels = torch.from_numpy(signals(columns)), torch.from_numpy(fraud.astype(np.float32))
    network.mean.copy_(raw.mean(dim=0))
    network.scale.copy_(raw.std(dim=0) + 1e-6)
    optimizer = torch.optim.Adam(network.parameters())
    steps = epochs * -(-len(labels) // batch_rows)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps)
    with tqdm(total=steps, desc="fit", unit="batch") as progress:
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(labels)), batch_rows):
                loss = nn.functional.binary_cross_entropy_with_logits(network(raw[rows]), labels[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                rate.step()
                progress.update()
    return network


def save(network: FraudNetwork, path: Path, card: Mapping[str, Any]) -> str:
    """Writes the weights to `path` and the card beside them as .json; returns the version, a hash of the weights."""
    weights = safetensors.torch.save(network.state_dict())
    version = _version(weights)
    described = {"version": version, "inputs": INPUTS, "outputs": FraudModel.outputs, **card}
    path.write_bytes(weights)
    path.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    return version


def load(path: Path, device: str = "cpu") -> FraudModel:
    """Reads the weights that `save` wrote.

    Raises ConfigError when they are of another network, OSError when they cannot be read.
    """
    weights = path.read_bytes()
    try:
        tensors = safetensors.torch.load(weights)
        network = FraudNetwork(hidden=len(tensors["layers.0.bias"]))
        network.load_state_dict(tensors)
    except (safetensors.SafetensorError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{path} holds no weights of this network ({error}); write them with python -m models.fraud fit"
        ) from error
    return FraudModel(network, _version(weights), device)


def _version(weights: bytes) -> str:
    return hashlib.sha256(weights).hexdigest()[:8]


if __name__ == "__main__":
    from models.fraud_command import main

    main()
