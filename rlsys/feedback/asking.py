"""What every judge that writes shares: one user turn per distinct text of a group, asked `num_critiques` times, read by
`read`."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rlsys.contracts import Request
from rlsys.errors import ConfigError
from rlsys.records import Completion, Critique, Generation, Prompt, RolloutGroup, Sampling, Turn, Verdict
from rlsys.seeding import child_seed

_SLOT = re.compile(r"\{(question|answer)\}")


def judge_prompt(template: str, prompt: Prompt, answer: str) -> Prompt:
    """What a judge is asked about an answer: the same images and one user turn.

    Training a critic and asking it must both go through here, so that it sees in use what it saw in training.

    Args:
        template: text with the places `{question}` and `{answer}`; other braces stay as they are. The question of a
            conversation of several turns is the whole conversation, a line per turn.
    """
    conversation = "\n".join(f"{turn.role}: {turn.text}" for turn in prompt.turns)
    question = prompt.question if len(prompt.turns) == 1 else conversation
    values = {"question": question, "answer": answer}
    # One pass, so that an answer which itself spells "{question}" is shown as it is.
    text = _SLOT.sub(lambda slot: values[slot.group(1)], template)
    digest = hashlib.sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Prompt(id=f"{prompt.id}/judge/{digest}", turns=(Turn(role="user", text=text),), images=prompt.images)


@dataclass(kw_only=True)
class Judge:
    """Base of the judges that answer in text; a judge adds `read` and, where needed, `stop_token` and `score_token`."""

    needs_engine: ClassVar[bool] = True

    template: str
    """The judge's user turn, with `{question}` and `{answer}`."""
    num_critiques: int = 1
    """Critiques per answer; the answer's score is their mean."""
    temperature: float = 0.0
    max_tokens: int = 256
    """Longest critique, tokens."""
    seed: int | None = None
    """Root of the seeds of sampled critiques; `null` in a run is the run's."""

    def __post_init__(self) -> None:
        missing = [slot for slot in ("{question}", "{answer}") if slot not in self.template]
        if missing:
            raise ConfigError(f"feedback.template must contain {' and '.join(missing)}, got {self.template!r}")
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

    def read(self, completion: Completion) -> Critique | None:
        """The critique in a judge's answer; `None` if it cannot be read."""
        raise NotImplementedError

    def requests(self, group: RolloutGroup) -> list[Request]:
        """One request per distinct text, in order of first appearance: answers that read the same (of two temperatures, say)
        get the same verdict."""
        prompts = [judge_prompt(self.template, group.prompt, text) for text in _texts(group)]
        root = self.seed or 0
        return [(prompt, self._sampling(child_seed(root, "judge", group.round, prompt.id))) for prompt in prompts]

    def verdicts(self, group: RolloutGroup, generations: Sequence[Generation]) -> tuple[Verdict, ...]:
        """One verdict per rollout; critiques that did not come or cannot be read are counted as failed.

        Raises:
            ValueError: there is not one generation per distinct text.
        """
        texts = _texts(group)
        if len(generations) != len(texts):
            raise ValueError(
                f"prompt {group.prompt.id!r}: {len(texts)} distinct answers but {len(generations)} judge generations"
            )
        verdicts = dict(zip(texts, map(self._verdict, generations), strict=True))
        return tuple(verdicts[rollout.text] for rollout in group.rollouts)

    def _verdict(self, generation: Generation) -> Verdict:
        read = [self.read(completion) for completion in generation.completions]
        critiques = tuple(critique for critique in read if critique is not None and math.isfinite(critique.score))
        return Verdict(critiques=critiques, failed=self.num_critiques - len(critiques))

    def _sampling(self, seed: int) -> Sampling:
        return Sampling(
            num_samples=self.num_critiques, temperature=self.temperature, max_tokens=self.max_tokens, seed=seed
        )


def _texts(group: RolloutGroup) -> list[str]:
    """Distinct texts of a group's answers, in order of first appearance."""
    return list(dict.fromkeys(rollout.text for rollout in group.rollouts))
