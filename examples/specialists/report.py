"""The tables and the plot of docs/accuracy.md, out of what make.sh left in its build folder."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from icarus.evaluation.scores import Score, mean_score

IN_THE_MEAN = ("tools", "banking", "intents")
METHODS = ("base", "conventional", "icarus")
MACHINES = "machines.json"
"""Method -> task -> the machine that trained it, where a folder's runs are of several."""


def read_scores(build: Path) -> dict[str, dict[str, Any]]:
    """Task -> method -> what `icarus eval --json` wrote; tasks that are not complete are left out."""
    tasks = [file.name.removeprefix("icarus-").removesuffix(".json") for file in build.glob("scores/icarus-*.json")]
    order = sorted(tasks, key=[*IN_THE_MEAN, *tasks].index)
    files = {task: {method: build / "scores" / f"{method}-{task}.json" for method in METHODS} for task in order}
    return {
        task: {method: _read(file) | _loss(file) for method, file in of.items()}
        for task, of in files.items()
        if all(file.is_file() for file in of.values())
    }


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _loss(scores: Path) -> dict[str, float]:
    """The loss of the right answers, which was measured on examples put aside."""
    return {"answer_loss": _read(scores.parents[1] / "losses" / scores.name)["answer_loss"]}


def differences(reports: dict[str, Any]) -> np.ndarray:
    """ICaRus less conventional, example by example."""
    icarus, conventional = (
        np.array([example["score"] for example in reports[method]["examples"]]) for method in ("icarus", "conventional")
    )
    return icarus - conventional


def mean_of_tasks(differences: list[np.ndarray], seed: int = 0) -> Score:
    """The mean of the tasks' means; each task is resampled by itself."""
    generator = np.random.default_rng(seed)
    means = [
        np.mean([values[generator.integers(len(values), size=len(values))].mean() for values in differences])
        for _ in range(2000)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return Score(float(np.mean([values.mean() for values in differences])), float(low), float(high))


def table(scores: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| task | examples | base | conventional | ICaRus | ICaRus - conventional, points | answer losses |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task, reports in scores.items():
        shares = [f"{reports[method]['score']['mean']:.1%}" for method in METHODS]
        losses = ", ".join(f"{reports[method]['answer_loss']:.3f}" for method in METHODS)
        gap = mean_score(differences(reports).tolist())
        cells = [task, str(reports["icarus"]["num_examples"]), *shares, points(gap), losses]
        lines.append(f"| {' | '.join(cells)} |")
    counted = [differences(scores[task]) for task in IN_THE_MEAN if task in scores]
    lines.append(f"| mean of {len(counted)} | | | | | {points(mean_of_tasks(counted))} | |")
    return "\n".join(lines)


def points(score: Score) -> str:
    return f"{100 * score.mean:+.1f} [{100 * score.low:+.1f}, {100 * score.high:+.1f}]"


def throughput(build: Path, tasks: list[str]) -> str:
    """Training tokens a second, the median of each run's steps: a run may have been disturbed for a while. Runs of two
    machines have no ratio."""
    machines = _read(build / MACHINES) if (build / MACHINES).is_file() else {}
    lines = ["| task | conventional, tokens/s | ICaRus, tokens/s | ratio |", "| --- | --- | --- | --- |"]
    for task in tasks:
        logs = [read_log(build / method / task) for method in METHODS[1:]]
        speeds = [np.median([step["tokens"] / step["seconds"] for step in log]) for log in logs]
        first, second = (machines.get(method, {}).get(task) for method in METHODS[1:])
        ratio = f"{speeds[1] / speeds[0]:.2f}" if first == second else f"none: {first} and {second}"
        lines.append(f"| {task} | {speeds[0]:.0f} | {speeds[1]:.0f} | {ratio} |")
    return "\n".join(lines)


def keep(build: Path, tasks: list[str], folder: Path) -> None:
    """Copies what the tables and the plot are made of, without answers: small enough to be committed."""
    for task in tasks:
        for method in METHODS:
            for kind in ("scores", "losses"):
                report = _read(build / kind / f"{method}-{task}.json")
                report["examples"] = [{"score": example["score"]} for example in report["examples"]]
                _write(folder / kind / f"{method}-{task}.json", json.dumps(report, separators=(",", ":")) + "\n")
        for method in METHODS[1:]:
            log = Path(method, task, "log.jsonl")
            _write(folder / log, (build / log).read_text())
    if (build / MACHINES).is_file():
        _write(folder / MACHINES, (build / MACHINES).read_text())
    else:
        (folder / MACHINES).unlink(missing_ok=True)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def plot_losses(build: Path, tasks: list[str], file: Path) -> None:
    """Training loss, as a running mean of ten steps, and the loss on held-out examples as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(tasks), 3), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for method, colour in (("conventional", "tab:orange"), ("icarus", "tab:blue")):
            log = read_log(build / method / task)
            losses = np.convolve([step["loss"] for step in log], np.ones(10) / 10, mode="valid")
            axes.plot(range(10, len(log) + 1), losses, color=colour, label=method, linewidth=1)
            held_out = [(step["step"], step["validation_loss"]) for step in log if step["validation_loss"] is not None]
            axes.plot(*zip(*held_out, strict=True), "o", color=colour, markersize=3)
        axes.set(title=task, xlabel="step", yscale="log")
    figure.axes[0].set_ylabel("nats an answer token")
    figure.axes[0].legend()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path, help="the folder that make.sh wrote")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the loss curves into this .svg or .png file")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy what this was made of, without answers")
    args = parser.parse_args()
    scores = read_scores(args.build)
    tasks = list(scores)
    print(table(scores), throughput(args.build, tasks), sep="\n\n")
    if args.plot:
        plot_losses(args.build, tasks, args.plot)
    if args.keep:
        keep(args.build, tasks, args.keep)


if __name__ == "__main__":
    main()
