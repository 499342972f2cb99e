"""The digest that shipped specialists name: everybody's conversion of the demo's model gives the same weights."""

from icarus.model.digest import base_digest
from icarus.model.hub import resolve_model

SMOLLM2_DIGEST = "2694738fd4b9ee30849a3386842c36ee7e5c7b062ec9c65256a3f7a3e17e12b1"


def test_the_conversion_gives_the_same_weights_everywhere():
    assert base_digest(resolve_model("smollm2")) == SMOLLM2_DIGEST
