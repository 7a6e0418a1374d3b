"""Guardrails: checks on the way in and out of a model, a chain of them, thresholds with a promise.

The names are loaded when they are used; `__init__.pyi` beside this file lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
