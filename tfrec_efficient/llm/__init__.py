"""Collaborative knowledge for a frozen language model.

In the order in which a recommender is made: `sequence_dataset` and a CF backbone, `CFAligner`
(stage 1), `SoftPromptLM`, `RecommendationPrompt`, `CFLLMRecommender` with an answer (stage 2).
"""

from tfrec_efficient.llm.answers import Answer as Answer
from tfrec_efficient.llm.answers import CandidateLikelihood as CandidateLikelihood
from tfrec_efficient.llm.answers import RetrievalHead as RetrievalHead
from tfrec_efficient.llm.answers import TitleGeneration as TitleGeneration
from tfrec_efficient.llm.answers import Verbalizer as Verbalizer
from tfrec_efficient.llm.backbones import CFBackbone as CFBackbone
from tfrec_efficient.llm.backbones import GRU4Rec as GRU4Rec
from tfrec_efficient.llm.backbones import MatrixFactorization as MatrixFactorization
from tfrec_efficient.llm.backbones import NextItNet as NextItNet
from tfrec_efficient.llm.backbones import SASRec as SASRec
from tfrec_efficient.llm.backbones import sequence_dataset as sequence_dataset
from tfrec_efficient.llm.candidate_questions import CandidateQuestions as CandidateQuestions
from tfrec_efficient.llm.cf_aligner import CFAligner as CFAligner
from tfrec_efficient.llm.cf_aligner import alignment_dataset as alignment_dataset
from tfrec_efficient.llm.cf_llm_recommender import CFLLMRecommender as CFLLMRecommender
from tfrec_efficient.llm.cf_projection import CFProjection as CFProjection
from tfrec_efficient.llm.local_models import LocalTokenizer as LocalTokenizer
from tfrec_efficient.llm.local_models import TextEncoder as TextEncoder
from tfrec_efficient.llm.local_models import minilm_l6 as minilm_l6
from tfrec_efficient.llm.local_models import smollm2_135m_instruct as smollm2_135m_instruct
from tfrec_efficient.llm.prompt import RecommendationPrompt as RecommendationPrompt
from tfrec_efficient.llm.prompt import prompt_template as prompt_template
from tfrec_efficient.llm.prompt import title_matches as title_matches
from tfrec_efficient.llm.soft_prompt_lm import SoftPromptLM as SoftPromptLM
