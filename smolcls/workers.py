"""Answers batches of lines in order, in this process or in several, each with a classifier of its own.

A worker has two batches at most, one at work and one waiting, so that memory stays bounded and no worker waits for
the caller. Files, and what becomes of the answers, are the caller's concern.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smolcls.classifier import Classifier
from smolcls.errors import BackendError, ConfigError, InputError, SmolclsError
from smolcls.lines import Line
from smolcls.prediction import Prediction

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Outcome = Prediction | SmolclsError
Pairs = list[tuple[Line, Outcome]]

#: So many texts in a row without an answer, each asked alone, and the backend is taken to be gone.
GONE = 8

_WAITING = 2  # batches that a worker has


@dataclass(frozen=True, slots=True)
class Crew:
    """Who answers.

    Attributes:
        classifier: what answers where one process is enough.
        make: makes a classifier in each of several processes; a function of a module, or a `functools.partial` of
            one, for it is sent there.
        processes: how many.
    """

    classifier: Classifier
    make: Callable[[], Classifier]
    processes: int = 1

    def answer(self, batches: Iterable[list[Line]]) -> Generator[Pairs, None, None]:
        """Each batch's lines with their outcomes, in order. Close it, to end the processes, where it is left early.

        Raises:
            ConfigError: `make` cannot be sent to another process.
            SmolclsError: the classifier cannot be used at all, or a process died.
        """
        if self.processes > 1:
            yield from _by_processes(batches, self.make, self.processes)
            return
        for batch in batches:
            yield answer_lines(self.classifier, batch)


def answer_lines(classifier: Classifier, batch: list[Line]) -> Pairs:
    """A batch's lines with their outcomes, in order.

    Raises:
        SmolclsError: the classifier cannot be used at all, so that the next line would not fare better.
    """
    return _paired(batch, _answer_texts(classifier, _texts(batch)))


def _answer_texts(classifier: Classifier, texts: Sequence[str]) -> list[Outcome]:
    try:
        return list(classifier.classify_batch(texts))
    except (BackendError, InputError) as error:
        if len(texts) == 1:
            return [error]
    return _one_by_one(classifier, texts)  # one text must not cost the others their answer


def _one_by_one(classifier: Classifier, texts: Sequence[str]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    failed = 0
    for text in texts:
        try:
            outcomes.append(classifier.classify(text))
            failed = 0
        except InputError as error:
            outcomes.append(error)
        except BackendError as error:
            outcomes.append(error)
            failed += 1
            if failed == GONE:
                raise BackendError(f"{GONE} texts in a row got no answer; the last error: {error}") from error
    return outcomes


def _texts(batch: list[Line]) -> list[str]:
    return [line.row["text"] for line in batch if line.error is None]


def _paired(batch: list[Line], outcomes: list[Outcome]) -> Pairs:
    found = iter(outcomes)
    return [(line, next(found) if line.error is None else line.error) for line in batch]


def _by_processes(batches: Iterable[list[Line]], make: Callable[[], Classifier], processes: int) -> Iterator[Pairs]:
    """Batches in turn to the workers, and their answers in the same turn."""
    try:
        pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"What makes the classifier cannot be sent to another process ({error}). Give a function of a module or a "
            "functools.partial of one, such as functools.partial(smolcls.load, 'linear'), or one process."
        ) from error
    workers: list[_Worker] = []
    turns: deque[_Worker] = deque()
    source = iter(batches)
    with contextlib.ExitStack() as stack:
        for turn, batch in zip(range(_WAITING * processes), source, strict=False):
            if turn < processes:
                workers.append(_Worker(make))
                stack.callback(workers[-1].end)
            turns.append(workers[turn % processes])
            turns[-1].ask(batch)
        while turns:
            worker = turns.popleft()
            pairs = worker.answer()
            following = next(source, None)
            if following is not None:
                worker.ask(following)
                turns.append(worker)
            yield pairs


class _Worker:
    """A process with a classifier, and the batches that it has."""

    def __init__(self, make: Callable[[], Classifier]) -> None:
        from multiprocessing import get_context

        context = get_context("spawn")  # a fork would share the threads' locks and the native contexts
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make), daemon=True)
        with _interrupts_ignored():
            self._process.start()
        theirs.close()  # else its end would not be noticed here
        self._batches: deque[list[Line]] = deque()

    def ask(self, batch: list[Line]) -> None:
        """Send a batch; that the process is gone is told in its turn, with the error that it may have sent."""
        self._batches.append(batch)
        with contextlib.suppress(OSError):
            self._pipe.send(_texts(batch))

    def answer(self) -> Pairs:
        """Wait for the answers to its first batch."""
        try:
            found = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(found, SmolclsError):
            raise found
        return _paired(self._batches.popleft(), found)

    def end(self) -> None:
        """End the process, whatever it is doing: it holds nothing that is not sent yet."""
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    def _died(self) -> BackendError:
        self._process.join()
        code = self._process.exitcode
        how = f"exit code {code}" if code is None or code >= 0 else f"signal {-code}"
        first, last = self._batches[0][0].number, self._batches[-1][-1].number
        return BackendError(
            f"A worker process died ({how}) on one of the lines {first} to {last}. "
            "Where it ran out of memory, take fewer processes."
        )


def _work(pipe: Connection, make: Callable[[], Classifier]) -> None:
    """A worker's life: answer what comes, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends the workers
    asked: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, asked), daemon=True).start()
    with contextlib.suppress(OSError):  # the parent is gone
        try:
            with make() as classifier:
                while (texts := asked.get()) is not None:
                    pipe.send(_answer_texts(classifier, texts))
        except SmolclsError as error:
            pipe.send(error)


def _receive(pipe: Connection, asked: queue.SimpleQueue[list[str] | None]) -> None:
    """Take what comes at once: were both ends busy sending, each would wait for the other."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            asked.put(pipe.recv())
    asked.put(None)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """What starts meanwhile ignores Ctrl-C from its first moment, before it can say so itself."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield
        return
    before: Any = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
