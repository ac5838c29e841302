"""Test harnesses for layers, ops and dataset transforms, for this package and for yours."""

from tfrec_efficient.testing.dataset_transforms import (
    run_dataset_transform_test as run_dataset_transform_test,
)
from tfrec_efficient.testing.layers import run_layer_test as run_layer_test
from tfrec_efficient.testing.ops import run_op_test as run_op_test
