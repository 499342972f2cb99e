import pytest
from byte_model import CHATML, LLAMA3, make_model

from icarus.text.served_model import ServedModel


@pytest.fixture
def model() -> ServedModel:
    return make_model()


@pytest.fixture
def templates() -> dict[str, str]:
    return {"chatml": CHATML, "llama3": LLAMA3}
