"""What it costs to adapt to a domain at test time: HyDA in one pass, TENT by gradient steps."""

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from explorer.models import build_trainable, image_size
from explorer.specs import load_spec

METHODS = ("erm", "hyda", "tent")
BATCH_SIZES = (1, 8)
NUM_ROUNDS = 3
NUM_CALLS = {"erm": 8, "hyda": 8, "tent": 1}  # of a round and an image
MOST, LEAST = 1.5, 3.0  # HyDA's time to ERM's, TENT's to HyDA's


def measure() -> dict[str, list[dict[str, Any]]]:
    """DenseNet121 at 224 px with the preset `hyda-cxr`: time per image of ERM, HyDA and TENT."""
    torch.set_num_threads(1)
    return {"adapting": [row(size) for size in BATCH_SIZES]}


def row(batch_size: int) -> dict[str, Any]:
    spec = load_spec("hyda-cxr", [f"generalization.tent.batch_size={batch_size}"])
    trainables = {name: build_trainable(spec, name) for name in METHODS}
    networks: dict[str, nn.Module] = {}
    for name, trainable in trainables.items():
        conditioning = trainable.always_asked[0] if trainable.always_asked else {}
        networks[name] = trainable.materialize(trainable.build(0).eval(), conditioning)
    images = torch.rand(batch_size, 1, *image_size(spec), generator=torch.Generator())
    truth = torch.zeros(batch_size, 6)

    def per_image(name: str) -> float:
        start = time.perf_counter()
        for _ in range(NUM_CALLS[name]):
            with torch.inference_mode():
                trainables[name].evaluate(networks[name], images, truth)
        return (time.perf_counter() - start) / NUM_CALLS[name] / batch_size

    for name in METHODS:
        per_image(name)
    rounds = np.array([[per_image(name) for name in METHODS] for _ in range(NUM_ROUNDS)])
    erm, hyda, tent = 1e3 * np.median(rounds, axis=0)
    hyda_to_erm = np.median(rounds[:, 1] / rounds[:, 0])
    tent_to_hyda = np.median(rounds[:, 2] / rounds[:, 1])
    macs = {name: trainable.costs({})["macs"] for name, trainable in trainables.items()}
    return {
        "batch": batch_size,
        "num_threads": 1,
        "erm_ms": round(float(erm), 1),
        "hyda_ms": round(float(hyda), 1),
        "tent_ms": round(float(tent), 1),
        "hyda_to_erm": round(float(hyda_to_erm), 2),
        "at_most": MOST,
        "tent_to_hyda": round(float(tent_to_hyda), 1),
        "at_least": LEAST,
        "macs_hyda_to_erm": round(macs["hyda"] / macs["erm"], 3),
        "macs_tent_to_hyda": round(macs["tent"] / macs["hyda"], 1),
        "gradient_steps": spec.generalization.tent.num_steps,
        "is_met": bool(hyda_to_erm <= MOST and tent_to_hyda >= LEAST),
        "rounds": (1e3 * rounds).round(1).tolist(),
    }
