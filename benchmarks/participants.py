"""
The participants: who takes part, in which environment, and which driver each must really use, as data.

Knows nothing of cases, nor of how a participant does its work (``workers/``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .environments import LIBRARY

OURS = (LIBRARY, "uvloop")
SINGLE = "ring (asyncio)"
"""Who is counted where only one is."""
RING, THREADS = frozenset({"io_uring"}), frozenset({"threads"})


@dataclass(frozen=True)
class Participant:
    """One participant, and what it must show to be the one that it is called after."""

    name: str
    module: str
    loop: str = "asyncio"
    """``sync``, ``asyncio``, ``uvloop`` or ``trio``."""
    requirements: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    driver: str = "io_uring"
    """What its library must say that it uses."""
    evidence: frozenset[str] = RING
    """What the kernel must say that its process has; of ``io_uring`` and ``sqpoll``, also what it must not have."""
    group: str = "peer"
    """``ours``, ``reference``, ``peer`` or ``ceiling``."""
    python: tuple[int, int] = (3, 10)
    tasks_at_most: int = 10_000
    slow: bool = False
    """Takes a thread for each operation, or about as long."""
    fresh: bool = False
    """Needs a new process for each measurement, because it keeps what it opened for loops that have ended."""
    without: frozenset[str] = frozenset()
    """Cases that it cannot take part in, for a reason that stands beside."""


def _ours(name: str, loop: str, driver: str = "uring", **options: Any) -> Participant:
    return Participant(
        name,
        "ours",
        loop,
        OURS,
        {"anyio": True, "driver": driver, **options},
        driver=driver,
        evidence=RING if driver == "uring" else frozenset(),
        group="ours",
        slow=driver == "threads",
    )


def _reference(name: str, module: str, loop: str, requirements: tuple[str, ...] = OURS, **options: Any) -> Participant:
    driver = "threads" if module in {"to_thread", "seeking"} else "synchronous"
    return Participant(
        name, module, loop, requirements, options, driver=driver, evidence=frozenset(), group="reference",
        tasks_at_most=256 if module == "seeking" else 10_000, slow=driver == "threads",
    )  # fmt: skip


def _peer(
    name: str,
    module: str,
    requirements: tuple[str, ...],
    says: str,
    *,
    loop: str = "asyncio",
    python: tuple[int, int] = (3, 10),
    fresh: bool = False,
    **options: Any,
) -> Participant:
    # The kernel's own word for what the library says that it uses.
    shown = {"threads": (), "linux_aio": ("linux_aio",)}.get(says, ("io_uring", *["sqpoll"] * ("SQPOLL" in says)))
    return Participant(
        name, module, loop, requirements, options, driver=says, evidence=frozenset(shown), python=python, fresh=fresh,
        tasks_at_most=256 if module == "seeking" else 10_000, slow=says == "threads",
    )  # fmt: skip


LOOPS = ("asyncio", "uvloop", "trio")

PARTICIPANTS = (
    _reference("os.pread", "pread", "sync", ()),
    *(_reference(f"checkpoint+pread ({loop})", "checkpoint", loop, anyio=True) for loop in LOOPS),
    *(_ours(f"ring ({loop})", loop) for loop in LOOPS),
    *(_ours(f"ring, budget ({loop})", loop, checkpoint="budget") for loop in LOOPS),
    _ours("ring, nowait=False (asyncio)", "asyncio", nowait=False),
    _ours("threads (asyncio)", "asyncio", "threads"),
    _ours("threads (trio)", "trio", "threads"),
    _reference("asyncio.to_thread", "to_thread", "asyncio", (), through="asyncio"),
    _reference("anyio.to_thread", "to_thread", "asyncio", anyio=True, through="anyio"),
    _reference("anyio.open_file", "seeking", "asyncio", anyio=True, imported="anyio", function="open_file"),
    _reference("trio.open_file", "seeking", "trio", imported="trio", function="open_file"),
    _peer("aiofiles", "seeking", ("aiofiles",), "threads", imported="aiofiles"),
    # By itself it takes what caio prefers.
    _peer("aiofile", "aiofile", ("aiofile",), "linux_uring, SQPOLL"),
    _peer("caio (io_uring)", "caio", ("caio",), "linux_uring", context="linux_uring", arguments={"sqpoll": False}),
    _peer("caio (io_uring, deferred)", "caio", ("caio",), "linux_uring",
          context="linux_uring", arguments={"sqpoll": False, "deferred": True}),
    _peer("caio (io_uring, SQPOLL)", "caio", ("caio",), "linux_uring, SQPOLL",
          context="linux_uring", arguments={"sqpoll": True}),
    _peer("caio (linux_aio)", "caio", ("caio",), "linux_aio", context="linux_aio"),
    _peer("turbofile", "turbofile", ("turbofile",), "compio-io-uring", python=(3, 12)),
    _peer("pyaio", "pyaio", ("pyaio", "--pre"), "io_uring"),
    _peer("urio", "urio", ("urio",), "UringBackend", python=(3, 12)),
    _peer("uring-api", "uring_api", ("uring-api", "--pre"), "io_uring", loop="sync"),
    _peer("pyuring", "pyuring", ("pyuring",), "io_uring", loop="sync"),
    _peer("asyncfiles", "seeking", ("py-asyncfiles",), "io_uring",
          imported="asyncfiles", plain_seek=True, driver="io_uring", arguments={"backend": "io_uring"}),
    # A ring and a thread for each loop, which polls for ever.
    _peer("ayafileio", "ayafileio", ("ayafileio",), "io_uring", fresh=True),
    Participant("fio (psync)", "fio", "sync", options={"engine": "psync"}, driver="psync",
                evidence=frozenset(), group="ceiling"),
    Participant("fio (io_uring)", "fio", "sync", options={"engine": "io_uring"}, group="ceiling"),
    Participant("fio (io_uring, batches of 32)", "fio", "sync", group="ceiling", options={
        "engine": "io_uring",
        "more": ("--iodepth_batch=32", "--iodepth_batch_complete_min=1", "--iodepth_batch_complete_max=256"),
    }),
)  # fmt: skip
