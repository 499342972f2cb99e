"""Tables where there is no terminal: 80 columns, whatever they hold."""

from icarus_benchmarks.report import figures_table
from rich.console import Console


def test_headings_and_figures_are_whole_in_a_narrow_table():
    columns = ["case", *(f"{way} thread of the transfer, GB/s" for way in ("first", "second", "third", "fourth"))]
    rows = [["a long name of one case", 1234567.0, 2.5, 3, 0.125], ["another", 1.0, 2.0, 3, 4.0]]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(figures_table("a title", columns, rows))
    lines = capture.get().splitlines()
    figures = [["1,234,567", "2.50", "3", "0.12"], ["1.00", "2.00", "3", "4.00"]]
    assert [words[-4:] for line in lines if len(words := line.split()) > 4 and words[-1] in ("0.12", "4.00")] == figures
    told = [word for word in " ".join(lines[1:]).split() if word not in {*figures[0], *figures[1]}]
    assert sorted(told) == sorted(" ".join([*columns, rows[0][0], rows[1][0]]).split())
