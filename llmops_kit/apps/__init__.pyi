from .ask import AskHandbook as AskHandbook
from .chunking import ChunkingExplorer as ChunkingExplorer
