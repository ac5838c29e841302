"""Processing in memory, emulated: exact values, and a model of time and energy."""

from tfrec_efficient.pim._dram import DramTimings as DramTimings
from tfrec_efficient.pim.pim_device import PimDevice as PimDevice
from tfrec_efficient.pim.pim_report import PimReport as PimReport
from tfrec_efficient.pim.pim_report import plot_roofline as plot_roofline
