"""Models in an Ollama server, over HTTP.

A request asks for one token after the raw prompt and for the log-probabilities of the 20 likeliest ones;
nothing that the model writes is read. Ollama takes them from the whole vocabulary before temperature
and sampling, so they are the model's own. Its template is not used either: the prompt comes from
`smolcls.prompt`, instruction first and text last, so that the server keeps the instruction's keys and
values from one request to the next.

The walk over the labels is in `_ollama_walk`, the client and its errors in `_ollama_http`.
"""

from __future__ import annotations

import importlib.util
import math
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

from smolcls import prompt
from smolcls.backends import _ollama_walk as walk
from smolcls.calibration import Calibration, log_softmax
from smolcls.classifier import Classifier, Scores
from smolcls.errors import BackendError, ConfigError, SmolclsError, pip_line, require
from smolcls.export import modelfile
from smolcls.task import Task, check_count

if TYPE_CHECKING:
    from ollama import GenerateResponse

    from smolcls.backends._ollama_http import Server

_TOP = 20  # the most that Ollama lists
_PING_TIMEOUT = 0.5
#: Log-probability by which the label of an unscored answer stands out: enough to be the largest, no more.
UNSCORED_LEAD = 1e-3

# A token that writes nothing (the end of the turn, a part of a character, the beginning of a stop text)
# makes Ollama leave the log-probabilities out if it is the one chosen. They do not depend on how it is
# chosen, so it is chosen anew, near enough at random from those 20 that such a token comes seldom.
_LIKELIEST: dict[str, Any] = {"temperature": 0}
_ANY_OF_TOP = tuple({"temperature": 1000, "top_k": _TOP, "top_p": 1, "min_p": 0, "seed": seed} for seed in (1, 2, 3, 4))


class OllamaClassifier(Classifier):
    """A model in an Ollama server (0.12.11 or later: the first that gives log-probabilities).

    Threads may share one instance. The model should be made for the task (`smolcls build`): one that was
    not seldom has the labels among its 20 likeliest tokens, and the answer is then nearly even, with a
    `label_mass` near 0. Labels should be written in characters that are whole tokens, as ASCII and most
    European letters are; Ollama shows no text for parts of a character.

    Args:
        model: the model's name in Ollama; None is the task's name.
        task: the task, its name or file; None is the shipped three-type task.
        calibration: a fitted temperature or its file.
        min_confidence: below this confidence the label is None.
        host: the server's address; None takes OLLAMA_HOST, else 127.0.0.1:11434. `http://name` without a
            port means 80, a bare name 11434. Proxies are not used for this machine's own addresses.
        timeout: seconds that one request may take. A text is one request where the labels' first tokens
            differ, else one more for each place where likely labels part. The first one loads the model.
        keep_alive: how long the server keeps the model loaded, in Ollama's terms ("30m", seconds, -1 for ever).
        allow_unscored: whether a server that gives no log-probabilities may answer with the label that the
            model writes. Its probability is then unknown: the label gets barely more than 1 / number of
            labels, which a threshold above that rejects, and `label_mass` is None.
        workers: requests sent at once for a batch.

    Raises:
        MissingExtraError: the package ollama is not installed.
        ConfigError: an argument is out of its range, or the host is no address.
    """

    name: ClassVar[str] = "ollama"

    def __init__(
        self,
        model: str | None = None,
        *,
        task: Task | str | Path | None = None,
        calibration: Calibration | str | Path | None = None,
        min_confidence: float = 0.0,
        host: str | None = None,
        timeout: float = 10.0,
        keep_alive: str | float = "30m",
        allow_unscored: bool = False,
        workers: int = 4,
    ) -> None:
        super().__init__(task=task, calibration=calibration, min_confidence=min_confidence)
        self.model = self.task.name if model is None else model
        _check(self.model, timeout, keep_alive, workers)
        self._settle_calibration(None)
        if allow_unscored and self.calibration is not None:
            raise ConfigError(
                "An unscored answer has no probability to calibrate. Leave out allow_unscored= or calibration=."
            )
        self.keep_alive, self.allow_unscored, self.workers = keep_alive, bool(allow_unscored), workers
        self._context = modelfile.context(self.task)
        require("ollama", extra="ollama", purpose="Asking an Ollama server")
        from smolcls.backends._ollama_http import Server

        self._server: Server | None = Server(host, float(timeout))

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None where the package is installed and a server answers within half a second."""
        if importlib.util.find_spec("ollama") is None:
            return f"ollama is not installed; {pip_line('ollama')}"
        try:
            require("ollama", extra="ollama", purpose="Asking an Ollama server")
            from smolcls.backends._ollama_http import Server

            server = Server(None, _PING_TIMEOUT)
            try:
                server.ping()
            finally:
                server.close()
        except SmolclsError as error:
            return str(error)
        return None

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """Score texts, `workers` requests at a time; the first failure ends the batch."""
        rendered = [prompt.render(self.task, text) for text in texts]
        return _concurrently(self._score, rendered, self.workers)

    def model_fingerprint(self) -> str:
        """The model's name in Ollama, whose files are the server's."""
        return self.model.removesuffix(":latest")

    def close(self) -> None:
        """Close the connections to the server; the model stays loaded there for `keep_alive`."""
        super().close()
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _score(self, rendered: prompt.Prompt) -> Scores:
        frame = str(rendered)

        def ask(begun: str, may_end: bool) -> list[walk.Token]:
            return self._likeliest(frame + begun, may_end)

        try:
            log_probabilities, mass = walk.score(self.task.names, ask)
        except _UnscoredError:
            if not self.allow_unscored:
                raise
            return Scores(self._written(frame), rendered.truncated)
        return Scores(log_probabilities, rendered.truncated, mass)

    def _likeliest(self, text: str, may_end: bool) -> list[walk.Token]:
        """The likeliest tokens after a prompt."""
        for choice in _ANY_OF_TOP if may_end else (_LIKELIEST, *_ANY_OF_TOP):
            answer = self._ask(text, {**choice, "num_predict": 1}, logprobs=True, top_logprobs=_TOP)
            if answer.logprobs:
                return self._tokens(answer)
            if answer.response:
                raise _UnscoredError(
                    f"Expected log-probabilities from {self._where()}; found an answer without them. They need Ollama "
                    "0.12.11 or later and a model that runs in the server itself: update Ollama, or take "
                    "allow_unscored=True for labels without a confidence."
                )
        raise BackendError(
            f"Expected a token with a text from {self._where()}; found none in {len(_ANY_OF_TOP)} tries. Check that "
            "the model was made for this task, and name labels in plain letters."
        )

    def _tokens(self, answer: GenerateResponse) -> list[walk.Token]:
        listed = (answer.logprobs[0].top_logprobs if answer.logprobs else None) or ()
        tokens = [walk.Token(item.token, math.exp(min(item.logprob, 1.0))) for item in listed]
        # Rounding takes the sum a little over 1; more, or a NaN, is no distribution.
        if not tokens or not math.fsum(token.probability for token in tokens) <= 1.01:
            raise BackendError(
                f"Expected up to {_TOP} log-probabilities whose probabilities sum to at most 1 from {self._where()}; "
                f"found {[item.logprob for item in listed][:5]}. Update Ollama, or choose another model."
            )
        return tokens

    def _written(self, frame: str) -> tuple[float, ...]:
        """Nearly even log-probabilities in which the label that the model writes comes first."""
        wanted = modelfile.parameters(self.task)
        options = {**_LIKELIEST, "num_predict": wanted["num_predict"], "stop": [prompt.END_OF_TURN]}
        text = (self._ask(frame, options).response or "").strip()
        names = self.task.names
        # An answer that was cut short may still be the beginning of one label.
        fitting = [name for name in names if name == text] or [name for name in names if text and name.startswith(text)]
        if len(fitting) != 1:
            raise BackendError(
                f"Expected one of the labels {', '.join(names)} from {self._where()}; found {text[:80]!r}. Check that "
                "the model was made for this task."
            )
        return tuple(log_softmax([UNSCORED_LEAD if name == fitting[0] else 0.0 for name in names]))

    def _ask(self, text: str, options: dict[str, Any], **wanted: Any) -> GenerateResponse:
        server = self._server
        if server is None:
            raise BackendError("This classifier was closed; make a new one.")
        return server.generate(
            self.model, text, options={**options, "num_ctx": self._context}, keep_alive=self.keep_alive, **wanted
        )

    def _where(self) -> str:
        return f"the model {self.model!r} in Ollama" + (f" at {self._server.address}" if self._server else "")


class _UnscoredError(BackendError):
    """The server answers, and gives no log-probabilities."""


def _concurrently(
    score: Callable[[prompt.Prompt], Scores], prompts: Sequence[prompt.Prompt], workers: int
) -> list[Scores]:
    """`score` of each prompt, in order; the first failure ends it and is raised."""
    if len(prompts) == 1:
        return [score(prompts[0])]
    results: dict[int, Scores] = {}
    failures: list[BaseException] = []
    stopped = threading.Event()
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(prompts)):
        waiting.put(index)

    def work() -> None:
        while not stopped.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                results[index] = score(prompts[index])
            except BaseException as error:  # handed to the caller, which raises it
                failures.append(error)
                stopped.set()

    # Daemons, not a ThreadPoolExecutor: that one holds the program's end until its queue is empty,
    # which behind a hanging server takes a time-out for every text.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(prompts)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stopped.set()
    if failures:
        raise failures[0]
    return [results[index] for index in range(len(prompts))]


def _check(model: object, timeout: object, keep_alive: object, workers: object) -> None:
    if not isinstance(model, str) or not model.strip():
        raise ConfigError(f"model must be the name of a model in Ollama; found {model!r}.")
    if not _is_number(timeout) or timeout <= 0.0:
        raise ConfigError(f"timeout must be a number of seconds above 0; found {timeout!r}.")
    if not (_is_number(keep_alive) or (isinstance(keep_alive, str) and keep_alive.strip())):
        raise ConfigError(f'keep_alive must be a number of seconds or a text such as "30m"; found {keep_alive!r}.')
    check_count(workers, "workers", least=1)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
