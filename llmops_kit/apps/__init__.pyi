from .ask import AskHandbook as AskHandbook
from .chunking import ChunkingExplorer as ChunkingExplorer
from .reranking import RerankingExplorer as RerankingExplorer
from .verdicts import JudgeBiasLab as JudgeBiasLab
