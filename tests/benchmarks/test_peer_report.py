import pytest
from icarus_benchmarks.peer.report import DECODE_ONLY, FAST, FULL, NO_LORA, Run, report


def run(server, job, quiet=True, **figures):
    agents = {"lat50": 1.0, "lat95": 2.0, "lat95_t2plus": 1.0, "ttft50": 0.1, "hit": 0.5, "out_tok_s": 1.0}
    return Run(server, job, {"bench": job.partition(":")[0], "quiet_start": quiet, **agents, **figures})


def test_ratios_pair_what_ran_on_both_sides():
    runs = [
        run(FAST, "agents:multi:multi:8:8", out_tok_s=30.0, lat95_t2plus=9.0),
        run(NO_LORA, "agents:base:base:8:8", out_tok_s=120.0, lat95=4.0),
        run(NO_LORA, "decode:base:8", decode_tok_s=300.0),
        run(DECODE_ONLY, "agents:multi:multi:8:8", out_tok_s=120.0, lat95=5.0, lat95_t2plus=3.0),
        run(DECODE_ONLY, "decode:base:8", decode_tok_s=150.0),
        run(FULL, "agents:multi:multi:8:8", out_tok_s=90.0, quiet=False),
    ]
    made = report(runs, {}, [f"{NO_LORA} was not measured: gone"])
    decode = [r["ratio"] for r in made.results["ratios"] if "decode" in r["what"]]
    agents = [r["ratio"] for r in made.results["ratios"] if r["server"] == DECODE_ONLY and "agents" in r["what"]]
    assert agents == pytest.approx([4.0, 1 / 3, 1.25, 1.0])
    assert decode == [0.5]
    assert [r["ratio"] for r in made.results["ratios"] if r["server"] == FULL][:2] == [3.0, 1 / 9]
    assert made.notes == [
        f"{NO_LORA} was not measured: gone",
        f"other processes kept the machine busy before {FULL} agents:multi:multi:8:8",
    ]
