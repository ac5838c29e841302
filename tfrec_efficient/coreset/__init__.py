"""What to keep before training: selectors of a coreset, filters of datasets, and learners."""

from tfrec_efficient.coreset.by_geometry.herding import Herding as Herding
from tfrec_efficient.coreset.by_geometry.k_center_greedy import KCenterGreedy as KCenterGreedy
from tfrec_efficient.coreset.by_geometry.moderate import Moderate as Moderate
from tfrec_efficient.coreset.by_geometry.self_supervised_prototypes import (
    SelfSupervisedPrototypes as SelfSupervisedPrototypes,
)
from tfrec_efficient.coreset.by_neighbourhood.prune4rel import Prune4Rel as Prune4Rel
from tfrec_efficient.coreset.by_score.forgetting import Forgetting as Forgetting
from tfrec_efficient.coreset.by_score.gra_nd import GraNd as GraNd
from tfrec_efficient.coreset.by_score.label_quality import LabelQuality as LabelQuality
from tfrec_efficient.coreset.by_score.margin import Margin as Margin
from tfrec_efficient.coreset.by_score.small_loss import SmallLoss as SmallLoss
from tfrec_efficient.coreset.by_score.uniform import Uniform as Uniform
from tfrec_efficient.coreset.coreset_selector import CoresetSelector as CoresetSelector
from tfrec_efficient.coreset.filters import keep as keep
from tfrec_efficient.coreset.filters import select as select
from tfrec_efficient.coreset.filters import with_index as with_index
from tfrec_efficient.coreset.learners.divide_mix import DivideMix as DivideMix
from tfrec_efficient.coreset.learners.elr_plus import ELRPlus as ELRPlus
from tfrec_efficient.coreset.learners.sop_plus import SOPPlus as SOPPlus
from tfrec_efficient.coreset.scores.forgetting_counter import ForgettingCounter as ForgettingCounter
from tfrec_efficient.coreset.scores.warmup_scores import WarmupScores as WarmupScores
from tfrec_efficient.coreset.scores.warmup_scores import warmup_scores as warmup_scores
