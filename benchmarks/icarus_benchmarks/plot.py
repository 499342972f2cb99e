"""Lines in panels, as one picture. matplotlib is imported when there is something to draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from icarus.errors import InvalidInputError

Line = Sequence[tuple[float, float]]
"""x, y."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes. Lines of the same name have the same colour in every panel."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Line]
    log_x: bool = False


def require_plotting(path: Path) -> None:
    """Raises now rather than after the benchmark: ModuleNotFoundError, and InvalidInputError for an unknown format."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise InvalidInputError(f"--plot {path} has no known ending; known are {', '.join(sorted(known))}")


def save_panels(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """The file's ending decides the format: .png, .svg, .pdf."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    figure.suptitle(title)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, line in panel.lines.items():
            axes.plot(*zip(*line, strict=True), marker="o", label=name, color=f"C{names.index(name) % 10}")
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axes.set_xscale("log", base=2) if panel.log_x else None
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
