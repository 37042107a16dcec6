"""What one call of `Session.generate` tells of itself."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lexico_client._results import PutReport
from lexico_proto.errors import Cancelled, DeadlineExpired, LexicoError


@dataclass(frozen=True)
class PromptReport:
    """What came of one prompt's pages."""

    tokens: int
    """Of the prompt, without padding."""
    reloaded_tokens: int
    """Leading ones whose keys and values came from the service; 0 for a miss."""
    pages: int
    """That they came in."""
    matched_pages: int
    """Leading pages that the service had said it holds."""
    reason: LexicoError | None
    """What made it less than matched, or kept the service from being asked; None if nothing did:
    then there are no further pages of this prompt."""
    familiar_tokens: int
    """Leading tokens that it shares with a sequence that this session has had before. Where a
    conversation goes on and this is less than its last turn, the chat template renders earlier
    turns anew, or in other words: pages are found up to there."""

    def __str__(self) -> str:
        share = f"{self.reloaded_tokens} of {self.tokens} tokens reloaded in {self.pages} pages"
        return share if self.reason is None else f"{share}: {self.reason}"


@dataclass(frozen=True)
class OffloadOutcome:
    """What came of offloading one sequence: a report, or an error."""

    report: PutReport | None
    error: LexicoError | None


@dataclass(frozen=True)
class GenerateReport:
    """What one call reloaded, computed and offloads behind itself."""

    prompts: tuple[PromptReport, ...]
    """Of each prompt of the batch."""
    prefilled_tokens: int
    """Tokens that were computed before the first new one, padding among them."""
    load_seconds: float
    """That the reload took, of all prompts."""
    _offloads: Future[tuple[OffloadOutcome, ...]]

    @property
    def reloaded_tokens(self) -> int:
        """Of all prompts."""
        return sum(prompt.reloaded_tokens for prompt in self.prompts)

    @property
    def offloaded(self) -> bool:
        """Whether the offload has ended, well or not."""
        return self._offloads.done()

    def offloads(self, timeout: float | None = None) -> tuple[OffloadOutcome, ...]:
        """Waits for the offload, which runs behind the call.

        Args:
            timeout: seconds; None for as long as it takes, which has a bound: `Timeouts.offload`
                for each sequence.

        Returns:
            An outcome for each sequence. Sequences that have no full page have reports of none.

        Raises:
            DeadlineExpired: it has not ended within `timeout`.
        """
        try:
            return self._offloads.result(timeout)
        except CancelledError:
            closed = Cancelled("the session was closed before the offload had begun")
            return (OffloadOutcome(None, closed),)
        except TimeoutError as error:
            raise DeadlineExpired(f"the offload has not ended within {timeout:g} s") from error

    def __str__(self) -> str:
        lines = [f"prompt {row}: {prompt}" for row, prompt in enumerate(self.prompts)]
        return "\n".join([*lines, f"{self.prefilled_tokens} tokens prefilled"])


@dataclass(frozen=True)
class Generated:
    """What `generate` gave, and how it came about."""

    output: Any
    """What `generate` of transformers returns for these arguments: a tensor, or with
    `return_dict_in_generate=True` an object with `sequences`."""
    report: GenerateReport
    prompt_columns: int
    """Columns of the prompts in the sequences, padding among them."""

    @property
    def sequences(self) -> Tensor:
        """`[sequences, columns]`: padding, prompt, answer."""
        sequences: Tensor = getattr(self.output, "sequences", self.output)
        return sequences

    @property
    def answers(self) -> Tensor:
        """`[sequences, new columns]`: what follows the prompts. Shorter answers are padded."""
        return self.sequences[:, self.prompt_columns :]
