"""Fast, correct disk I/O for structured-concurrency Python: one io_uring per event loop, on asyncio and trio."""

from ._arguments import FileDescriptor
from ._buffers import SupportsBuffer
from ._chain import Chain
from ._core import AsyncIoManager, current, open_uring
from ._errors import BatchError, ChainError, UringUnavailableError
from ._instruments import Instrument, ManagerView, OperationTrace
from ._options import UringOptions
from ._requests import HasFileno
from ._stats import IoStatistics, LatencyQuantiles, UringFeatures

__all__ = (
    "AsyncIoManager",
    "BatchError",
    "Chain",
    "ChainError",
    "FileDescriptor",
    "HasFileno",
    "Instrument",
    "IoStatistics",
    "LatencyQuantiles",
    "ManagerView",
    "OperationTrace",
    "SupportsBuffer",
    "UringFeatures",
    "UringOptions",
    "UringUnavailableError",
    "current",
    "open_uring",
)
