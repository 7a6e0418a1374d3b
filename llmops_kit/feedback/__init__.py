"""Feedback: every interaction and what users thought of it, in a store that loses no write.

The names are loaded when they are used; `__init__.pyi` beside this file lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
