"""Objectives against numbers worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from rlsys.errors import ConfigError
from rlsys.objectives.critique_reward import CritiqueReward
from rlsys.objectives.dpo import DPO
from rlsys.objectives.grpo import GRPO
from rlsys.objectives.inputs import (
    CritiqueInputs,
    PairInputs,
    RatedInputs,
    ScoredInputs,
    SequenceInputs,
    Sequences,
)
from rlsys.objectives.ipo import IPO
from rlsys.objectives.kto import KTO
from rlsys.objectives.sft import SFT
from rlsys.objectives.simpo import SimPO


def even(total, tokens):
    """A response of so many tokens, each with its share of the total."""
    return [total / tokens] * tokens


def pairs(margins, *, scales=None, tokens=4):
    """Pairs whose log-ratio margins are as given: the chosen answer's log-probability carries them and one more, which the
    rejected answer's takes back.
    """
    scale = torch.ones(len(margins)) if scales is None else torch.tensor(scales)
    more = 2 * tokens + 1
    return PairInputs(
        chosen=Sequences.of(
            [even(margin - 6.0, tokens) for margin in margins], reference_logps=[even(-7.0, tokens)] * len(margins)
        ),
        rejected=Sequences.of([even(-4.0, more)] * len(margins), reference_logps=[even(-5.0, more)] * len(margins)),
        beta_scale_B=scale,
    )


def critiques(chosen, rejected, *, has=True, logps=(-6.0, -9.0)):
    return CritiqueInputs(
        chosen_scores_B=torch.tensor([chosen], requires_grad=True),
        rejected_scores_B=torch.tensor([rejected], requires_grad=True),
        chosen=Sequences.of([even(logps[0], 3)]),
        rejected=Sequences.of([even(logps[1], 3)]),
        has_critiques_B=torch.tensor([has]),
    )


@pytest.mark.parametrize(
    ("margin", "loss"), [(0.0, 0.693147), (1.0, 0.644397), (-1.0, 0.744397), (5.0, 0.474077), (10.0, 0.313262)]
)
def test_dpo_loss_at_beta_a_tenth(margin, loss):
    assert DPO(beta=0.1)(pairs([margin])).loss.item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(("scale", "loss", "slope"), [(1.0, 0.474077, 0.037754), (1.31606, 0.417308, 0.044902)])
def test_dpo_with_the_beta_of_a_margin_of_two(scale, loss, slope):
    inputs = pairs([5.0], scales=[scale])
    output = DPO(beta=0.1)(inputs)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss, abs=1e-6)
    assert inputs.chosen.logps_M.grad[0].item() == pytest.approx(-slope, abs=1e-6)
    assert inputs.rejected.logps_M.grad[0].item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.3, 2.0])
def test_dpo_starts_at_ln_2_with_half_beta_as_slope(beta):
    inputs = pairs([0.0])
    loss = DPO(beta=beta)(inputs).loss
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert inputs.chosen.logps_M.grad[0].item() == pytest.approx(-beta / 2, abs=1e-6)


def test_label_smoothing_leaves_the_start_and_has_its_minimum_at_the_log_odds():
    smoothed = DPO(beta=0.1, label_smoothing=0.1)
    assert smoothed(pairs([0.0])).loss.item() == pytest.approx(0.693147, abs=1e-6)
    inputs = pairs([21.972246])
    smoothed(inputs).loss.backward()
    assert inputs.chosen.logps_M.grad[0].item() == pytest.approx(0.0, abs=1e-6)


def test_dpo_is_a_sum_over_pairs_each_with_its_own_beta():
    together = DPO(beta=0.1)(pairs([5.0, 0.0, 1.0], scales=[1.31606, 3.0, 1.0])).loss.item()
    assert together == pytest.approx(0.417308 + 0.693147 + 0.644397, abs=1e-5)


def test_dpo_sft_term_adds_the_chosen_answers_nll_per_token():
    plain = DPO(beta=0.1)(pairs([5.0])).loss.item()
    with_term = DPO(beta=0.1, lambda_sft=0.5)(pairs([5.0], tokens=4)).loss.item()
    assert with_term - plain == pytest.approx(0.5 * 1.0 / 4, abs=1e-6)


def test_dpo_metrics_are_sums_over_pairs():
    metrics = DPO(beta=0.1)(pairs([5.0, -1.0, 0.0])).metrics
    assert metrics["implicit_accuracy"].item() == 1.0
    assert metrics["reward_margin"].item() == pytest.approx(0.4, abs=1e-6)
    assert metrics["reward_chosen"].item() == pytest.approx(0.7, abs=1e-6)
    assert metrics["reward_rejected"].item() == pytest.approx(0.3, abs=1e-6)
    assert not any(value.requires_grad for value in metrics.values())


def test_dpo_is_untouched_by_a_constant_in_both_log_ratios():
    inputs = pairs([5.0])
    moved = replace(
        inputs,
        chosen=replace(inputs.chosen, logps_M=inputs.chosen.logps_M + 3 / 4),
        rejected=replace(inputs.rejected, logps_M=inputs.rejected.logps_M + 3 / 9),
    )
    assert DPO()(moved).loss.item() == pytest.approx(0.474077, abs=1e-6)


def test_dpo_on_tokens_is_bit_for_bit_dpo_on_their_sums():
    random = torch.Generator().manual_seed(0)
    lengths = [1, 40, 7, 23]

    def draw():
        values = [(-3 * torch.rand(length, generator=random)).tolist() for length in lengths]
        return values, torch.stack([torch.tensor(one).double().sum() for one in values]).float()

    def added(values):  # one after the other in float32, as the sums that have a gradient are
        owners = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
        return torch.zeros(4).index_add(0, owners, torch.tensor([value for one in values for value in one]))

    (chosen, _), (rejected, _), (before, reference), (after, other_reference) = (draw() for _ in range(4))
    scale = torch.tensor([1.0, 1.3, 1.1, 1.45])
    inputs = PairInputs(
        chosen=Sequences.of(chosen, reference_logps=before),
        rejected=Sequences.of(rejected, reference_logps=after),
        beta_scale_B=scale,
    )
    margins = (added(chosen) - reference) - (added(rejected) - other_reference)
    reward_margins = 0.1 * scale * margins
    loss = -(1 - 0.2) * logsigmoid(reward_margins) - 0.2 * logsigmoid(-reward_margins)
    loss = loss + 0.5 * (-added(chosen) / torch.tensor(lengths))
    output = DPO(beta=0.1, label_smoothing=0.2, lambda_sft=0.5)(inputs)
    assert output.loss.item() == loss.sum().item()
    assert output.metrics["reward_margin"].item() == reward_margins.sum().item()


def test_tokens_without_loss_are_in_no_sum():
    tokens = Sequences.of([[-1.0, -50.0, -2.0], [-0.5]], mask=[[1, 0, 1], [1]], reference_logps=[[-1, -7, -3], [-1]])
    assert tokens.logps_B.tolist() == [-3.0, -0.5]
    assert tokens.num_tokens_B.tolist() == [2, 1]
    assert tokens.log_ratios_B.tolist() == [1.0, 0.5]
    assert tokens.nll_B.tolist() == [1.5, 0.5]
    assert tokens.spread(torch.tensor([7.0, 8.0])).tolist() == [7, 7, 7, 8]


@pytest.mark.parametrize(("margin", "loss"), [(0.0, 25.0), (5.0, 0.0), (10.0, 25.0)])
@pytest.mark.parametrize("tokens", [1, 4])
def test_ipo_draws_the_margin_per_token_to_its_target(margin, loss, tokens):
    inputs = PairInputs(
        chosen=Sequences.of([[margin - 2.0] * tokens], reference_logps=[[-3.0] * tokens]),
        rejected=Sequences.of([[-1.0] * 3], reference_logps=[[-2.0] * 3]),
        beta_scale_B=torch.ones(1),
    )
    output = IPO(beta=0.1)(inputs)
    assert output.loss.item() == pytest.approx(loss, abs=1e-5)
    assert output.metrics["margin"].item() == pytest.approx(margin, abs=1e-6)


@pytest.mark.parametrize(("chosen", "loss"), [(-1.0, 0.313262), (-2.0, 1.313262)])
def test_simpo_compares_log_probabilities_per_token_and_has_no_reference(chosen, loss):
    inputs = PairInputs(
        chosen=Sequences.of([[chosen] * 5]), rejected=Sequences.of([[-2.0] * 2]), beta_scale_B=torch.ones(1)
    )
    assert SimPO.needs == frozenset()
    assert SimPO(beta=2.0, gamma=1.0)(inputs).loss.item() == pytest.approx(loss, abs=1e-6)


def rated(ratios, desirable, mismatched=()):
    tokens = 2
    return RatedInputs(
        responses=Sequences.of(
            [even(ratio - 4.0, tokens) for ratio in ratios], reference_logps=[even(-4.0, tokens)] * len(ratios)
        ),
        is_desirable_B=torch.tensor(desirable),
        mismatched=Sequences.of(
            [even(ratio - 9.0, 3) for ratio in mismatched], reference_logps=[even(-9.0, 3)] * len(mismatched)
        ),
    )


def kto(objective, inputs):
    found = {name: value.detach() for name, value in objective.statistics(inputs).items()}
    return objective(replace(inputs, statistics=found))


@pytest.mark.parametrize(
    ("ratio", "desirable", "mismatched", "loss"),
    [
        (0.0, True, (), 0.5),
        (0.0, False, (), 0.5),
        (10.0, True, (), 0.268941),
        (10.0, False, (), 0.731059),
        (12.0, True, (1.0, 3.0), 0.268941),  # the baseline is 2
        (12.0, False, (1.0, 3.0), 0.731059),
        (10.0, True, (-1.0, -3.0), 0.268941),  # and never below 0
    ],
)
def test_kto_by_hand(ratio, desirable, mismatched, loss):
    assert kto(KTO(), rated([ratio], [desirable], mismatched)).loss.item() == pytest.approx(loss, abs=1e-5)


def test_kto_weighs_good_and_bad_responses_and_its_baseline_is_a_constant():
    inputs = rated([10.0, 10.0], [True, False], (1.0, -1.0))
    output = kto(KTO(desirable_weight=2.0, undesirable_weight=3.0), inputs)
    assert output.loss.item() == pytest.approx(2 * 0.268941 + 3 * 0.731059, abs=1e-5)
    output.loss.backward()
    slope = 0.1 * 0.268941 * 0.731059
    assert inputs.responses.logps_M.grad.tolist() == pytest.approx([-2 * slope] * 2 + [3 * slope] * 2, abs=1e-6)
    assert inputs.mismatched.logps_M.grad is None
    assert output.metrics["implicit_accuracy"].item() == 1.0
    assert output.metrics["desirable"].item() == 1.0


def scored(ratios, advantages, **others):
    """Responses whose tokens have these ratios to the policy that sampled them."""
    old = [[-1.0] * len(one) for one in ratios]
    return ScoredInputs(
        responses=Sequences.of([[math.log(r) - 1.0 for r in one] for one in ratios], old_logps=old, **others),
        advantages_B=torch.tensor(advantages),
        scores_B=torch.tensor([0.0] * len(ratios)),
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"), [(0.5, 1.0, -0.5), (0.5, -1.0, 0.8), (1.5, 1.0, -1.2), (1.5, -1.0, 1.5)]
)
def test_grpo_clips_as_ppo_does(ratio, advantage, loss):
    inputs = scored([[ratio]], [advantage])
    output = GRPO(clip=0.2, beta=0.0)(inputs)
    output.loss.backward()
    is_clipped = loss in (0.8, -1.2)
    assert output.loss.item() == pytest.approx(loss, abs=1e-6)
    assert output.metrics["clipped"].item() == is_clipped
    assert inputs.responses.logps_M.grad.item() == pytest.approx(0.0 if is_clipped else -advantage * ratio, abs=1e-6)


def test_grpo_is_a_mean_over_the_tokens_of_each_response():
    inputs = scored([[1.0, 1.0, 1.0, 1.0], [1.0]], [2.0, -1.0])
    output = GRPO(beta=0.0)(inputs)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-2.0 + 1.0, abs=1e-6)
    assert inputs.responses.logps_M.grad.tolist() == pytest.approx([-0.5] * 4 + [1.0], abs=1e-6)


def test_grpo_adds_k3_to_the_reference_only_where_beta_asks_for_it():
    """p = 0.5 against 0.25: k3 is 0.1931."""
    inputs = scored([[0.5 * math.e]], [0.0], reference_logps=[[math.log(0.25)]])
    output = GRPO(beta=0.1)(inputs)
    assert output.metrics["kl_reference"].item() == pytest.approx(0.1931, abs=1e-4)
    assert output.loss.item() == pytest.approx(0.01931, abs=1e-5)
    assert (GRPO(beta=0.1).needs, GRPO(beta=0.0).needs) == ({"old", "reference"}, {"old"})


def sequences():
    return SequenceInputs(responses=Sequences.of([[-1.0, -2.0, -3.0], [-1.0]]))


def test_sft_per_token_sums_and_per_example_means():
    assert SFT(per="tokens")(sequences()).loss.item() == pytest.approx(7.0)
    assert SFT(per="examples")(sequences()).loss.item() == pytest.approx(3.0)
    assert SFT(per="tokens").denominator == "tokens"
    assert SFT(per="examples").denominator == "examples"


def test_sft_raises_the_log_probability_of_what_it_imitates():
    inputs = sequences()
    SFT(per="examples")(inputs).loss.backward()
    assert inputs.responses.logps_M.grad.tolist() == pytest.approx([-1 / 3] * 3 + [-1.0])


def test_bradley_terry_and_centring():
    ranking = CritiqueReward(w_c=0.0, c0=0.0)(critiques(2.0, 1.0))
    centred = CritiqueReward(w_c=0.0, c0=0.01)(critiques(2.0, 1.0))
    assert ranking.loss.item() == pytest.approx(0.313262, abs=1e-6)
    assert centred.loss.item() == pytest.approx(0.403262, abs=1e-6)


def test_the_centring_is_a_hundredth_unless_given_and_moves_both_scores():
    inputs = critiques(2.0, 1.0)
    output = CritiqueReward(w_c=0.0)(inputs)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0.403262, abs=1e-6)
    slope = 0.268941  # sigmoid(-1)
    assert inputs.chosen_scores_B.grad.item() == pytest.approx(0.06 - slope, abs=1e-6)
    assert inputs.rejected_scores_B.grad.item() == pytest.approx(0.06 + slope, abs=1e-6)


def test_the_weight_of_the_ranking_is_its_own():
    assert CritiqueReward(w_s=2.0, w_c=0.0)(critiques(2.0, 1.0)).loss.item() == pytest.approx(0.716523, abs=1e-6)


def test_a_constant_on_both_scores_changes_only_the_centring():
    moved = CritiqueReward(w_c=0.0, c0=0.01)(critiques(3.0, 2.0)).loss.item()
    assert moved == pytest.approx(0.313262 + 0.01 * 25, abs=1e-6)


def test_critique_loss_per_token_and_per_critique():
    per_token = CritiqueReward(c0=0.0)(critiques(2.0, 1.0)).loss.item()
    per_critique = CritiqueReward(c0=0.0, nll_per="critique")(critiques(2.0, 1.0)).loss.item()
    assert per_token == pytest.approx(0.313262 + 2.0 + 3.0, abs=1e-5)
    assert per_critique == pytest.approx(0.313262 + 15.0, abs=1e-5)


def test_missing_critiques_cost_nothing_and_leave_the_score_loss():
    inputs = critiques(2.0, 1.0, has=False)
    output = CritiqueReward(c0=0.01)(inputs)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0.403262, abs=1e-6)
    assert output.metrics["critique_nll"].item() == 0.0
    assert inputs.chosen.logps_M.grad[0].item() == 0.0


def test_score_gradients_pull_the_two_answers_apart():
    inputs = critiques(0.0, 0.0)
    CritiqueReward()(inputs).loss.backward()
    assert inputs.chosen_scores_B.grad.item() == pytest.approx(-0.5)
    assert inputs.rejected_scores_B.grad.item() == pytest.approx(0.5)


def test_equal_scores_are_no_accuracy():
    assert CritiqueReward()(critiques(1.0, 1.0)).metrics["accuracy"].item() == 0.0
    assert CritiqueReward()(critiques(1.1, 1.0)).metrics["accuracy"].item() == 1.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DPO(beta=-1.0), "beta must be > 0, got -1.0"),
        (lambda: DPO(label_smoothing=0.5), r"label_smoothing must be in \[0, 0.5\), got 0.5"),
        (lambda: DPO(lambda_sft=-0.1), "lambda_sft must be at least 0, got -0.1"),
        (lambda: IPO(beta=0.0), "beta must be > 0, got 0.0"),
        (lambda: SimPO(gamma=-1.0), "gamma must be at least 0, got -1.0"),
        (lambda: KTO(undesirable_weight=-1.0), "undesirable_weight must be at least 0, got -1.0"),
        (lambda: GRPO(clip=1.0), r"clip must be in \(0, 1\), got 1.0"),
        (lambda: SFT(per="batch"), "per must be tokens or examples, got 'batch'"),
        (lambda: CritiqueReward(c0=-1.0), "c0 must be at least 0, got -1.0"),
        (lambda: CritiqueReward(nll_per="word"), "nll_per must be token or critique, got 'word'"),
    ],
)
def test_wrong_options_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
