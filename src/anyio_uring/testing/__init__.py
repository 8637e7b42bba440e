"""What programs on top of this library test themselves with: a simulated kernel that misbehaves on demand."""

from ._fake_ring import FakeRing
from ._faults import Faults

__all__ = ("FakeRing", "Faults")
