"""The tables and the plot of docs/accuracy.md, out of what make.sh left in its build folder."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from icarus.training.metrics import Score, mean_score

IN_THE_MEAN = ("tools", "banking", "intents")
METHODS = ("base", "conventional", "icarus")


def read_scores(build: Path) -> dict[str, dict[str, Any]]:
    """Task -> method -> what `icarus eval --json` wrote; tasks that are not complete are left out."""
    tasks = [file.name.removeprefix("icarus-").removesuffix(".json") for file in build.glob("scores/icarus-*.json")]
    order = sorted(tasks, key=[*IN_THE_MEAN, *tasks].index)
    files = {task: {method: build / "scores" / f"{method}-{task}.json" for method in METHODS} for task in order}
    return {
        task: {method: json.loads(file.read_text(encoding="utf-8")) for method, file in of.items()}
        for task, of in files.items()
        if all(file.is_file() for file in of.values())
    }


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
    """Training tokens a second, over all steps of both runs."""
    lines = ["| task | conventional, tokens/s | ICaRus, tokens/s | ratio |", "| --- | --- | --- | --- |"]
    for task in tasks:
        logs = [read_log(build / method / task) for method in METHODS[1:]]
        speeds = [sum(step["tokens"] for step in log) / sum(step["seconds"] for step in log) for log in logs]
        lines.append(f"| {task} | {speeds[0]:.0f} | {speeds[1]:.0f} | {speeds[1] / speeds[0]:.2f} |")
    return "\n".join(lines)


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
    args = parser.parse_args()
    scores = read_scores(args.build)
    tasks = list(scores)
    print(table(scores), throughput(args.build, tasks), sep="\n\n")
    if args.plot:
        plot_losses(args.build, tasks, args.plot)


if __name__ == "__main__":
    main()
