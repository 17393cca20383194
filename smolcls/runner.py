"""Asks one stage of a router without letting it take the caller down.

A stage's classifier is made on its first call. With a time-out, loading and answering run in daemon
threads that are left behind when the time is up: neither a hanging server nor a hanging native call can
hold the caller, `close`, or the end of the program. It knows one stage, and nothing of the chain.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from smolcls import registry
from smolcls.background import Background, TimeLimit
from smolcls.breaker import CircuitBreaker
from smolcls.classifier import Classifier
from smolcls.errors import (
    BackendError,
    BackendTimeoutError,
    CircuitOpenError,
    ConfigError,
    InputError,
    MissingExtraError,
    ModelError,
    SmolclsError,
)
from smolcls.prediction import Prediction, StageTrace
from smolcls.stage import Stage
from smolcls.task import Task

log = logging.getLogger("smolcls")

_MAX_HANGING = 8  # calls of one stage that may be left behind before further ones are refused
_LONGEST_PAUSE = 60.0  # seconds between two tries, however often they were doubled
_SLACK = 1e-6  # a softmax in float32 may say 1.0000001


class StageRunner:
    """A stage at work for one router: its classifier, its breaker, its hanging calls.

    Raises:
        ConfigError: the stage was given a classifier with other labels than the task's.
    """

    def __init__(self, stage: Stage, task: Task, clock: Callable[[], float] = time.monotonic) -> None:
        self.stage = stage
        self.breaker = CircuitBreaker(stage.failures, stage.cooldown, clock)
        self._task = task
        self._thread_name = f"smolcls-{stage.name}"
        self._making = threading.Lock()  # held while the classifier is made, so that it is made once
        # Guards all below; never held while foreign code runs. A signal's handler or a finaliser may close from within.
        self._lock = threading.RLock()
        self._made: Classifier | None = None
        self._load: Background[Classifier] | None = None
        self._hanging: list[Background[list[Prediction]]] = []
        self._busy = 0
        self._closed = False
        if isinstance(stage.classifier, Classifier):
            self._made = self._with_our_labels(stage.classifier)

    def run(self, texts: list[str]) -> list[Prediction]:
        """The stage's predictions, within its time-out.

        Raises:
            SmolclsError: of the kind that fits; the breaker has taken note of it.
        """
        if not self.breaker.allow():
            left = self.breaker.seconds_left()
            until = f"for {left:.1f} s more" if left > 0 else "until the call that probes it is back"
            raise CircuitOpenError(f"left alone after repeated failures, {until}")
        try:
            predictions = self._with_retries(texts)
        except InputError as error:
            # A limit of its own on texts, which says nothing of its health.
            self.breaker.cancelled()
            raise BackendError(f"refused a text that others take: {error}") from error
        except (MissingExtraError, ConfigError, ModelError):
            self.breaker.failed(lasting=True)
            raise
        except _StillLoadingError:
            self.breaker.cancelled()
            raise
        except SmolclsError:
            self.breaker.failed()
            raise
        except BaseException:
            # The user's Ctrl-C, or a plugin's wish to end the program: theirs to decide, and no fault of the stage.
            self.breaker.cancelled()
            raise
        self.breaker.succeeded()
        return predictions

    def enter(self) -> bool:
        """Keep the classifier for a call that will come to it, until the call leaves; False where this was closed."""
        with self._lock:
            if self._closed:
                return False
            self._busy += 1
            return True

    def leave(self) -> None:
        """End what `enter` began; the last one out of a closed runner closes the classifier."""
        with self._lock:
            self._busy -= 1
            last = self._closed and self._busy == 0
        if last:
            try:
                self._free()
            except Exception as error:  # a stranger's close may raise anything, and must not cost the call its answer
                log.warning("The stage %s could not be closed: %s: %s", self.stage.name, type(error).__name__, error)

    def close(self) -> None:
        """Close the classifier if this runner made it; where calls have entered, the last one to leave does it.

        It does not wait for them: one may hang, and a forked process has the count of threads that it does not have.
        """
        with self._lock:
            idle = not self._closed and self._busy == 0
            self._closed = True
        if idle:
            self._free()

    def _with_retries(self, texts: list[str]) -> list[Prediction]:
        limit = None if self.stage.timeout is None else TimeLimit(self.stage.timeout * len(texts))
        pause = min(self.stage.backoff, _LONGEST_PAUSE)
        for _ in range(self.stage.retries):
            try:
                return self._try(texts, limit)
            except (BackendTimeoutError, CircuitOpenError):
                raise
            except BackendError:
                if limit is not None and pause >= limit.left():
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return self._try(texts, limit)

    def _try(self, texts: list[str], limit: TimeLimit | None) -> list[Prediction]:
        try:
            predictions = self._answer(texts) if limit is None else self._answer_within(limit, texts)
            return check_predictions(predictions, len(texts), self._task.names)
        except SmolclsError:
            raise
        except Exception as error:
            # A router's promise is to survive its stages, strangers' plugins included: whatever they
            # raise, MemoryError too, is a failure of that stage and of nothing else.
            raise BackendError(f"raised {type(error).__name__}: {error}") from error

    def _answer(self, texts: list[str]) -> list[Prediction]:
        with self._at_work():
            return self._classifier().classify_batch(texts)

    def _answer_within(self, limit: TimeLimit, texts: list[str]) -> list[Prediction]:
        loading = self._made is None
        if loading:
            self._await_load(limit)
        with self._lock:
            self._hanging = [call for call in self._hanging if not call.ended()]
            if len(self._hanging) >= _MAX_HANGING:
                raise BackendTimeoutError(f"{len(self._hanging)} earlier calls still hang")
        call = Background(lambda: self._answer(texts), self._thread_name)
        try:
            call.wait(limit.left())
        finally:  # Ctrl-C leaves the call behind as well
            if not call.ended():
                with self._lock:
                    self._hanging.append(call)
        if call.ended():
            return call.result()
        if loading:
            raise _StillLoadingError(f"no answer within {limit.seconds:g} s, of which loading took a part")
        raise BackendTimeoutError(f"no answer within {limit.seconds:g} s")

    def _await_load(self, limit: TimeLimit) -> None:
        """Wait for the one background load; one that has taken longer than `limit` before is not waited for again."""
        with self._lock:
            if self._load is None:
                self._load = Background(self._load_classifier, self._thread_name)
            load = self._load
        load.wait(limit.seconds - load.age())
        if not load.ended():
            raise _StillLoadingError(f"still loading after {load.age():.1f} s; it goes on in the background")
        with self._lock:
            if self._load is load:
                self._load = None  # where it failed, the next call tries again
        load.result()

    def _load_classifier(self) -> Classifier:
        with self._at_work():
            return self._classifier()

    def _classifier(self) -> Classifier:
        with self._making:
            if self._made is None:
                made = registry.load(str(self.stage.classifier), **{"task": self._task, **self.stage.options})
                try:
                    self._made = self._with_our_labels(made)
                except ConfigError:
                    made.close()
                    raise
            return self._made

    def _with_our_labels(self, classifier: Classifier) -> Classifier:
        theirs, ours = classifier.task.names, self._task.names
        if set(theirs) != set(ours):
            raise ConfigError(
                f"The stage {self.stage.name!r} has the labels {', '.join(theirs)}; the router's are {', '.join(ours)}."
            )
        return classifier

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Marks a thread that is in the classifier or makes it, on behalf of a call that may have left meanwhile."""
        with self._lock:
            if self._closed and self._busy == 0:
                raise BackendError("was closed; make a new router")
            self._busy += 1
        try:
            yield
        finally:
            self.leave()

    def _free(self) -> None:
        made, self._made = self._made, None
        if made is not None and made is not self.stage.classifier:
            made.close()


class _StillLoadingError(BackendTimeoutError):
    """A time-out that tells nothing about the stage: its model is being loaded for the first time."""


def check_predictions(predictions: object, count: int, names: Sequence[str]) -> list[Prediction]:
    """The predictions themselves, once they are found to be one proper `Prediction` a text.

    Raises:
        BackendError: they are not; a stranger's plugin or server gave something else.
    """
    if not isinstance(predictions, list) or len(predictions) != count:
        raise BackendError(f"was to return a list of {count} predictions; returned {str(predictions)[:80]}")
    for item in predictions:
        if not isinstance(item, Prediction):
            raise BackendError(f"was to return predictions; returned {str(item)[:80]!r}")
        if set(item.probabilities) != set(names) or (item.label is not None and item.label not in names):
            raise BackendError(f"answered with labels that are not the task's: {str(item)[:120]}")
        for number in (item.confidence, *item.probabilities.values()):
            if not -_SLACK <= number <= 1.0 + _SLACK:
                raise BackendError(f"answered with the probability {number!r}; expected 0 to 1")
        if not all(isinstance(step, StageTrace) for step in item.trace):
            raise BackendError(f"answered with a trace that is none: {str(item.trace)[:80]}")
    return predictions
