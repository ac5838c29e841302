import numpy as np
import tensorflow as tf

from tfrec_efficient.llm.answers._answer import answer_tokens
from tfrec_efficient.llm.answers._answer import cross_entropies


def test_padding_among_candidates_has_no_part_in_the_loss():
    scores = np.array([[1.0, 2.0, 50.0]], np.float32)
    losses = cross_entropies(tf.constant(scores), [0], np.array([[4, 5, 0]]))
    np.testing.assert_allclose(losses, [np.log(1 + np.e)], rtol=1e-5)


def test_an_answer_is_the_quoted_title_and_an_end(house):
    recommender = house.recommender()
    rows = answer_tokens(recommender, np.array([2, 3])).to_list()
    assert ["".join(map(chr, row)) for row in rows] == ['"Up"\x03', '"Heat"\x03']
