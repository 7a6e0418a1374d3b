"""The screens of the workbench: Panel Viewers that work in a notebook cell and under a server."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
