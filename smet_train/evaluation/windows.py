"""Windows of tokens over a text, up to its last token, and the bytes of text that they hold."""

from collections.abc import Iterable, Iterator

from smet_train.data.tokenizer import TextTokenizer


class TextWindows(Iterable[list[int]]):
    """Windows of up to ``sequence_tokens + 1`` ids over documents, cut as in training; the last one may be shorter.

    Documents follow one another, each ended by the end-of-text token. A window begins with the last token of the one
    before it (the first with an end-of-text token), so every token is a target once.

    Attributes:
        tokens, documents, text_bytes: targets, documents and UTF-8 bytes of text in the windows given so far; a
            document that ``max_tokens`` cuts counts as one, with the bytes of what its tokens stand for.
    """

    def __init__(
        self, documents: Iterable[str], tokenizer: TextTokenizer, sequence_tokens: int, max_tokens: int | None
    ) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._sequence_tokens = sequence_tokens
        self._max_tokens = max_tokens
        self.tokens = self.documents = self.text_bytes = 0

    def __iter__(self) -> Iterator[list[int]]:
        pending = [self._tokenizer.eos_id]
        for document in self._documents:
            pending += self._counted(document)
            start = 0
            while len(pending) - start > self._sequence_tokens:
                yield pending[start : start + self._sequence_tokens + 1]
                start += self._sequence_tokens
            pending = pending[start:]
            if self.tokens == self._max_tokens:
                break
        if len(pending) > 1:
            yield pending

    def _counted(self, document: str) -> list[int]:
        ids = [*self._tokenizer.encode(document), self._tokenizer.eos_id]
        n_bytes = len(document.encode("utf-8", "surrogatepass"))
        if self._max_tokens is not None and len(ids) > self._max_tokens - self.tokens:
            ids, sizes = self._tokenizer.measure(document)
            ids = ids[: self._max_tokens - self.tokens]
            n_bytes = sum(sizes[: len(ids)])
        self.text_bytes += n_bytes
        self.tokens += len(ids)
        self.documents += 1
        return ids


def cut_windows(windows: Iterable[list[int]], max_tokens: int | None) -> list[list[int]]:
    """The first of ``windows`` with ``max_tokens`` targets together; the last one is cut where need be."""
    kept: list[list[int]] = []
    left = max_tokens
    for window in windows:
        if left is not None:
            window = window[: left + 1]
            left -= len(window) - 1
        if len(window) > 1:
            kept.append(window)
    return kept
