"""C++ ops, each with a pure-TensorFlow reference of the same signature, but for tables in files.

`TFREC_OPS=python` or `TFREC_OPS=native` forces one of the two; without it the native library is
used where it was built. Call `load_all()` before `tf.saved_model.load` of a model that was saved
with native ops.
"""

from tfrec_efficient.ops._loader import library_path as library_path
from tfrec_efficient.ops._loader import load_all as load_all
from tfrec_efficient.ops.casting import cast_indices as cast_indices
from tfrec_efficient.ops.gather_reduce import coalesce as coalesce
from tfrec_efficient.ops.gather_reduce import gather_reduce as gather_reduce
from tfrec_efficient.ops.gather_reduce import gather_reduce_many as gather_reduce_many
from tfrec_efficient.ops.neighbourhood import choose_by_own_gain as choose_by_own_gain
from tfrec_efficient.ops.neighbourhood import choose_over_graph as choose_over_graph
from tfrec_efficient.ops.neighbourhood import neighbour_graph as neighbour_graph
from tfrec_efficient.ops.pim import pim_gather_reduce as pim_gather_reduce
from tfrec_efficient.ops.pim import pim_reports as pim_reports
from tfrec_efficient.ops.pim import pim_scatter_update as pim_scatter_update
from tfrec_efficient.ops.row_store import mapped_rows as mapped_rows
from tfrec_efficient.ops.row_update import row_update as row_update
