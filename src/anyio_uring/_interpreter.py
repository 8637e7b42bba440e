"""Refuses sub-interpreters, before anything else is imported. Knows interpreters, and nothing of what they import.

The compiled extension is made for the main interpreter: what C calls back takes the thread's first interpreter for
its own (``PyGILState_Ensure``).  One with a GIL of its own refuses such an extension since Python 3.12, but in the
middle of other imports, some of which have crashed there (``ssl`` in 3.12.1).
"""

from __future__ import annotations

import importlib


def require_main_interpreter() -> None:
    """
    Return if this is the interpreter that the process began with.

    :raises ImportError: in another one
    """
    if not _is_main():  # pragma: no cover - nobody measures a sub-interpreter
        raise ImportError(
            "anyio_uring works in the main interpreter alone, and this is a sub-interpreter: "
            "use a thread, or a process of its own (multiprocessing)"
        )


def _is_main() -> bool:
    for name in ("_interpreters", "_xxsubinterpreters"):  # Python 3.13, and before
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() == interpreters.get_main())
    return True  # this Python has no others
