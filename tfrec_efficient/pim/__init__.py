"""Processing in memory, emulated: exact values, and a model of time and energy."""

from tfrec_efficient.pim._dram import DramTimings as DramTimings
from tfrec_efficient.pim.pim_device import PimDevice as PimDevice
from tfrec_efficient.pim.pim_embedding_bag import PimEmbeddingBag as PimEmbeddingBag
from tfrec_efficient.pim.pim_monitor import PimMonitor as PimMonitor
from tfrec_efficient.pim.pim_report import PimReport as PimReport
from tfrec_efficient.pim.pim_report import plot_roofline as plot_roofline
from tfrec_efficient.pim.pim_report import summary_table as summary_table
from tfrec_efficient.pim.planner import PimPlan as PimPlan
from tfrec_efficient.pim.planner import plan as plan
