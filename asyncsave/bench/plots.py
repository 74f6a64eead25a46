"""Plots of a measurement: PNG and SVG, each with its numbers as CSV. Needs matplotlib (``asyncsave[plots]``)."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asyncsave.bench.palette import PAPER
from asyncsave.bench.series import Plot, plots_of
from asyncsave.errors import OptionError
from asyncsave.storage.folders import make_folders, put_file
from asyncsave.storage.system import System

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inline", "require", "write_plots"]

_DPI = 160
_MISSING = "plots need matplotlib, which is missing: pip install 'asyncsave[plots]'"


def require() -> None:
    """Make sure that plots can be drawn: before a measurement, not after it.

    Raises:
        OptionError: matplotlib is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401, PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as error:
        raise OptionError(_MISSING) from error


def write_plots(document: Mapping[str, Any], folder: str) -> list[str]:
    """Draw what a measurement has numbers for.

    Args:
        document: A measurement, as :func:`asyncsave.bench.session.measure` returns it.
        folder: Where the files go; it is made if it is missing. Files of the same names are replaced.

    Returns:
        The paths of the files: for each plot a PNG, an SVG and a CSV. The same measurement gives the same SVGs.

    Raises:
        OptionError: matplotlib is missing.
        SaveError: A file cannot be written.
    """
    require()
    system, folder = System(), os.path.abspath(folder)
    make_folders(system, folder)
    paths = []
    for plot in plots_of(document):
        files = {"png": _render(plot, "png"), "svg": _render(plot, "svg"), "csv": plot.csv()}
        for kind, data in files.items():
            path = os.path.join(folder, f"{plot.name}.{kind}")
            put_file(system, path, data)
            paths.append(path)
    return paths


def inline(document: Mapping[str, Any]) -> list[tuple[Plot, str]]:
    """Return each plot with its SVG, transparent, as it stands in a page: from ``<svg`` to ``</svg>``.

    Raises:
        OptionError: matplotlib is missing.
    """
    require()
    found = []
    for plot in plots_of(document):
        text = _render(plot, "svg", transparent=True).decode()
        found.append((plot, text[text.index("<svg") :].rstrip()))
    return found


def _render(plot: Plot, kind: str, *, transparent: bool = False) -> bytes:
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import

    from asyncsave.bench.figures import STYLE, draw  # noqa: PLC0415 - as above

    defaults: Any = {name: mpl.rcParamsDefault[name] for name in mpl.rcParamsDefault if not name.startswith("backend")}
    # The salt makes the names inside an SVG the same every time, and other ones for each plot of a page.
    settings: Any = {**defaults, **STYLE, "svg.hashsalt": plot.name}
    with mpl.rc_context(settings):
        fig: Figure = draw(plot)
        target = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        fig.savefig(
            target,
            format=kind,
            dpi=_DPI,
            metadata=metadata,
            transparent=transparent,
            facecolor="none" if transparent else PAPER,
        )
    return target.getvalue()
