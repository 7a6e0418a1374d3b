from .ask import AskHandbook as AskHandbook
from .chunking import ChunkingExplorer as ChunkingExplorer
from .eval_reports import EvalReports as EvalReports
from .guardrails import GuardrailPlayground as GuardrailPlayground
from .labelling import Labelling as Labelling
from .reranking import RerankingExplorer as RerankingExplorer
from .verdicts import JudgeBiasLab as JudgeBiasLab
