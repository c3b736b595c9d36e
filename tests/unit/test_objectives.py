"""Objectives against numbers worked out by hand."""

import math

import pytest
import torch

from rlsys.errors import ConfigError
from rlsys.objectives.critique_reward import CritiqueReward
from rlsys.objectives.dpo import DPO
from rlsys.objectives.inputs import CritiqueInputs, PairInputs, SequenceInputs
from rlsys.objectives.sft import SFT


def pairs(margins, *, scales=None, tokens=4):
    """Pairs whose log-ratio margins are as given: the chosen answer's log-probability carries them and one more, which the
    rejected answer's takes back.
    """
    chosen = torch.tensor(margins, dtype=torch.float32) - 6.0
    scale = torch.ones(len(margins)) if scales is None else torch.tensor(scales)
    return PairInputs(
        chosen_logps_B=chosen.requires_grad_(),
        rejected_logps_B=torch.full_like(chosen, -4.0).requires_grad_(),
        reference_chosen_logps_B=torch.full_like(chosen, -7.0),
        reference_rejected_logps_B=torch.full_like(chosen, -5.0),
        chosen_num_tokens_B=torch.full((len(margins),), tokens),
        rejected_num_tokens_B=torch.full((len(margins),), 2 * tokens + 1),
        beta_scale_B=scale,
    )


def critiques(chosen, rejected, *, has=True, logps=(-6.0, -9.0)):
    return CritiqueInputs(
        chosen_scores_B=torch.tensor([chosen], requires_grad=True),
        rejected_scores_B=torch.tensor([rejected], requires_grad=True),
        chosen_logps_B=torch.tensor([logps[0]], requires_grad=True),
        rejected_logps_B=torch.tensor([logps[1]], requires_grad=True),
        chosen_num_tokens_B=torch.tensor([3]),
        rejected_num_tokens_B=torch.tensor([3]),
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
    assert inputs.chosen_logps_B.grad.item() == pytest.approx(-slope, abs=1e-6)
    assert inputs.rejected_logps_B.grad.item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.3, 2.0])
def test_dpo_starts_at_ln_2_with_half_beta_as_slope(beta):
    inputs = pairs([0.0])
    loss = DPO(beta=beta)(inputs).loss
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert inputs.chosen_logps_B.grad.item() == pytest.approx(-beta / 2, abs=1e-6)


def test_label_smoothing_leaves_the_start_and_has_its_minimum_at_the_log_odds():
    smoothed = DPO(beta=0.1, label_smoothing=0.1)
    assert smoothed(pairs([0.0])).loss.item() == pytest.approx(0.693147, abs=1e-6)
    inputs = pairs([21.972246])
    smoothed(inputs).loss.backward()
    assert inputs.chosen_logps_B.grad.item() == pytest.approx(0.0, abs=1e-6)


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
    moved = PairInputs(
        **{**vars(inputs), "chosen_logps_B": inputs.chosen_logps_B + 3, "rejected_logps_B": inputs.rejected_logps_B + 3}
    )
    assert DPO()(moved).loss.item() == pytest.approx(0.474077, abs=1e-6)


def sequences():
    return SequenceInputs(logps_B=torch.tensor([-6.0, -1.0], requires_grad=True), num_tokens_B=torch.tensor([3, 1]))


def test_sft_per_token_sums_and_per_example_means():
    assert SFT(per="tokens")(sequences()).loss.item() == pytest.approx(7.0)
    assert SFT(per="examples")(sequences()).loss.item() == pytest.approx(3.0)
    assert SFT(per="tokens").denominator == "tokens"
    assert SFT(per="examples").denominator == "examples"


def test_sft_raises_the_log_probability_of_what_it_imitates():
    inputs = sequences()
    SFT(per="examples")(inputs).loss.backward()
    assert inputs.logps_B.grad.tolist() == pytest.approx([-1 / 3, -1.0])


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
    assert inputs.chosen_logps_B.grad.item() == 0.0


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
        (lambda: SFT(per="batch"), "per must be tokens or examples, got 'batch'"),
        (lambda: CritiqueReward(c0=-1.0), "c0 must be at least 0, got -1.0"),
        (lambda: CritiqueReward(nll_per="word"), "nll_per must be token or critique, got 'word'"),
    ],
)
def test_wrong_options_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
