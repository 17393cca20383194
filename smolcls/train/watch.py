"""What a run says while it works: progress, and remarks for people. The command line listens; a library may not."""

from __future__ import annotations

import logging

log = logging.getLogger("smolcls.train")


class Watcher:
    """Hears what a run does. This one hands remarks to the logger `smolcls.train`, and drops progress."""

    def progress(self, step: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` parts of a step are done; `note` is what is worth seeing beside it, such as the loss."""

    def say(self, remark: str) -> None:
        """Something that a person should know: what was changed by itself, what went as expected and what did not."""
        log.info(remark)
