"""What every pair builder shares: when one answer may stand against another, and the record that says so."""

from __future__ import annotations

from rlsys.examples.scaling import beta_scale
from rlsys.records import PreferencePair, Rollout, RoundPlan, ScoredGroup

Scored = tuple[Rollout, float]


def distinct(scored: ScoredGroup) -> list[Scored]:
    """Scored answers of a group, those of the same tokens once: else a pair would be trained once for every temperature
    that gave one of its answers. The one at temperature 1 stays, on which KL can be estimated, else the first.
    """
    found: dict[bytes, Scored] = {}
    for rollout, score in scored.scored:
        known = found.setdefault(rollout.token_ids.tobytes(), (rollout, score))
        if rollout.temperature == 1.0 != known[0].temperature:
            found[rollout.token_ids.tobytes()] = (rollout, score)
    return list(found.values())


def prefer(scored: ScoredGroup, one: Scored, other: Scored, plan: RoundPlan) -> PreferencePair | None:
    """The pair of two scored answers, the higher score chosen.

    `None` for a tie, for a margin below `plan.min_margin`, and for answers that read the same (of different tokens):
    preferring a text to itself says nothing.
    """
    chosen, rejected = (one, other) if one[1] > other[1] else (other, one)
    margin = chosen[1] - rejected[1]
    if margin <= 0 or margin < plan.min_margin or chosen[0].text == rejected[0].text:
        return None
    group = scored.group
    return PreferencePair(
        prompt=group.prompt,
        prompt_token_ids=group.prompt_token_ids,
        chosen=chosen[0],
        rejected=rejected[0],
        chosen_score=chosen[1],
        rejected_score=rejected[1],
        margin=margin,
        beta_scale=beta_scale(margin, plan.scale_w, plan.scale_k),
        round=group.round,
        policy_version=group.policy_version,
    )
