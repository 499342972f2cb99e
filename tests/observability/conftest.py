from services.conftest import base, make_system, specialists

__all__ = ["base", "make_system", "specialists"]
