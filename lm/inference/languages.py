"""Translation into a language that the request names.

A model that was trained here is told the language in words. The imported models M2M-100, NLLB, mBART and mBART-50 know
each language by a token, its code: a source stands beside the code of its language, and the translation begins with
the code of the language that is asked for.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence

from lm import tasks
from lm.config import Config
from lm.data.pairs import translation_source
from lm.errors import InputError
from lm.inference.prompts import Writing, require_source
from lm.inference.requests import Request, RequestError, field
from lm.tokenizers import languages
from lm.tokenizers.tokenizer import Tokenizer

_CODES = frozenset((*languages.MBART50, *languages.NLLB, *languages.M2M100, *languages.WMT21))


@dataclasses.dataclass(frozen=True)
class Languages:
    """The codes of a tokenizer: `{"de": 128020, ...}` or `{"deu_Latn": 256042, ...}`; empty if it has none."""

    ids: dict[str, int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Languages":
        pieces = {int(index): tokenizer.id_to_piece(int(index)).strip("_") for index in tokenizer.special_ids}
        found = {piece: index for index, piece in pieces.items() if piece in _CODES}
        return cls(found if len(found) > 1 else {})

    def choose(self, asked: str) -> tuple[int | None, int]:
        """Returns the ids of the codes of the source's language, None where it is not said, and of the target's.

        Args:
            asked: the target, such as `deu_Latn`, or source and target, such as `fra_Latn-deu_Latn`.

        Raises:
            RequestError: the model does not know a language.
        """
        source, _, target = asked.rpartition("-")
        for name in filter(None, (source, target)):
            if name not in self.ids:
                raise RequestError(f"language is {asked!r}; accepted: {self.shown}.")
        return self.ids.get(source), self.ids[target]

    @property
    def shown(self) -> str:
        """Some of the names, and how many there are."""
        return f"{', '.join(list(self.ids)[:8])}, ... ({len(self.ids)} languages)"

    def replace(self, frame: Sequence[int], source: int | None) -> list[int]:
        """Returns special tokens around a text, with the code of its language in the place of another code."""
        codes = set(self.ids.values())
        return [source if source is not None and index in codes else index for index in frame]


class Translate(Writing):
    """Translates `text` into the `language` of the request, or else `language`, or else the run's first language.

    An imported model with codes of languages takes one of them, or two: `fra_Latn-deu_Latn` translates from the first.
    Without one, it writes the language that its folder names. If the folder names none, every request has to.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        max_length: int,
        language: str = "",
        forced_bos_token_id: int = -1,
    ):
        """Checks the model as `Writing` does, and the default `language`.

        Raises:
            InputError: the model was not trained with `language`, or has no encoder.
        """
        super().__init__(config, tokenizer, max_length, forced_bos_token_id)
        require_source(config, "translate")
        self.language, self.codes = language, Languages.of(tokenizer)
        codes, start = self.codes.ids, config.generation.decoder_start_token_id
        is_trained_here = bool(config.languages) or tasks.get(config.objective.name).reads == "pairs"
        has_target = forced_bos_token_id >= 0 or start in codes.values()
        self._needs_language = bool(codes) and not is_trained_here and not has_target
        try:
            self._check(language)
        except RequestError as error:
            raise InputError(str(error)) from None

    def source(self, request: Request) -> str:
        text, asked, known = field(request, "text"), self._asked(request), self.config.languages
        return translation_source(text, asked or known[0]) if known else text

    def around(self, request: Request) -> tuple[list[int], list[int]]:
        before, after = super().around(request)
        source = self._codes(request)[0]
        return self.codes.replace(before, source), self.codes.replace(after, source)

    def begin(self, request: Request) -> list[int]:
        target = self._codes(request)[1]
        return self.prompt if target is None else [target]

    def _asked(self, request: Request) -> str:
        """Returns the language that a request asks for; empty for none.

        Raises:
            RequestError: the model does not know it, or would write any language without one.
        """
        asked = field(request, "language", self.language) if isinstance(request, Mapping) else self.language
        if not asked and self._needs_language:
            raise RequestError(f"no language is given to translate into; accepted: {self.codes.shown}.")
        self._check(asked)
        return asked

    def _check(self, asked: str) -> None:
        known = self.config.languages
        if asked and not known and self.codes.ids:
            self.codes.choose(asked)
        elif asked and asked not in known:
            accepted = f"give one of {', '.join(known)}" if known else "this model has none, leave it out"
            raise RequestError(f"language is {asked!r}; {accepted}.")

    def _codes(self, request: Request) -> tuple[int | None, int | None]:
        """Returns the codes of the languages of a request's source and target; None where it names none.

        Raises:
            RequestError: the decoder always begins with the code of another language, as mBART's after fine-tuning.
        """
        asked, start = self._asked(request), self.config.generation.decoder_start_token_id
        if not asked or self.config.languages:
            return None, None
        source, target = self.codes.choose(asked)
        if start not in self.codes.ids.values():
            return source, target
        if target != start:
            raise RequestError(f"language is {asked!r}; this model always writes {self.tokenizer.id_to_piece(start)}.")
        return source, None


def say_default(config: Config, language: str) -> None:
    """Says on stderr into which of several trained languages a text is translated, if `language` names none."""
    if len(config.languages) > 1 and not language:
        first, *others = config.languages
        choice = f"--language, or a request's own, chooses {' or '.join(others)}"
        print(f"translating into {first} where no language is given; {choice}", file=sys.stderr, flush=True)
