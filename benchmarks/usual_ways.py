"""The usual ways to get a label out of a small language model, against smolcls: same model, same texts, same run.

smolcls answers through ONNX Runtime, in eight bit, and through llama.cpp, on the file that the others get, too:

    python benchmarks/usual_ways.py rows.jsonl --limit 200 --ollama 127.0.0.1:11434 --merged runs/support/merged

- llama-cpp-python's chat completion with a grammar of the labels: the model writes one of them;
- its completion with log-probabilities: the first token decides (`logits_all`, which they need);
- with --ollama, that client's chat with a schema, on a model of its own there that is removed at the end;
- with --merged, transformers' text-generation pipeline on the merged weights, which are not quantised.

The binding gets as many threads as smolcls, the same frame around the text, and keeps the beginning that prompts share
in its cache, as it does by itself. Twenty texts are asked by one way and then by the next.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ask_ollama import Answer, Way, ask_all, report, scored, written

from smolcls import Task, build, native, prompt, publish
from smolcls.backends.llamacpp import LlamaCppClassifier
from smolcls.backends.onnx import OnnxClassifier
from smolcls.bench.machine import machine
from smolcls.data.tables import read_table
from smolcls.export import modelfile
from smolcls.task import as_task

LISTED = 20  # log-probabilities that a completion is asked for
LONGEST = 32  # tokens that a model may write, where nothing else ends it


@dataclass(frozen=True)
class Setting:
    """What every way is given: the task, the GGUF file, and the threads."""

    task: Task
    model: Path
    threads: int

    def llama(self, **options: Any) -> Any:
        """The binding's own object on the file."""
        return native.llama().Llama(
            str(self.model),
            n_ctx=modelfile.context(self.task),
            n_threads=self.threads,
            n_threads_batch=self.threads,
            verbose=False,
            **options,
        )

    def messages(self, text: str) -> list[dict[str, str]]:
        """The frame of smolcls as a chat."""
        return [{"role": "system", "content": prompt.system_message(self.task)}, {"role": "user", "content": text}]


def grammar(setting: Setting) -> Way:
    """llama-cpp-python: a chat completion that can only be a label."""
    model = setting.llama()
    labels = " | ".join(json.dumps(name) for name in setting.task.names)
    rule = native.llama().LlamaGrammar.from_string(f"root ::= {labels}", verbose=False)

    def ask(text: str) -> Answer:
        answer = model.create_chat_completion(
            setting.messages(text), grammar=rule, temperature=0.0, max_tokens=LONGEST
        )  # fmt: skip
        return str(answer["choices"][0]["message"]["content"]), {}

    return ask


def logprobs(setting: Setting) -> Way:
    """llama-cpp-python: one token with the likeliest ones' log-probabilities; labels share what they begin with."""
    model = setting.llama(logits_all=True)

    def ask(text: str) -> Answer:
        whole = str(prompt.render(setting.task, text))
        answer = model.create_completion(whole, max_tokens=1, logprobs=LISTED, temperature=0.0)
        listed = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        return max(setting.task.names, key=lambda name: likeliest(name, listed)), {}

    return ask


def likeliest(label: str, listed: dict[str, float]) -> float:
    """The largest log-probability of a token that the label begins with."""
    return max((value for token, value in listed.items() if token and label.startswith(token)), default=float("-inf"))


def pipeline(setting: Setting, folder: Path) -> Way:
    """transformers: text generation on the CPU, as its documentation shows it."""
    from transformers import pipeline as make

    model = make("text-generation", model=str(folder), device="cpu")

    def ask(text: str) -> Answer:
        [answer] = model(setting.messages(text), max_new_tokens=LONGEST, do_sample=False, return_full_text=False)
        return str(answer["generated_text"]).strip(), {}

    return ask


@contextlib.contextmanager
def ollama_chat(setting: Setting, host: str) -> Iterator[dict[str, Way]]:
    """Ollama: a chat with a schema, on the same file."""
    name = f"smolcls-benchmark-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / build.MODELFILE
        modelfile.write(setting.task, str(setting.model.resolve()), file)
        publish.create(name, file, host=host)
    try:
        kind = "client chat, schema"
        yield {f"ollama {kind}": written(name, setting.task.names, host)[kind]}
    finally:
        publish.remove(name, host=host)


def main() -> None:
    """Ask by every way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="labelled rows: JSONL, CSV or Parquet")
    parser.add_argument("--limit", type=int, default=200, help="how many of its first rows")
    parser.add_argument("--model", type=Path, help="a GGUF file; else the embedded model")
    parser.add_argument("--onnx", type=Path, help="the same model as an ONNX file; else the embedded model")
    parser.add_argument("--task", help="the task's name or file; else three-type")
    parser.add_argument("--ollama", metavar="HOST", help="a server, such as 127.0.0.1:11434")
    parser.add_argument("--merged", type=Path, help="a folder of merged weights that transformers loads")
    given = parser.parse_args()
    rows = read_table(given.rows)[: given.limit]
    task = as_task(given.task)
    setting = Setting(task, given.model or build.build(task).model, native.cores())
    fast = given.onnx or build.build(task, format=build.ONNX).model
    with contextlib.ExitStack() as stack:
        ways = {
            "smolcls onnx": scored(stack.enter_context(OnnxClassifier(fast, task=task))),
            "smolcls llamacpp": scored(stack.enter_context(LlamaCppClassifier(setting.model, task=task))),
            "llama-cpp-python grammar": grammar(setting),
        }
        ways["llama-cpp-python logprobs"] = logprobs(setting)
        if given.ollama is not None:
            ways |= stack.enter_context(ollama_chat(setting, given.ollama))
        if given.merged is not None:
            ways["transformers pipeline"] = pipeline(setting, given.merged)
        answers, seconds = ask_all(ways, [row.text for row in rows])
    print(json.dumps({**machine(), "model": setting.model.name, "rows": len(rows)}))
    report(answers, seconds, [row.label for row in rows])


if __name__ == "__main__":
    main()
