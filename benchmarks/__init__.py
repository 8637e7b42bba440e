"""The benchmark suite: ``python -m benchmarks --help``, or ``nox -s bench``.  See README.md."""
