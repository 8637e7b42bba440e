"""Home of the compiled extension ``_lib`` and its C source; :mod:`anyio_uring._ring` alone imports it."""
