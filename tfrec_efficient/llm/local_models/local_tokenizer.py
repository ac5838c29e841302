"""`LocalTokenizer`: a tokenizer in a file of the package tokenizers."""

from pathlib import Path
from typing import Any

from tfrec_efficient.embedding._bag_layer import check_sizes


class LocalTokenizer:
    """Reads a `tokenizer.json`.

    Args:
        path: The file.
        end_token: str or None. The token that ends an answer. Defaults to None.

    Raises:
        ImportError: The package tokenizers is missing.
        ValueError: There is no such token.
    """

    def __init__(self, path: Path, end_token: str | None = None) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError("pip install 'tfrec-efficient[llm]' brings tokenizers.") from error
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self.end_token_id = None
        if end_token is not None:
            self.end_token_id = self._tokenizer.token_to_id(end_token)
            if self.end_token_id is None:
                raise ValueError(f"`end_token` must be a token. Received: end_token={end_token!r}")

    def truncate(self, max_length: int) -> None:
        """Cuts what is tokenized from now on to so many tokens, special ones included."""
        check_sizes(max_length=max_length)
        self._tokenizer.enable_truncation(max_length)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts, one list for each."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def detokenize(self, ids: Any) -> str:
        """The text of ids, special tokens left out."""
        return self._tokenizer.decode([int(token) for token in ids])

    def vocabulary_size(self) -> int:
        """How many tokens there are."""
        return self._tokenizer.get_vocab_size()
