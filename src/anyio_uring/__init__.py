"""Fast, correct disk I/O for structured-concurrency Python: one io_uring per event loop, on asyncio and trio."""

from ._arguments import FileDescriptor
from ._atomic_write import atomic_write
from ._buffers import SupportsBuffer
from ._chain import Chain
from ._cold_tier import ColdTierReader, ColdTierStatistics
from ._copy import copy_file
from ._copy_tree import copy_tree
from ._core import current, open_uring
from ._direct import aligned_buffer
from ._errors import BatchError, ChainError, MisalignedError, UnsupportedFlagError, UringUnavailableError
from ._fixed_buffers import BufferPool, FixedBuffer
from ._fixed_files import RegisteredFile
from ._flags import RwFlags
from ._instruments import Instrument, ManagerView, OperationTrace
from ._manager import AsyncIoManager
from ._options import UringOptions
from ._requests import HasFileno
from ._stats import IoStatistics, LatencyQuantiles, UringFeatures
from ._statx import DirectAlignment, FileStatus
from ._streams import UringFileReadStream, UringFileWriteStream

__all__ = (
    "AsyncIoManager",
    "BatchError",
    "BufferPool",
    "Chain",
    "ChainError",
    "ColdTierReader",
    "ColdTierStatistics",
    "DirectAlignment",
    "FileDescriptor",
    "FileStatus",
    "FixedBuffer",
    "HasFileno",
    "Instrument",
    "IoStatistics",
    "LatencyQuantiles",
    "ManagerView",
    "MisalignedError",
    "OperationTrace",
    "RegisteredFile",
    "RwFlags",
    "SupportsBuffer",
    "UnsupportedFlagError",
    "UringFeatures",
    "UringFileReadStream",
    "UringFileWriteStream",
    "UringOptions",
    "UringUnavailableError",
    "aligned_buffer",
    "atomic_write",
    "copy_file",
    "copy_tree",
    "current",
    "open_uring",
)
