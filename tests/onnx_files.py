"""ONNX files that smolcls wrote, taken to pieces: with products in float32, with other contents, and run by hand."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper


def in_float(path: Path, target: Path) -> Path:
    """Write the same graph with every eight-bit product computed in float32, from the same eight-bit weights.

    What is left then between it and any other way of computing the model is the noise of float32.
    """

    def change(model: Any) -> None:
        graph = model.graph
        constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        makers = {node.output[0]: node for node in graph.node}
        nodes = []
        for node in graph.node:
            if node.op_type == "DynamicQuantizeMatMul":
                flow, weight, scale = node.input
            elif node.op_type == "MatMulIntegerToFloat":
                flow, weight, scale = makers[node.input[0]].input[0], node.input[1], node.input[3]
            else:
                nodes.append(node)
                continue
            whole = (constants[weight] * constants[scale]).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(whole, f"{weight}.float"))
            nodes.append(helper.make_node("MatMul", [flow, f"{weight}.float"], list(node.output)))
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [item for item in graph.initializer if item.name in used]  # ONNX Runtime warns of the others
        del graph.initializer[:]
        graph.initializer.extend(kept)

    return edited(path, target, change)


def edited(path: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """Write a copy of a file whose `onnx.ModelProto` is changed in place."""
    model = onnx.load(str(path))
    change(model)
    onnx.save(model, str(target))
    return target


def with_metadata(path: Path, target: Path, **changes: str | None) -> Path:
    """Write a copy of a file with other metadata; None leaves an entry out."""

    def change(model: Any) -> None:
        found = {item.key: item.value for item in model.metadata_props} | changes
        del model.metadata_props[:]
        helper.set_model_props(model, {key: value for key, value in found.items() if value is not None})

    return edited(path, target, change)


def constants(path: Path) -> dict[str, Any]:
    """The constants of a file by their names."""
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(str(path)).graph.initializer}


class ByHand:
    """A file run without smolcls: from the second token of a chat on, with no past but the first token's."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums on every processor
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        inputs = [item for item in self._session.get_inputs() if item.name.startswith("past.")]
        stored = np.frombuffer(base64.b64decode(self.metadata["first_past"]), np.float32)
        #: The first token's keys and values, of shape (1, kv heads, 1, head size) each.
        self.first_past = {
            item.name: part.reshape(1, item.shape[1], 1, item.shape[3])
            for item, part in zip(inputs, np.split(stored, len(inputs)), strict=True)
        }

    def logits(self, tokens: list[int], candidates: list[int]) -> Any:
        """The candidates' logits after every token but the first, shape (tokens - 1, candidates)."""
        assert tokens[0] == int(self.metadata["first_token"])
        rest = tokens[1:]
        feed = {
            "tokens": np.array([rest]),
            "positions": np.arange(1, len(tokens))[None],
            "bias": np.zeros((1, 1, len(rest), len(tokens)), np.float32),
            "rows": np.arange(len(rest)),
            "candidates": np.array(candidates),
        }
        [found] = self._session.run(["logits"], feed | self.first_past)
        return found[0]
