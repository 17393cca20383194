"""An ONNX file of a GGUF in F16: eight-bit weights and activations, for ONNX Runtime on CPUs.

Weights are whole numbers of eight bit with a scale for each output; activations become such numbers as they come. What
goes into a block is quantised as a whole, for its norm has evened it out; what comes out of attention and gate is
quantised token by token, for single values stand out there and would leave the others no steps.

The first token of a chat draws nearly all attention to itself, with values so large that eight bit spoil them, and it
is always the same one. Its keys and values are computed here, in float32, and written into the file (Xiao et al. 2024,
"Efficient Streaming Language Models with Attention Sinks", has the observation).

The graph's inputs are the tokens that follow a past, their positions, a bias for each pair of token and place, the rows
to be answered, and the candidate tokens; its output are the candidates' logits at these rows. The tokenizer, and what
else the file has to say, stand in its metadata.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smolcls import prompt
from smolcls.errors import ModelError, require
from smolcls.export.gguf import GgufSource
from smolcls.export.llama import hf_name
from smolcls.export.onnx_format import FORMAT, PAST_TYPE, past_names, present
from smolcls.export.quantize import INT8
from smolcls.files import replacing

_OPSET, _RUNTIME = 18, "com.microsoft"
_LARGEST = 2**31 - 2**24  # what protobuf bears, less what is no weight
_MOST_POSITIONS = 8192  # of the tables of the rotation; a longer context is cut to it
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # gguf.TokenType

Array = npt.NDArray[np.float32]


def write(source: GgufSource, path: Path, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the ONNX file of a GGUF source, whole or not at all.

    Args:
        progress: called with (layers written, layers in all) after each one.

    Raises:
        MissingExtraError: onnx or tokenizers is not installed.
        ModelError: the model is too large for one file, or has what this graph cannot say.
    """
    onnx = require("onnx", extra="onnx", purpose="Building an ONNX model")
    graph = _Graph(onnx, source, progress or (lambda *_: None))
    with replacing(path) as temporary:
        onnx.save(graph.model(), str(temporary))


class _Graph:
    """The nodes and constants of one model, written front to back."""

    def __init__(self, onnx: Any, source: GgufSource, progress: Callable[[int, int], None]) -> None:
        self._onnx, self._source, self._progress = onnx, source, progress
        self._weights = {hf_name(item.name).removeprefix("model."): item for item in source.tensors()}
        self._size = sum(int(np.prod(item.shape)) for item in self._weights.values())
        if self._size > _LARGEST:
            raise ModelError(
                f"A model of {self._size / 1e9:.1f} billion weights is too large for an ONNX file, which holds 2 GB at "
                "most; use the llamacpp backend for it."
            )
        scaling = source.value("llama.rope.scaling.type")
        if scaling not in (None, "none"):
            raise ModelError(
                f"The model has the rope scaling {scaling!r}; an ONNX model has none. Use the llamacpp backend for it."
            )
        self._epsilon = source.number("llama.attention.layer_norm_rms_epsilon")
        self._width = int(source.number("llama.embedding_length"))
        self._head = int(source.number("llama.attention.key_length", self._width / source.heads))
        self._context = min(int(source.number("llama.context_length")), _MOST_POSITIONS)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._named: set[str] = set()

    def model(self) -> Any:
        """The whole model."""
        helper, source = self._onnx.helper, self._source
        tokenizer = tokenizer_of(source)
        first = tokenizer.token_to_id(prompt.START_OF_TURN)
        if first is None:
            raise ModelError(f"The model's vocabulary has no token {prompt.START_OF_TURN}; smolcls needs ChatML's.")
        past = self._write(first)
        metadata = {
            "format": FORMAT, "description": f"llama {self._size / 1e6:.0f}M {INT8}",
            "tokenizer": tokenizer.to_str(), "first_token": str(first),
            "first_past": base64.b64encode(past.astype(PAST_TYPE).tobytes()).decode(), "context": str(self._context),
        }  # fmt: skip
        number, whole = self._onnx.TensorProto.FLOAT, self._onnx.TensorProto.INT64
        value = helper.make_tensor_value_info
        inputs = [
            value("tokens", whole, [1, "new"]), value("positions", whole, [1, "new"]),
            value("bias", number, [1, 1, "new", "all"]), value("rows", whole, ["rows"]),
            value("candidates", whole, ["candidates"]),
        ]  # fmt: skip
        outputs = [value("logits", number, [1, "rows", "candidates"])]
        for name in past_names(source.layers):
            inputs.append(value(name, number, [1, source.kv_heads, "past", self._head]))
            outputs.append(value(present(name), number, [1, source.kv_heads, "all", self._head]))
        graph = helper.make_graph(self._nodes, "smolcls", inputs, outputs, self._constants)
        versions = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_RUNTIME, 1)]
        made = helper.make_model(graph, opset_imports=versions, ir_version=9, producer_name="smolcls")
        helper.set_model_props(made, metadata)
        return made

    def _write(self, first: int) -> Array:
        """Write all nodes; the keys and values of the first token, shape (2 · layers, kv heads, head size)."""
        self._inputs_of_attention()
        self._constant("step", np.float32(1 / 127))
        self._constant("middle", np.uint8(128))
        self._constant("least", np.float32(1e-9))
        self._constant("width", np.array([-1]))
        embedding = self._read("embed_tokens")
        flow = embedding[first]
        self._table("embed_tokens", embedding)
        state = self._look_up("embed_tokens", "tokens", "embedded")
        normed = self._op(
            "SimplifiedLayerNormalization", [state, self._norm("layers.0.input_layernorm")], "normed",
            axis=-1, epsilon=self._epsilon,
        )  # fmt: skip
        past = []
        for layer in range(self._source.layers):
            try:
                *pair, flow = self._flow(f"layers.{layer}.", flow)
            except ValueError as error:  # numpy's, for shapes; what fits here fits in the graph
                raise ModelError(f"The model's tensors of layer {layer} do not fit together: {error}.") from error
            past += pair
            state, normed = self._layer(layer, state, normed)
            self._progress(layer + 1, self._source.layers)
        head = "lm_head" if "lm_head" in self._weights else "embed_tokens"
        if head == "lm_head":
            self._table(head, self._read(head))
        likely = self._op("Transpose", [self._look_up(head, "candidates", "candidate")], "columns", perm=[1, 0])
        self._op("MatMul", [normed, likely], "logits")
        return np.stack(past)

    def _inputs_of_attention(self) -> None:
        """Tables of the rotation (Su et al. 2021), and how many tokens there are with the past."""
        theta = self._source.number("llama.rope.freq_base", 10000.0)
        angles = np.outer(np.arange(self._context), theta ** -(np.arange(0, self._head, 2) / self._head))
        self._constant("cosines", np.cos(angles).astype(np.float32))
        self._constant("sines", np.sin(angles).astype(np.float32))
        lengths = self._op("Shape", ["bias"], "lengths")
        length = self._op("Gather", [lengths, self._constant("last_axis", np.array(3))], "length", axis=0)
        self._op("Cast", [length], "total", to=self._onnx.TensorProto.INT32)
        before = self._op("Sub", ["total", self._constant("one", np.int32(1))], "before")
        self._op("Reshape", [before, self._constant("vector", np.array([1]))], "last_place")

    def _layer(self, layer: int, state: str, normed: str) -> tuple[str, str]:
        """Attention and the gated block; the residual stream behind them, and it normed for the next layer."""
        name, last = f"layers.{layer}.", layer == self._source.layers - 1
        joined = np.concatenate([self._read(f"{name}self_attn.{part}_proj") for part in "qkv"])
        keys, values = f"past.{layer}.key", f"past.{layer}.value"
        attended = self._op(
            "GroupQueryAttention",
            [
                self._whole(f"{name}qkv", joined, normed), "", "", keys, values, "last_place", "total",
                "cosines", "sines", "positions", "bias",
            ],
            [f"{name}attended", present(keys), present(values)],
            num_heads=self._source.heads, kv_num_heads=self._source.kv_heads, do_rotary=1,
            scale=float(self._head**-0.5),
        )  # fmt: skip
        if last:  # from here on only what is asked for
            attended = self._op("Gather", [attended, "rows"], f"{name}attended.rows", axis=1)
            state = self._op("Gather", [state, "rows"], f"{name}rows", axis=1)
        out = self._by_token(f"{name}self_attn.o_proj", attended)
        normed, state = self._add(f"{name}post_attention_layernorm", out, state)
        gate, up = (
            self._whole(f"{name}mlp.{part}_proj", self._read(f"{name}mlp.{part}_proj"), normed)
            for part in ("gate", "up")
        )
        gated = self._op("Mul", [self._op("QuickGelu", [gate], f"{name}silu", alpha=1.0), up], f"{name}gated")
        out = self._by_token(f"{name}mlp.down_proj", gated)
        normed, state = self._add("norm" if last else f"layers.{layer + 1}.input_layernorm", out, state)
        return state, normed

    def _add(self, norm: str, out: str, state: str) -> tuple[str, str]:
        """Add to the residual stream and norm it: (normed, stream)."""
        names = [f"{norm}.normed", "", "", f"{norm}.stream"]
        self._op("SkipSimplifiedLayerNormalization", [out, state, self._norm(norm)], names, epsilon=self._epsilon)
        return names[0], names[3]

    def _whole(self, name: str, weight: Array, flow: str) -> str:
        """A product whose left side is quantised with one scale."""
        columns, scales = self._quantised(name, weight)
        return self._op("DynamicQuantizeMatMul", [flow, columns, scales], f"{name}.out")

    def _by_token(self, name: str, flow: str) -> str:
        """A product whose left side is quantised with a scale for each token, the token's largest value being 127."""
        columns, scales = self._quantised(name, self._read(name))
        largest = self._op("ReduceMax", [self._op("Abs", [flow], f"{name}.sizes"), "width"], f"{name}.max", keepdims=1)
        largest = self._op("Max", [largest, "least"], f"{name}.largest")
        steps = self._op("QuantizeLinear", [self._op("Div", [flow, largest], f"{name}.part"), "step", "middle"],
                         f"{name}.steps")  # fmt: skip
        product = self._op("MatMulIntegerToFloat", [steps, columns, "step", scales, "middle"], f"{name}.product")
        return self._op("Mul", [product, largest], f"{name}.out")

    def _quantised(self, name: str, weight: Array) -> tuple[str, str]:
        """A weight of shape (out, in) as whole numbers of shape (in, out), and a scale for each output."""
        numbers, scales = _rows_to_int8(weight)
        return self._constant(f"{name}.weight", numbers.T), self._constant(f"{name}.scale", scales)

    def _table(self, name: str, weight: Array) -> None:
        """Rows of the vocabulary, each with its scale."""
        numbers, scales = _rows_to_int8(weight)
        self._constant(f"{name}.weight", numbers)
        self._constant(f"{name}.scale", scales[:, None])

    def _look_up(self, table: str, tokens: str, name: str) -> str:
        numbers = self._op("Gather", [f"{table}.weight", tokens], f"{name}.numbers", axis=0)
        floats = self._op("Cast", [numbers], f"{name}.floats", to=self._onnx.TensorProto.FLOAT)
        return self._op("Mul", [floats, self._op("Gather", [f"{table}.scale", tokens], f"{name}.scales", axis=0)], name)

    def _flow(self, name: str, state: Array) -> tuple[Array, Array, Array]:
        """One token alone in a layer, in float32: its key, its value, and the residual stream behind it.

        Nothing is rotated at the first position, and attention to a single token is its value.
        """
        normed = self._rms(f"{name}input_layernorm", state)
        shape = (self._source.kv_heads, self._head)
        key, value = (
            (self._read(f"{name}self_attn.{part}_proj") @ normed).reshape(shape).astype(np.float32) for part in "kv"
        )
        attended = np.repeat(value, self._source.heads // self._source.kv_heads, axis=0).reshape(-1)
        state = state + self._read(f"{name}self_attn.o_proj") @ attended
        normed = self._rms(f"{name}post_attention_layernorm", state)
        gate, up = (self._read(f"{name}mlp.{part}_proj") @ normed for part in ("gate", "up"))
        with np.errstate(over="ignore"):  # exp() of a large number: the quotient is 0
            gated = gate / (1.0 + np.exp(-gate)) * up
        return key, value, state + self._read(f"{name}mlp.down_proj") @ gated

    def _rms(self, norm: str, state: Array) -> Array:
        scaled: Array = state / np.sqrt(np.mean(state * state) + self._epsilon) * self._read(norm)
        return scaled

    def _read(self, name: str) -> Array:
        if name not in self._weights:
            raise ModelError(f"The model lacks the tensor {name}.")
        return self._weights[name].read()

    def _norm(self, name: str) -> str:
        return self._constant(f"{name}.weight", self._read(name))

    def _constant(self, name: str, values: npt.NDArray[Any] | np.generic) -> str:
        if name not in self._named:
            self._named.add(name)
            self._constants.append(self._onnx.numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def _op(self, kind: str, inputs: list[str], outputs: str | list[str], **attributes: Any) -> str:
        names = [outputs] if isinstance(outputs, str) else outputs
        domain = _RUNTIME if kind in _OF_RUNTIME else ""
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, names, name=names[0], domain=domain, **attributes))
        return names[0]


#: Operators that are ONNX Runtime's own; the rest is ONNX's (SimplifiedLayerNormalization stands in its domain).
_OF_RUNTIME = {
    "DynamicQuantizeMatMul", "GroupQueryAttention", "MatMulIntegerToFloat", "QuickGelu",
    "SkipSimplifiedLayerNormalization",
}  # fmt: skip


def tokenizer_of(source: GgufSource) -> Any:
    """The vocabulary of a GGUF as a `tokenizers.Tokenizer`: byte-level BPE, with SmolLM2's or GPT-2's splitting.

    Raises:
        MissingExtraError: tokenizers is not installed.
        ModelError: the file's vocabulary is of another kind, or damaged.
    """
    library = require("tokenizers", extra="onnx", purpose="Building an ONNX model")
    kind, named = source.value("tokenizer.ggml.model"), source.value("tokenizer.ggml.pre")
    if kind != "gpt2" or named not in ("smollm", "gpt-2"):
        raise ModelError(
            f"The model's vocabulary is of the kind {kind!r} and split by {named!r}; an ONNX model can have byte-level "
            "BPE split as SmolLM2 or GPT-2 do. Use the llamacpp backend for others."
        )
    tokens, merges, kinds = (source.value(f"tokenizer.ggml.{part}") for part in ("tokens", "merges", "token_type"))
    try:
        pairs = [tuple(str(pair).split(" ")) for pair in merges]
        vocabulary = {token: index for index, token in enumerate(tokens) if kinds[index] != _UNUSED}
        made = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=pairs))
        added = {
            special: [library.AddedToken(token, normalized=False, special=special)
                      for token, kind in zip(tokens, kinds, strict=True) if kind == sought]
            for special, sought in ((True, _CONTROL), (False, _USER_DEFINED))
        }  # fmt: skip
    except Exception as error:  # what tokenizers raises for merges of unknown tokens has no class of its own
        raise ModelError(f"The model's vocabulary is damaged: {error}.") from error
    splitters = library.pre_tokenizers
    level = splitters.ByteLevel(add_prefix_space=False)
    digits = splitters.Digits(individual_digits=True)
    made.pre_tokenizer = splitters.Sequence([digits, level]) if named == "smollm" else level
    made.decoder = library.decoders.ByteLevel()
    made.add_special_tokens(added[True])
    made.add_tokens(added[False])
    return made


def _rows_to_int8(weight: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """Rows as whole numbers from -127 to 127, and what one is worth in each row."""
    scales = np.maximum(np.abs(weight).max(axis=1) / 127.0, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(weight / scales[:, None]), -127, 127).astype(np.int8), scales
