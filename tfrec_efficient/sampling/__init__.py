"""What to show the model next, chosen by what it predicted before."""

from tfrec_efficient.sampling._draw import Draws as Draws
from tfrec_efficient.sampling._draw import Pass as Pass
from tfrec_efficient.sampling._memory import LabelHistory as LabelHistory
from tfrec_efficient.sampling._memory import LastLoss as LastLoss
from tfrec_efficient.sampling._memory import Memory as Memory
from tfrec_efficient.sampling._memory import ProbabilityMoments as ProbabilityMoments
from tfrec_efficient.sampling.batch_selector import BatchSelector as BatchSelector
from tfrec_efficient.sampling.selectors.active_bias import ActiveBias as ActiveBias
from tfrec_efficient.sampling.selectors.info_batch import InfoBatch as InfoBatch
from tfrec_efficient.sampling.selectors.online_batch_selection import (
    OnlineBatchSelection as OnlineBatchSelection,
)
from tfrec_efficient.sampling.selectors.random_batches import RandomBatches as RandomBatches
from tfrec_efficient.sampling.selectors.recency_bias import RecencyBias as RecencyBias
from tfrec_efficient.sampling.selectors.selective_backprop import (
    SelectiveBackprop as SelectiveBackprop,
)
from tfrec_efficient.sampling.selectors.self_paced import SelfPaced as SelfPaced
