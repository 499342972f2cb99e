from training.conftest import _one_thread, base, data

__all__ = ["_one_thread", "base", "data"]
