"""The text of a sequence while it is written, as a client that reads a stream sees it. Nothing here needs jax."""

from collections.abc import Sequence

import numpy as np

from lm.inference.prompts import until_end, written_text
from lm.tokenizers.tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


class GrowingText:
    """Turns tokens into text piece by piece. The pieces together are the text of all tokens.

    A piece that may still change is held back: the first bytes of a character, white space at the end, and the
    beginning of a stop string.

    Attributes:
        text: all of it so far, without a stop string and what follows it.
        ids: the tokens so far.
        stopped: whether a stop string has come.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), ends: Sequence[int] = ()):
        self.text, self.ids, self.stopped = "", np.zeros(0, np.int32), False
        self._tokenizer, self._stop, self._sent = tokenizer, stop, ""
        self._ends = ends or (tokenizer.special.sep,)

    def add(self, tokens: np.ndarray) -> str:
        """Returns the text that is certain after some more tokens, without what was returned before."""
        if self.stopped:
            return ""
        self.ids = np.concatenate([self.ids, tokens])
        self.text = written_text(self._tokenizer, self.ids, self._ends)
        found = [place for stop in self._stop if (place := self.text.find(stop)) >= 0]
        if found:
            self.stopped, self.text = True, self.text[: min(found)]
            return self._send(self.text)
        return self._send(self.text[: len(self.text) - self._uncertain()])

    def finish(self) -> str:
        """Returns the rest of the text: no more tokens will come."""
        return self._send(self.text)

    @property
    def ended(self) -> bool:
        """Whether the text ended by itself, and not for its length."""
        return self.stopped or len(until_end(self.ids, self._ends)) < len(self.ids)

    def _uncertain(self) -> int:
        held = len(self.text) - len(self.text.rstrip(_INCOMPLETE).rstrip())
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self.text)), held, -1):
                if self.text.endswith(stop[:length]):
                    held = length
                    break
        return held

    def _send(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        new, self._sent = text[len(self._sent) :], text
        return new


def begin(before: str, after: str, piece: str) -> int:
    """Returns the place in a text at which a token begins.

    A character that several tokens spell belongs to each of them. White space at the end of a text is not told before
    the next token, though it belongs to the token before.

    Args:
        before, after: the text without the token, and with it.
        piece: what the token spells, with its own white space at the front.
    """
    has_more = after.startswith(before) and after[len(before) :].strip(_INCOMPLETE)
    place = len(before if has_more else before.rstrip(_INCOMPLETE))
    gained = after[place:]
    late = (len(gained) - len(gained.lstrip())) - (len(piece) - len(piece.lstrip()))
    return place + max(0, late)
