"""What a file of answers belongs to, kept beside it: the input, the task, the classifier and its stages' models.

All are fingerprints, and none of them needs a stage's model loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from smolcls import registry
from smolcls.calibration import model_fingerprint
from smolcls.classifier import Classifier
from smolcls.errors import InputError
from smolcls.files import read_json, sha256, write_text
from smolcls.router import ConfidenceRouter
from smolcls.stage import Stage
from smolcls.task import Task

#: What to do where answers cannot be gone on with.
AGAIN = "Give --force to begin anew, or another --out."


class Owner:
    """What answers of a classifier to an input belong to.

    Args:
        source: the input, which is read here.
        classifier: what answers.
    """

    def __init__(self, source: Path, classifier: Classifier) -> None:
        made_by = json.dumps(_description(classifier), default=_plain)
        self._classifier = classifier
        self._fingerprints = {
            "input": sha256(source),
            "task": classifier.task.fingerprint,
            "classifier": hashlib.sha256(made_by.encode()).hexdigest(),
        }

    def write(self, out: Path) -> None:
        """Note it beside new answers, once there are some: an embedded model is built by then."""
        noted = {**self._fingerprints, "models": models(self._classifier)}
        write_text(_beside(out), json.dumps(noted, indent=2) + "\n")

    def check(self, out: Path) -> None:
        """Compare it with what is noted beside the answers; a model that is known on one side alone is not compared.

        Raises:
            InputError: it differs, or what is noted cannot be read.
        """
        try:
            found = read_json(_beside(out))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{_beside(out)}, which says what {out} belongs to, cannot be read: {error}. {AGAIN}"
            ) from error
        for key, value in self._fingerprints.items():
            if found.get(key) != value:
                raise InputError(
                    f"{out} cannot be gone on with: its answers are of another {key}, or that has changed since. "
                    f"Name the one it was begun with. {AGAIN}"
                )
        before = found.get("models")
        if not isinstance(before, dict):
            return
        changed = [stage for stage, model in models(self._classifier).items() if before.get(stage, model) != model]
        if changed:
            raise InputError(
                f"{out} cannot be gone on with: the model of stage {', '.join(changed)} is another one than it was "
                f"begun with. Put that one back. {AGAIN}"
            )


def models(classifier: Classifier, within: str = "") -> dict[str, str]:
    """The fingerprints of the files that a chain's stages load, by the stages' places and names.

    Left out is what no file tells: a model of an Ollama server, a Hub id, an embedded model that is not built yet.
    """
    if not isinstance(classifier, ConfidenceRouter):
        return {}  # its description has its model
    found: dict[str, str] = {}
    for number, stage in enumerate(classifier.stages, start=1):
        name = f"{within}{number} ({stage.name})"
        if isinstance(stage.classifier, Classifier):
            found |= models(stage.classifier, f"{name} / ")
        elif fingerprint := _fingerprint(stage.classifier, stage, classifier.task):
            found[name] = fingerprint
    return found


def _fingerprint(spec: str, stage: Stage, task: Task) -> str:
    try:
        path = registry.locate(spec, **{"task": task, **stage.options})
        return "" if path is None else model_fingerprint(path)
    except Exception:  # a chain bears a stage that cannot be made, and a stranger's may raise anything
        return ""


def _description(classifier: Classifier) -> dict[str, Any]:
    """What tells a classifier from others: of a chain its settings, without loading models, of a backend its model."""
    found: dict[str, Any] = {"name": classifier.name, "min_confidence": classifier.min_confidence}
    if not isinstance(classifier, ConfidenceRouter):
        return {**found, "model": classifier.model_fingerprint(), "calibration": classifier.calibration}
    stages = []
    for stage in classifier.stages:
        values = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
        if isinstance(stage.classifier, Classifier):
            values["classifier"] = _description(stage.classifier)
        stages.append(values)
    return {**found, "stages": stages}


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.job.json")
