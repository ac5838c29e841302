"""Loads an exported SavedModel in a process of its own and answers a file of requests.

    python examples/serve.py MODEL_DIRECTORY REQUESTS.npz PREDICTIONS.npy

The arrays in REQUESTS.npz are named as the inputs of the signature `predict`. TensorFlow
Serving, which has the ops linked in, does the same behind a port; see BUILD.
"""

import sys

import numpy as np
import tensorflow as tf

import tfrec_efficient as tfrec

model_directory, requests, predictions = sys.argv[1:]
tfrec.ops.load_all()  # a SavedModel names its custom ops, it does not carry them
predict = tf.saved_model.load(model_directory).signatures["predict"]
with np.load(requests) as arrays:
    inputs = {name: tf.constant(array) for name, array in arrays.items()}
np.save(predictions, predict(**inputs)["probability"])
