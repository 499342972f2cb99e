"""Tables where there is no terminal: 80 columns, whatever they hold."""

from rich.console import Console

from icarus_benchmarks.report import figures_table


def test_headings_and_figures_are_whole_in_a_narrow_table():
    columns = ["case", *(f"{way} thread of the transfer, GB/s" for way in ("first", "second", "third", "fourth"))]
    rows = [["a long name of one case", 1234567.0, 2.5, 3, 0.125], ["another", 1.0, 2.0, 3, 4.0]]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(figures_table("a title", columns, rows))
    lines = capture.get().splitlines()
    assert lines[-2].split() == ["a", "long", "name", "of", "one", "case", "1,234,567", "2.50", "3", "0.12"]
    assert lines[-1].split() == ["another", "1.00", "2.00", "3", "4.00"]
    assert sorted(" ".join(lines[1:-2]).split()) == sorted(" ".join(columns).split())
