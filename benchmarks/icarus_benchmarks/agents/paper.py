"""What the ICaRus paper reports of itself against conventional multi-model serving (arXiv 2603.13281)."""

from dataclasses import dataclass

CITATION = "ICaRus, arXiv 2603.13281"


@dataclass(frozen=True)
class PaperRow:
    """How many times better, up to, with N specialists."""

    num_specialists: int
    throughput: float
    p95_latency: float


PAPER = (PaperRow(2, 1.4, 3.8), PaperRow(4, 2.3, 5.1), PaperRow(8, 3.8, 11.1))
