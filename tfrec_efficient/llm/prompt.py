"""`RecommendationPrompt`: what a language model is asked, as token ids and soft tokens."""

import re
import string
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes

_FIELD = re.compile(r"\{(user|history|candidates)\}")
LETTERS = string.ascii_uppercase + string.ascii_lowercase


def prompt_template(
    verb: str = "watch",
    past: str = "watched",
    noun: str = "movie",
    user: bool = True,
    candidates: bool = True,
) -> str:
    """Returns the paper's question, in the words of a trade.

    The paper has watch, watched, movie; play, played, game; and buy, bought, item.

    Args:
        verb: str. What users do. Defaults to `"watch"`.
        past: str. What they did. Defaults to `"watched"`.
        noun: str. What they do it with. Defaults to `"movie"`.
        user: bool. Whether a soft token stands for the user. Defaults to True.
        candidates: bool. Whether candidates are listed. Defaults to True.

    Returns:
        A template for `RecommendationPrompt`.

    Example:
    >>> from tfrec_efficient import llm
    >>> print(llm.prompt_template("play", "played", "game", user=False, candidates=False))
    This user has played {history} in the previous. The next game for this user to play is

    References:
        - Kim et al., KDD 2024, table 1 of the appendix; the code lacks a space after the first
          sentence, which is mended.
    """
    question = "{user} is a user representation. " if user else ""
    question += f"This user has {past} {{history}} in the previous. "
    if not candidates:
        return f"{question}The next {noun} for this user to {verb} is"
    return (
        f"{question}Recommend one next {noun} for this user to {verb} next from the following "
        f"{noun} title set, {{candidates}}. The recommendation is "
    )


class RecommendationPrompt:
    """Puts users' histories and candidates into words, and leaves room for soft tokens.

    Titles are split into tokens once; a prompt is then put together from whole arrays, inside of
    `tf.function` as well, so that an exported model takes ids of items. An item reads
    `"its title"` in double quotes, followed by its soft token; items are joined by commas. In what
    comes out, the id `-1 - k` stands for the soft token k of its row: 0 is the user, then come the
    places of the history shown, from the oldest, then the candidates.

    Line breaks in a title become spaces. Quotes in it stay. An item with an empty title reads `""`
    and is known by its soft token alone. Equal titles are told apart by their soft tokens only.

    Args:
        tokenizer: A tokenizer of keras-hub, or any object with `tokenize(list of str)`.
        titles: Sequence of str, the titles of the items `1, 2, ...`.
        template: str with `{history}`, and `{user}` and `{candidates}` if wanted, once each.
            Defaults to `prompt_template()`.
        history_length: int. How many of a user's latest items are shown. Defaults to 10.
        item_tokens: bool. Whether soft tokens follow titles. Defaults to True.
        lettered: bool. Whether candidates are numbered with letters, as `A: "its title"`.
            Defaults to False.

    Raises:
        ValueError: An argument breaks a rule above.

    Example:
    >>> from tfrec_efficient import llm
    >>> class Characters:
    ...     def tokenize(self, texts):
    ...         return [[ord(character) for character in text] for text in texts]
    >>> prompt = llm.RecommendationPrompt(Characters(), ["It", "Up"], "{user} saw {history}.")
    >>> prompt.token_ids([[0, 2]]).to_list()  # soft tokens: 0 the user, 1 a padding, 2 item 2
    [[-1, 32, 115, 97, 119, 32, 34, 85, 112, 34, -3, 46]]
    """

    def __init__(
        self,
        tokenizer: Any,
        titles: Any,
        template: str | None = None,
        history_length: int = 10,
        item_tokens: bool = True,
        lettered: bool = False,
    ) -> None:
        check_sizes(history_length=history_length)
        if isinstance(titles, str):
            raise ValueError(f"`titles` must be strings, one of each item. Received: {titles!r}")
        self.titles = list(titles)
        for item, title in enumerate(self.titles, 1):
            if not isinstance(title, str):
                raise ValueError(f"`titles` must be strings. Received: {title!r} of item {item}")
        if not self.titles:
            raise ValueError("`titles` must hold a title. Received: none")
        self.template = prompt_template() if template is None else template
        fields = _FIELD.findall(self.template)
        if fields.count("history") != 1 or len(set(fields)) != len(fields):
            raise ValueError(
                "`template` must have {history} once, and {user} and {candidates} at most once. "
                f"Received: template={self.template!r}"
            )
        if lettered and "candidates" not in fields:
            raise ValueError(
                "`lettered` needs {candidates} in `template`. "
                f"Received: template={self.template!r}"
            )
        self.history_length = history_length
        self.item_tokens = item_tokens
        self.lettered = lettered
        self.has_user = "user" in fields
        self.lists_candidates = "candidates" in fields
        self._pieces = [
            part if part in fields else _tokenize(tokenizer, [part])[0]
            for part in _FIELD.split(self.template)
            if part
        ]
        quoted = [f'"{" ".join(title.splitlines())}"' for title in self.titles]
        rows = [[], *_tokenize(tokenizer, quoted)]
        self._title_values = np.array([token for row in rows for token in row], np.int32)
        self._title_splits = np.cumsum([0, *map(len, rows)])
        self._comma = _tokenize(tokenizer, [","])[0]
        letters = _tokenize(tokenizer, [f"{letter}: " for letter in LETTERS]) if lettered else []
        widths = {len(row) for row in letters}
        if len(widths) > 1:
            raise ValueError(
                "`tokenizer` must split all letters into equally many tokens where `lettered`. "
                f"Received: {sorted(widths)} tokens"
            )
        self._letters = np.array(letters, np.int32)

    @property
    def item_count(self) -> int:
        """How many items have titles."""
        return len(self.titles)

    def shown(self, history: Any) -> tf.Tensor:
        """The latest `history_length` places of histories of shape `(batch, max_length)`."""
        return tf.convert_to_tensor(history)[:, -self.history_length :]

    def title_tokens(self, ids: Any) -> tf.RaggedTensor:
        """The tokens of the quoted titles of items of any shape; none for the padding, 0."""
        titles = tf.RaggedTensor.from_row_splits(
            tf.constant(self._title_values), tf.constant(self._title_splits), validate=False
        )
        return tf.gather(titles, ids)

    def token_ids(self, history: Any, candidates: Any = None) -> tf.RaggedTensor:
        """Puts prompts together.

        Args:
            history: Integers of shape `(batch, max_length)`: item ids, padded with 0.
            candidates: Integers of shape `(batch, candidates)`, padded with 0, where the template
                lists candidates; not looked at otherwise. Defaults to None.

        Returns:
            int32 `tf.RaggedTensor` of shape `(batch, (tokens))`.

        Raises:
            ValueError: The template lists candidates and there are none, or more than the 52
                letters where they are lettered; or ids are no integers.
            tf.errors.InvalidArgumentError: An item id is out of range, or a graph was not told how
                many candidates there are, and there are more than letters.
        """
        shown = self._checked("history", self.shown(history))
        batch, places = tf.shape(shown)[0], tf.shape(shown)[1]
        parts: list[Any] = []
        for piece in self._pieces:
            if piece == "user":
                parts.append(-tf.ones([batch, 1], tf.int32))
            elif piece == "history":
                parts.append(self._items(shown, 1, lettered=False))
            elif piece == "candidates":
                if candidates is None:
                    raise ValueError("`candidates` must be given. Received: candidates=None")
                listed = self._checked("candidates", tf.convert_to_tensor(candidates))
                parts.append(self._items(listed, 1 + places, self.lettered))
            else:
                parts.append(tf.tile(tf.constant([piece], tf.int32), [batch, 1]))
        # A dense part alone would make the result dense.
        return tf.concat([tf.zeros([batch, 0], tf.int32), *parts], axis=1)

    def longest(self, candidate_count: int = 0) -> int:
        """An upper bound of the tokens of a prompt, whatever the items."""
        fixed = sum(1 if isinstance(p, str) else len(p) for p in self._pieces)
        per_item = int(np.diff(self._title_splits).max()) + 1 + len(self._comma)
        per_letter = self._letters.shape[1] if self.lettered else 0
        listed = candidate_count if self.lists_candidates else 0
        return fixed + per_item * self.history_length + (per_item + per_letter) * listed

    def _items(self, ids: tf.Tensor, first_slot: Any, lettered: bool) -> tf.RaggedTensor:
        shape = tf.shape(ids)
        count = ids.shape[1] if ids.shape[1] is not None else shape[1]
        parts: list[Any] = []
        if lettered:
            message = f"`candidates` must be at most {len(LETTERS)} where they are lettered"
            if ids.shape[1] is not None and ids.shape[1] > len(LETTERS):
                raise ValueError(f"{message}. Received: {ids.shape[1]}")
            check = tf.debugging.assert_less_equal(count, len(LETTERS), message)
            with tf.control_dependencies([] if check is None else [check]):
                letters = tf.constant(self._letters)[tf.newaxis, :count]
            parts.append(tf.tile(letters, [shape[0], 1, 1]))
        parts.append(self.title_tokens(ids))
        if self.item_tokens:
            slots = -1 - (first_slot + tf.range(count))
            parts.append(tf.tile(slots[tf.newaxis, :, tf.newaxis], [shape[0], 1, 1]))
        comma = tf.constant([[self._comma]], tf.int32)
        parts.append(tf.tile(comma, [shape[0], count, 1]))
        items = tf.ragged.boolean_mask(tf.concat(parts, axis=2), ids > 0)
        return items.merge_dims(1, 2)[:, : -len(self._comma)]

    def _checked(self, name: str, ids: tf.Tensor) -> tf.Tensor:
        if not ids.dtype.is_integer:
            raise ValueError(f"`{name}` must be integers. Received: dtype {ids.dtype.name}")
        ids = tf.cast(ids, tf.int64)
        message = f"`{name}` must be in `[0, {self.item_count}]`"
        checks = [
            tf.debugging.assert_greater_equal(ids, tf.zeros([], ids.dtype), message),
            tf.debugging.assert_less_equal(ids, tf.cast(self.item_count, ids.dtype), message),
        ]
        with tf.control_dependencies([check for check in checks if check is not None]):
            return tf.identity(ids)

    def get_config(self) -> dict[str, Any]:
        """All arguments but the tokenizer, which belongs to the language model."""
        return {
            "titles": self.titles,
            "template": self.template,
            "history_length": self.history_length,
            "item_tokens": self.item_tokens,
            "lettered": self.lettered,
        }


def _tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    rows = tokenizer.tokenize(texts)
    if isinstance(rows, tf.RaggedTensor):
        rows = rows.to_list()
    return [np.asarray(row).astype(np.int32).tolist() for row in rows]


def unquoted(title: str) -> str:
    """A title as compared: without the outer quotes, runs of blanks, and capitals."""
    return " ".join(title.strip().removeprefix('"').removesuffix('"').split()).casefold()


def answer_in(text: str) -> str:
    """What a language model wrote between the outermost quotes of its first line, or that line."""
    line = text.strip().partition("\n")[0]
    inside = re.search('"(.*)"', line)
    return inside.group(1) if inside else line


def title_matches(
    answers: list[str], targets: list[str], titles: list[str]
) -> dict[str, npt.NDArray[np.bool_]]:
    """How written answers compare with titles.

    Args:
        answers: What a language model wrote, one string for each question.
        targets: The right titles.
        titles: All titles there are.

    Returns:
        dict of boolean arrays of shape `(questions,)`: `"exact"`, the answer is the title but for
        blanks and capitals; `"substring"`, the title occurs in the answer, which is what the
        authors of A-LLMRec count and which takes one of a series for another; `"valid"`, the
        answer is some title. Empty titles and answers match nothing.

    Raises:
        ValueError: `answers` and `targets` differ in length.
    """
    if len(answers) != len(targets):
        raise ValueError(
            "`answers` and `targets` must have equal lengths. "
            f"Received: {len(answers)} and {len(targets)}"
        )
    known = {unquoted(title) for title in titles} - {""}
    written = [unquoted(answer_in(answer)) for answer in answers]
    right = [unquoted(target) for target in targets]
    return {
        "exact": np.array([w == r != "" for w, r in zip(written, right, strict=True)], bool),
        "substring": np.array(
            [r != "" and r in unquoted(a) for a, r in zip(answers, right, strict=True)], bool
        ),
        "valid": np.array([w in known for w in written], bool),
    }
