"""An Ollama server that writes: through the model's own template, where the backend renders for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smolcls.backends._ollama_http import FOREIGN, Server, translate
from smolcls.errors import ModelError


class WritingServer(Server):
    """The backend's client, with its bounds and its errors."""

    def write(self, model: str, prompt: str, options: Mapping[str, Any]) -> str:
        """What the model writes in answer to a user's message.

        Raises:
            SmolclsError: of the kind that fits, saying what was expected, what was found, and what to do.
        """
        try:
            answer = self._client.generate(model=model, prompt=prompt, stream=False, options=dict(options))
        except FOREIGN as error:
            meant = translate(error, self, model)
            if isinstance(meant, ModelError):  # the backend's advice is to build the model; this one is to be fetched
                meant = ModelError(
                    f"Expected the model {model!r} in Ollama at {self.address}; found none of that name. Fetch it with "
                    f"`ollama pull {model}`; `ollama list` shows what is there."
                )
            raise meant from error
        return answer.response or ""
