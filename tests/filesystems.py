"""Filesystems for tests: made in a file, mounted, and taken down again; for root.

``python -m tests.filesystems KIND COMMAND ...`` runs a command whose ``{}`` becomes the directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
# Of inodes, too, ext4 makes as many as this has room for: some tests need tens of thousands.  The file has holes.
_SIZE: Final = 2048 * MIB
_MAKERS: Final = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
KINDS: Final = (*_MAKERS, "tmpfs", "overlay")
PACKAGES: Final = "e2fsprogs, xfsprogs, btrfs-progs"


class UnavailableError(Exception):
    """A filesystem cannot be had here."""


@contextmanager
def mounted(kind: str) -> Iterator[Path]:
    """
    Mount an empty filesystem of this kind, for as long as the block lasts.

    :raises UnavailableError: if that needs a right, a program or a kernel that is not there; it says which
    """
    if os.geteuid() != 0:
        raise UnavailableError(f"mounting {kind} needs root")
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{kind}-")))
        target = base / "mount"
        target.mkdir()
        if kind in _MAKERS:
            image = base / "image"
            with image.open("wb") as file:
                file.truncate(_SIZE)
            _run(*_MAKERS[kind], str(image))
            _mount(stack, target, "-o", "loop", "-t", kind, str(image))
        elif kind == "tmpfs":
            _mount(stack, target, "-o", f"size={_SIZE}", "-t", "tmpfs", "tmpfs")
        else:
            layers = [base / name for name in ("lower", "upper", "work")]
            # Layers of their own, for an overlay does not lie on another one.
            _mount(stack, base, "-o", f"size={_SIZE}", "-t", "tmpfs", "tmpfs")
            for directory in (target, *layers):
                directory.mkdir()
            options = ",".join(f"{layer.name}dir={layer}" for layer in layers)
            _mount(stack, target, "-o", options, "-t", "overlay", "overlay")
        target.chmod(0o755)
        yield target


def _mount(stack: contextlib.ExitStack, target: Path, *arguments: str) -> None:
    _run("mount", *arguments, str(target))
    # Lazily, for a descriptor that a failed test has left open must not hide that failure.
    stack.callback(subprocess.run, ["umount", "-l", str(target)], check=True)


def _run(*command: str) -> None:
    if shutil.which(command[0]) is None:
        raise UnavailableError(f"{command[0]} is not installed (Debian: {PACKAGES})")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        complaint = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnavailableError(f"{' '.join(command)}: {complaint}")


def main() -> int:
    """Run the command."""
    kind, *command = sys.argv[1:]
    with mounted(kind) as directory:
        done = subprocess.run([part.replace("{}", str(directory)) for part in command], check=False)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
