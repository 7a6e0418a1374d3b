from .guard import Guard as Guard
from .guard import GuardContext as GuardContext
from .guard import highlighted as highlighted
