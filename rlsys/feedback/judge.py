"""The common base of judges that write text: one user turn per response, asked `num_critiques` times, read by `read`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rlsys.asking.prompts import check_template, judge_prompt
from rlsys.contracts import Asking
from rlsys.errors import ConfigError
from rlsys.records import Ask, Completion, Critique, Generation, RolloutGroup, Sampling, Verdict
from rlsys.seeding import child_seed


@dataclass(kw_only=True)
class Judge:
    """Base of the feedbacks whose judge writes a text; a subclass adds `read` and, where needed, the tokens that end
    the text.
    """

    roles: ClassVar[tuple[str, ...]] = ("judge",)

    template: str
    """Template of the judge's user turn, with `{question}` and `{answer}`."""
    num_critiques: int = 1
    """Critiques per response; the response's score is their mean."""
    temperature: float = 0.0
    max_tokens: int = 256
    """Longest critique, tokens."""
    seed: int | None = None
    """Root of the seeds of sampled critiques; `null` takes the run's seed."""

    def __post_init__(self) -> None:
        check_template("feedback.template", self.template, "question", "answer")
        for name in ("num_critiques", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"feedback.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"feedback.temperature must be finite and at least 0, got {self.temperature}")
        if self.num_critiques > 1 and self.temperature == 0:
            raise ConfigError(
                f"feedback.num_critiques is {self.num_critiques} at feedback.temperature 0: all would be the same; "
                "ask for one critique or sample at a temperature above 0"
            )

    def read(self, completion: Completion) -> float | None:
        """The score in a critique; `None` if it cannot be read."""
        raise NotImplementedError

    def judge(self, group: RolloutGroup) -> Asking[tuple[Verdict, ...]]:
        """One verdict per response; critiques that were not delivered or cannot be read are counted as failed.

        The judge is asked once per distinct text: responses with equal texts (sampled at two temperatures, for example) get the
        same verdict.
        """
        texts = list(dict.fromkeys(response.text for response in group.responses))
        generations = yield [self._ask(group, text) for text in texts]
        verdicts = dict(zip(texts, map(self._verdict, generations), strict=True))
        return tuple(verdicts[response.text] for response in group.responses)

    def _ask(self, group: RolloutGroup, text: str) -> Ask:
        prompt = judge_prompt(self.template, group.prompt, text)
        seed = child_seed(self.seed or 0, "judge", group.round, prompt.id)
        return Ask(role="judge", prompt=prompt, sampling=self._sampling(seed))

    def _verdict(self, generation: Generation) -> Verdict:
        critiques = tuple(map(self._critique, generation.completions))
        num_read = sum(critique.score is not None for critique in critiques)
        return Verdict.of_critiques(critiques, failed=self.num_critiques - num_read)

    def _critique(self, completion: Completion) -> Critique:
        score = self.read(completion)
        if score is not None and not math.isfinite(score):
            score = None
        return Critique(text=completion.text.strip(), score=score)

    def _sampling(self, seed: int) -> Sampling:
        return Sampling(
            num_samples=self.num_critiques, temperature=self.temperature, max_tokens=self.max_tokens, seed=seed
        )
