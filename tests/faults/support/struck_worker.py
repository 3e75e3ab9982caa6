"""A real worker that sends itself a signal at one line of its work, the first time it comes there.

The line is named by STRIKE in the environment, like
`SIGKILL after worker.store.worker_side:WorkerStore.complete`, or `before`. It names a method, or a
function of a module.
"""

from __future__ import annotations

import os
import signal
from importlib import import_module
from typing import Any

from worker.__main__ import main


def strike(order: str) -> None:
    """Put the signal where `order` says."""
    name, moment, place = order.split()
    module, _, path = place.partition(":")
    owner: Any = import_module(module)
    *classes, function = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    real = getattr(owner, function)
    signals = [signal.Signals[name]]

    def struck(*args: Any, **kwargs: Any) -> Any:
        if moment == "before" and signals:
            os.kill(os.getpid(), signals.pop())
        answer = real(*args, **kwargs)
        if moment == "after" and signals:
            os.kill(os.getpid(), signals.pop())
        return answer

    setattr(owner, function, struck)


if __name__ == "__main__":
    strike(os.environ["STRIKE"])
    main()
