"""Fast, correct disk I/O for structured-concurrency Python: one io_uring per event loop, on asyncio and trio."""

from . import _interpreter

_interpreter.require_main_interpreter()  # the one thing done at import: what follows could crash in another one

from ._append_log import AppendLog, FsyncMode, open_append_log
from ._arguments import FileDescriptor
from ._atomic_write import atomic_write
from ._buffers import SupportsBuffer
from ._chain import Chain
from ._cold_tier import ColdTierReader, ColdTierStatistics
from ._copy import copy_file
from ._copy_tree import copy_tree
from ._core import current, open_uring
from ._direct import aligned_buffer
from ._errors import (
    BatchError,
    ChainError,
    CorruptLogError,
    DurabilityLostError,
    MisalignedError,
    UnsupportedFlagError,
    UringUnavailableError,
)
from ._files import open_file, wrap_file
from ._fixed_buffers import BufferPool, FixedBuffer
from ._fixed_files import RegisteredFile
from ._flags import RwFlags
from ._instruments import Instrument, ManagerView, OperationTrace
from ._log_commit import LogStatistics
from ._log_file import LogRecovery
from ._log_reader import LogReader, read_append_log
from ._manager import AsyncIoManager
from ._options import UringOptions
from ._requests import HasFileno
from ._stats import IoStatistics, LatencyQuantiles, UringFeatures
from ._statx import DirectAlignment, FileStatus
from ._streams import UringFileReadStream, UringFileWriteStream
from ._uring_file import UringFile

__all__ = (
    "AppendLog",
    "AsyncIoManager",
    "BatchError",
    "BufferPool",
    "Chain",
    "ChainError",
    "ColdTierReader",
    "ColdTierStatistics",
    "CorruptLogError",
    "DirectAlignment",
    "DurabilityLostError",
    "FileDescriptor",
    "FileStatus",
    "FixedBuffer",
    "FsyncMode",
    "HasFileno",
    "Instrument",
    "IoStatistics",
    "LatencyQuantiles",
    "LogReader",
    "LogRecovery",
    "LogStatistics",
    "ManagerView",
    "MisalignedError",
    "OperationTrace",
    "RegisteredFile",
    "RwFlags",
    "SupportsBuffer",
    "UnsupportedFlagError",
    "UringFeatures",
    "UringFile",
    "UringFileReadStream",
    "UringFileWriteStream",
    "UringOptions",
    "UringUnavailableError",
    "aligned_buffer",
    "atomic_write",
    "copy_file",
    "copy_tree",
    "current",
    "open_append_log",
    "open_file",
    "open_uring",
    "read_append_log",
    "wrap_file",
)
