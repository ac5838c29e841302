"""Ways in which a language model answers which candidate comes next."""

from tfrec_efficient.llm.answers._answer import Answer as Answer
from tfrec_efficient.llm.answers.candidate_likelihood import (
    CandidateLikelihood as CandidateLikelihood,
)
from tfrec_efficient.llm.answers.retrieval_head import RetrievalHead as RetrievalHead
from tfrec_efficient.llm.answers.title_generation import TitleGeneration as TitleGeneration
from tfrec_efficient.llm.answers.verbalizer import Verbalizer as Verbalizer
