"""A large job on Ray Data, on one machine or a cluster: each worker holds a classifier and answers batches. Needs
`pip install "ray[data]"`; on one machine `smolcls classify --file … --out … --jobs N` does it without.

    SMOLCLS_CHAIN=rules@0.99,linear python examples/ray_data.py big.jsonl answers

The lines of big.jsonl hold the key "text"; the folder answers gets them with their label and confidence as JSON lines.
"""

import os
import sys
from typing import Any

import numpy as np
import ray.data

from smolcls.settings import router_from


class Classify:
    """Made once in each worker, so that a model is loaded once and not for each batch."""

    def __init__(self, chain: str) -> None:
        self.classifier = router_from(chain)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = self.classifier.classify_batch(batch["text"].tolist())
        batch["label"] = np.array([prediction.label for prediction in found], dtype=object)
        batch["confidence"] = np.array([prediction.confidence for prediction in found])
        return batch


if __name__ == "__main__":
    source, folder = sys.argv[1:]
    rows = ray.data.read_json(source, lines=True)
    # As many workers as there are cores. A model uses several by itself: give map_batches num_cpus=8, say.
    workers = ray.data.ActorPoolStrategy()
    chain = os.environ.get("SMOLCLS_CHAIN", "default")  # read here: workers elsewhere have an environment of their own
    rows.map_batches(Classify, fn_constructor_args=[chain], compute=workers, batch_size=1024).write_json(folder)
