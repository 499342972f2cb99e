import torch
from icarus_benchmarks.engine.in_process import InProcessEngine
from icarus_benchmarks.model_folder import model_folder
from icarus_benchmarks.model_shapes import SHAPES, ModelShape, write_random_model

from icarus.cli.bench.flags import MODEL_SHAPES
from icarus.config import Config
from icarus.model.config import ModelConfig
from icarus.model.loading import load_model
from icarus.text.served_model import load_served_model


def test_the_flag_offers_what_is_known():
    assert tuple(SHAPES) == MODEL_SHAPES


def test_a_random_model_loads_and_runs(tmp_path):
    for tied in (True, False):
        shape = ModelShape(32, 48, 2, 4, 2, 8, vocab_size=120, context_length=64, tied=tied)
        folder = write_random_model(tmp_path / str(tied), shape)
        config = ModelConfig.from_folder(folder)
        assert (config.num_layers, config.num_kv_heads, config.head_dim, config.tied) == (2, 2, 8, tied)
        engine = InProcessEngine(load_model(folder), Config(), num_requests=1, tokens_per_request=24)
        engine.submit(range(20), None, max_tokens=2)
        assert engine.finish() > 0


def test_a_random_model_has_a_tokenizer_that_the_gateway_takes(tmp_path):
    folder = write_random_model(tmp_path / "m", ModelShape(32, 48, 1, 4, 2, 8, 300, 64, True))
    tokenizer = load_served_model(folder, "m").tokenizer
    assert max(ids := tokenizer.encode("naïve <tokens>\n")) < 256 and tokenizer.decode(ids) == "naïve <tokens>\n"
    assert tokenizer.decode(range(255, 300)).endswith("<298><299>")


def test_random_weights_stay_as_long_as_they_are_measured(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", ModelShape(32, 48, 1, 4, 2, 8, 120, 64, True))
    with model_folder("/nowhere", "tiny", lambda line: None) as folder:
        assert folder.name == "tiny" and (folder / "config.json").is_file()
    assert not folder.exists()


def test_random_rows_differ(tmp_path):
    weights = load_model(write_random_model(tmp_path / "m", ModelShape(32, 48, 1, 4, 2, 8, 120, 64, True)))._embedding
    assert len(torch.unique(weights.float(), dim=0)) == 120 and weights.float().std() > 0.01
