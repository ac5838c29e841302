"""What all tests share: two logical CPUs, both implementations of the ops, no silent skips."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
import tensorflow as tf

# Two, so that tests can use tf.distribute.MirroredStrategy. Must come before TensorFlow starts up.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

from tfrec_efficient.testing import ops as ops_testing  # noqa: E402

# With pytest's import mode tests are no packages, so a fixture of another folder is loaded here.
_CLIENT = Path(__file__).parent / "serving_client" / "client.py"
_spec = importlib.util.spec_from_file_location("serving_client", _CLIENT)
_serving_client = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_serving_client)
saved_model_client = _serving_client.saved_model_client


@pytest.fixture(params=ops_testing.implementations())
def implementation(request):
    """Runs a test on the native ops, then on the references."""
    with ops_testing.implementation(request.param):
        yield request.param


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (name != ops_testing.implementations()[0]))
        for name in ops_testing.implementations()
    ]
)
def model_implementation(request):
    """For tests that train or save whole models, where the references take long."""
    with ops_testing.implementation(request.param):
        yield request.param


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """On CI nothing that a test needs is missing, so a skipped test is a failure there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # one of several processes: the first one sees what all did
        return
    skipped = reporter.stats.get("skipped", [])
    if os.environ.get("CI") and skipped and exitstatus == 0:
        reporter.write_line(f"{len(skipped)} skipped tests: a skip is a failure on CI", red=True)
        session.exitstatus = 1
