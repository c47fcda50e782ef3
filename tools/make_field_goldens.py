"""Writes what deepctr-torch's models of fields compute, for small random weights and records, with all gradients.

    python tools/make_field_goldens.py

Needs the extras `parity` and `field-parity`, which `make parity` installs. Each case is one file,
`tests/goldens/fields_NAME.npz`: `levels` [records, fields], `weights/` as PyTorch names them, `logits` [records], and
`gradients/` of sum(logits * cotangent) by each weight.
"""

from pathlib import Path

import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import AutoInt, DeepFM

FOLDER = Path(__file__).parent.parent / "tests" / "goldens"
LEVELS, WIDTH, DEEP = (5, 3, 7), 4, (6, 5)
FEATURES = [SparseFeat(f"f{number}", levels, WIDTH) for number, levels in enumerate(LEVELS)]
CASES = {
    "fm": lambda: DeepFM(FEATURES, FEATURES, dnn_hidden_units=()),
    "deepfm": lambda: DeepFM(FEATURES, FEATURES, dnn_hidden_units=DEEP),
    "autoint": lambda: AutoInt(FEATURES, FEATURES, att_layer_num=2, dnn_hidden_units=()),
    "autoint_plus": lambda: AutoInt(FEATURES, FEATURES, att_layer_num=2, dnn_hidden_units=DEEP),
}


def case(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """The model's logits for drawn weights and records."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(0.5 * rng.standard_normal(parameter.shape, np.float32)))
    levels = np.stack([rng.integers(number, size=8) for number in LEVELS], axis=1)
    cotangent = rng.standard_normal(8, np.float32)
    probabilities = model(torch.from_numpy(levels.astype(np.float32)))[:, 0]
    logits = torch.logit(probabilities)
    (logits * torch.from_numpy(cotangent)).sum().backward()
    arrays = {"levels": levels.astype(np.int32), "logits": logits.detach().numpy(), "cotangent": cotangent}
    for name, parameter in model.named_parameters():
        arrays[f"weights/{name}"] = parameter.detach().numpy()
        arrays[f"gradients/{name}"] = np.zeros(0) if parameter.grad is None else parameter.grad.numpy()
    return arrays


def main() -> None:
    """Writes every case."""
    for seed, (name, build) in enumerate(CASES.items()):
        np.savez(FOLDER / f"fields_{name}.npz", **case(build(), seed))


if __name__ == "__main__":
    main()
