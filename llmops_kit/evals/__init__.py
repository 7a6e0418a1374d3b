"""Evals: cases, metrics, runs that resume, reports with intervals, judges and their bias.

The names are loaded when they are used; `__init__.pyi` beside this file lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
