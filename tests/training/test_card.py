"""Scores on model cards, our own and others'."""

import pytest

from icarus.training.card import add_score


@pytest.mark.parametrize(
    ("card", "before"),
    [
        (None, "# mine\n\n## Scores\n\n"),
        ("", "# mine\n\n## Scores\n\n"),
        ("# A\n\n- PEFT 0.21.2", "# A\n\n- PEFT 0.21.2\n\n## Scores\n\n"),  # as PEFT ends its cards
        ("# A\n\n## Scores\n\n- first", "# A\n\n## Scores\n\n- first\n"),
    ],
    ids=["none", "empty", "PEFT's", "without its last newline"],
)
def test_a_score_has_a_line_of_its_own_under_its_heading(tmp_path, card, before):
    folder = tmp_path / "mine"
    folder.mkdir()
    file = folder / "README.md"
    if card is not None:
        file.write_text(card)
    for score in ("d.jsonl: 90%", "e.jsonl: 80%", "d.jsonl: 90%"):
        add_score(folder, score)
    assert file.read_text() == f"{before}- d.jsonl: 90%\n- e.jsonl: 80%\n"
