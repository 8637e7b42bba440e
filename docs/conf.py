"""How Sphinx builds the site: ``nox -s docs``.

It knows extensions and where names of other projects are documented; what the pages say is theirs.
"""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Any

import anyio_uring

project = "anyio_uring"
author = "the anyio_uring developers"
version = release = version_of(project)

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

nitpicky = True
# Of the type checkers alone; nothing documents them.
nitpick_ignore = [("py:class", "OpenBinaryMode"), ("py:class", "OpenTextMode")]
# What FakeRing is for open_uring(): a Protocol of this package's own.
nitpick_ignore += [("py:class", "anyio_uring._options.DriverSource")]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Inventories of what the docstrings name, as files (docs/inventories): so the build asks no server, and gives the
# same on every day.  A name that none of them has fails the build: add it, with
# its kind and its page.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", "inventories/python.txt"),
    "anyio": ("https://anyio.readthedocs.io/en/stable/", "inventories/anyio.txt"),
    "opentelemetry": ("https://opentelemetry-python.readthedocs.io/en/stable/", "inventories/opentelemetry.txt"),
    "trio": ("https://trio.readthedocs.io/en/stable/", "inventories/trio.txt"),
}

# Longer ones have each parameter in a line of its own.
maximum_signature_line_length = 80
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True

doctest_global_setup = "import anyio_uring"

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"


def _public_name(target: str) -> str | None:
    """Return the name under which users import what an annotation or a docstring calls by its module."""
    package, _, name = target.rpartition(".")
    if not package.startswith("anyio_uring._") or name not in anyio_uring.__all__:
        return None
    return f"anyio_uring.{name}"


def _resolve_public_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    name = _public_name(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or name is None:
        return None
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, contnode)


def setup(app: Any) -> None:
    """Let annotations, which name the private modules, find the public names."""
    app.connect("missing-reference", _resolve_public_name)
