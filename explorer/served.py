"""What MLflow runs of a registered network: it copies this file into the model and executes it.

The weights are safetensors and the network is rebuilt from its description: nothing is unpickled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from explorer.networks import load_network

ARTIFACT = "network"  # the exported folder


class ServedNetwork(PythonModel):
    """An exported network: float32 (B, C, *spatial) to its outputs, on the CPU."""

    def load_context(self, context: Any) -> None:
        self.network = load_network(context.artifacts[ARTIFACT])

    # MLflow takes hints of arguments for a schema
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        inputs = torch.from_numpy(np.ascontiguousarray(model_input, dtype=np.float32))
        with torch.inference_mode():
            return self.network(inputs).numpy()


set_model(ServedNetwork())
