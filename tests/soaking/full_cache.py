"""The program that builds where nothing can be written: `python -m soaking.full_cache RECIPE`.

It prints the error that the build raises. The limit is this process's own; Python ignores the signal that comes with
it, so that a write fails as on a full disk.
"""

from __future__ import annotations

import json
import resource
import sys

from smolcls import SmolclsError, build

_LIMIT = 4096  # bytes: no model, and no part of one that is worth keeping


def main() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        build.build(**json.loads(sys.argv[1]), force=True)
    except SmolclsError as error:
        print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
