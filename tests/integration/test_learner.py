"""The learner on the real DeepSpeed: gradients, references, weights, and going on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from learners.rendezvous import Rendezvous
from rlsys.objectives.critique_reward import CritiqueReward
from rlsys.objectives.dpo import DPO
from rlsys.objectives.sft import SFT
from rlsys.records import CritiquePair, Demonstration, Response, Turn, text_response
from tests.integration.learner_world import (
    PLAN,
    frame_of,
    make_learner,
    make_pairs,
    make_small,
    probes_of,
    scores_of,
    with_logprobs,
)

pytestmark = pytest.mark.integration
STAGES = (0, 1, 2, 3)
LORA = {"r": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("policy"))


def lora(**options):
    from learners.config import LoraConfig

    return LoraConfig(**{**LORA, **options})


def _gradients_of_one_step(meeting: Rendezvous, folder: Path, stage: int, micro_batch_tokens: int) -> dict:
    """Whole gradients as they are when the optimizer would step, and the step's loss."""
    from deepspeed.utils import safe_get_full_grad

    learner = make_learner(meeting, folder, zero_stage=stage, micro_batch_tokens=micro_batch_tokens, grad_clip=0.0)
    engine, found = learner._engine, {}
    step = engine.step

    def watched(lr):
        for name, parameter in engine.module.named_parameters():
            gradient = parameter.grad if stage == 0 else safe_get_full_grad(parameter)
            found[name] = gradient.detach().clone().numpy()
        return step(lr)

    engine.step = watched
    learner.begin(PLAN)
    output = learner.step(frame_of(make_pairs(folder, 9), meeting), lr=1e-3, batch=0)
    return {"gradients": found, "loss": output.sums.get("loss", 0.0), "norm": output.grad_norm}


@pytest.fixture(scope="module")
def whole(one, folder):
    return one.run(_gradients_of_one_step, folder, 0, 10_000)[0]


def _assert_same(results: list[dict], expected: dict) -> None:
    assert sum(result["loss"] for result in results) == pytest.approx(expected["loss"], abs=1e-5)
    for result in results:
        assert result["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            np.testing.assert_allclose(result["gradients"][name], gradient, atol=1e-5, err_msg=name)
        assert result["norm"] == pytest.approx(expected["norm"], rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_changes_no_gradient(one, folder, whole, stage):
    assert max(np.abs(gradient).max() for gradient in whole["gradients"].values()) > 1e-2
    _assert_same(one.run(_gradients_of_one_step, folder, stage, 10_000), whole)
    _assert_same(one.run(_gradients_of_one_step, folder, stage, 60), whole)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_have_the_gradient_of_one(two, folder, whole, stage):
    _assert_same(two.run(_gradients_of_one_step, folder, stage, 10_000), whole)
    _assert_same(two.run(_gradients_of_one_step, folder, stage, 60), whole)


def _losses(meeting: Rendezvous, folder: Path, stage: int, options: dict) -> list[float]:
    """Three steps in which one rank has pictures and the other none, then one of them nothing at all."""
    learner = make_learner(meeting, folder, zero_stage=stage, micro_batch_tokens=64, **options)
    pictures, words = make_pairs(folder, 4, images="all"), make_pairs(folder, 4, seed=1, images="none")
    own = (pictures, words)[meeting.rank] if meeting.world_size == 2 else pictures + words
    from rlsys import wire

    learner.begin(PLAN)
    losses = []
    for number in range(3):
        output = learner.step(wire.encode_many(own), lr=1e-3, batch=number)
        losses.append(output.sums["loss"])
    last = wire.encode_many(pictures[:1]) if meeting.rank == 0 else None
    losses.append(learner.step(last, lr=1e-3, batch=3).sums.get("loss", 0.0))
    learner.end()
    return losses


@pytest.mark.parametrize(
    "options", [{}, {"freeze": ["visual"]}, {"activation_checkpointing": True}, {"path": "plain"}], ids=str
)
def test_ranks_with_and_without_pictures_do_not_wait_for_each_other(one, two, folder, options):
    (alone,) = one.run(_losses, folder, 0, options)
    for stage in (2, 3):
        both = two.run(_losses, folder, stage, options)
        assert [sum(losses) for losses in zip(*both, strict=True)] == pytest.approx(alone, abs=1e-4)


def _save_go_on_and_return(meeting: Rendezvous, folder: Path, target: Path, options: dict) -> dict:
    pairs = make_pairs(folder, 8)
    frame = frame_of(pairs, meeting)
    learner = make_learner(meeting, folder, **options)
    learner.begin(PLAN)
    start = scores_of(learner, pairs)
    learner.step(frame, lr=1e-2, batch=0)
    learner.save(str(target))
    saved = scores_of(learner, pairs)
    learner.step(frame, lr=1e-2, batch=1)
    undisturbed = scores_of(learner, pairs)
    other = make_learner(meeting, folder, **options)
    other.load(str(target))
    other.begin(PLAN)
    loaded = scores_of(other, pairs)
    other.step(frame, lr=1e-2, batch=1)
    resumed = scores_of(other, pairs)
    other.reset()
    other.begin(PLAN)
    reset = scores_of(other, pairs)
    other.step(frame, lr=1e-2, batch=0)
    again = scores_of(other, pairs)
    names = ("start", "saved", "undisturbed", "loaded", "resumed", "reset", "again")
    values = (start, saved, undisturbed, loaded, resumed, reset, again)
    return {name: np.concatenate(value) for name, value in zip(names, values, strict=True)}


def _assert_exact_resume(found: dict) -> None:
    assert np.abs(found["saved"] - found["start"]).max() > 1e-3
    assert np.abs(found["undisturbed"] - found["saved"]).max() > 1e-3
    np.testing.assert_array_equal(found["loaded"], found["saved"])
    np.testing.assert_array_equal(found["resumed"], found["undisturbed"])
    np.testing.assert_array_equal(found["reset"], found["start"])
    np.testing.assert_array_equal(found["again"], found["saved"])


@pytest.mark.parametrize(
    "options",
    [
        {"zero_stage": 0},
        {"zero_stage": 0, "weight_decay": 0.1},
        {"zero_stage": 2},
        {"zero_stage": 3, "ema_decay": 0.9},
        {"lora": LORA},
    ],
    ids=["zero0", "zero0-decay", "zero2", "zero3", "lora"],
)
def test_going_on_from_disk_is_exact(one, folder, tmp_path, options):
    options = {**options, "lora": lora()} if "lora" in options else options
    (found,) = one.run(_save_go_on_and_return, folder, tmp_path / "saved", options)
    _assert_exact_resume(found)
    _assert_transformers_agrees(tmp_path / "saved" / "policy", make_pairs(folder, 8), found["saved"])


def test_going_on_from_disk_is_exact_on_two_ranks_and_in_bf16(one, two, folder, tmp_path):
    # In bf16 DeepSpeed shares out the float32 state at stage 0 too: each rank has a part of its own to write.
    written = {}
    for name, options in {
        "zero3": {"zero_stage": 3, "weight_decay": 0.1},
        "zero2": {"zero_stage": 2, "ema_decay": 0.9, "weight_decay": 0.1},
        "bf16": {"zero_stage": 0, "precision": "bf16", "weight_decay": 0.1},
    }.items():
        for found in two.run(_save_go_on_and_return, folder, tmp_path / name, options):
            _assert_exact_resume(found)
        files = [load_file(tmp_path / name / "optimizer" / f"rank_{rank}.safetensors") for rank in (0, 1)]
        written[name] = [sorted({tensor.partition("/")[0] for tensor in file}) for file in files]
    own = ["masters", "moments"]
    # What all ranks hold is written by the first.
    assert written == {
        "zero3": [[*own, "weights"], [*own, "weights"]],
        "zero2": [["kept", *own, "weights"], own],
        "bf16": [[*own, "weights"], own],
    }
    for stage in (0, 1, 3):
        options = {"zero_stage": stage, "precision": "bf16"}
        (found,) = one.run(_save_go_on_and_return, folder, tmp_path / f"bf16-{stage}", options)
        _assert_exact_resume(found)
        saved = load_file(tmp_path / f"bf16-{stage}" / "policy" / "model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
        assert json.loads((tmp_path / f"bf16-{stage}" / "policy" / "config.json").read_text())["dtype"] == "bfloat16"


def _assert_transformers_agrees(policy: Path, pairs: list, scores: np.ndarray) -> None:
    """The saved folder, loaded by nothing but transformers, gives the learner's log-probabilities."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(policy, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(policy)
    expected = []
    for probe in probes_of(pairs):
        ids = torch.tensor([[*probe.prompt_token_ids, *probe.response_token_ids]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if probe.prompt.images:
            pictures = processor.image_processor([image.pixels for image in probe.prompt.images], return_tensors="pt")
            inputs |= dict(pictures) | {"mm_token_type_ids": (ids == model.config.image_token_id).int()}
        start = len(probe.prompt_token_ids)
        with torch.no_grad():
            logps = model(**inputs).logits[0, start - 1 : -1].log_softmax(-1)
        expected.append(logps.gather(1, ids[0, start:, None])[:, 0].numpy())
    np.testing.assert_allclose(scores, np.concatenate(expected), atol=1e-4)


def _sent_and_saved(meeting: Rendezvous, folder: Path, target: Path, options: dict) -> dict:
    """What would be sent, beside what transformers' own `save_pretrained` writes."""
    from transformers import AutoModelForImageTextToText

    learner = make_learner(meeting, folder, **options)
    learner.begin(PLAN)
    learner.step(frame_of(make_pairs(folder, 4), meeting), lr=1e-2, batch=0)
    sent = {name: value.clone().numpy() for name, value in learner._weights.stream(keep=meeting.rank == 0)}
    learner.save(str(target))
    if meeting.rank == 0:
        AutoModelForImageTextToText.from_pretrained(target / "policy").save_pretrained(target / "theirs")
    manifest = learner.weight_sender.manifest(1 << 30)["buckets"][0]
    return {"sent": sent, "names": manifest["names"], "shapes": manifest["shapes"]}


@pytest.mark.parametrize("options", [{}, {"lora": LORA}, {"freeze": ["visual"], "zero_stage": 3}], ids=str)
def test_weights_go_out_under_the_names_that_transformers_saves(one, folder, tmp_path, options):
    options = {**options, "lora": lora()} if "lora" in options else options
    (found,) = one.run(_sent_and_saved, folder, tmp_path, options)
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert sorted(found["sent"]) == sorted(theirs)
    assert found["names"] == list(found["sent"])
    assert found["shapes"] == [list(value.shape) for value in found["sent"].values()]
    for name, value in found["sent"].items():
        np.testing.assert_array_equal(value, theirs[name].numpy(), err_msg=name)
    before = load_file(folder / "model.safetensors")
    changed = {name for name, value in theirs.items() if not torch.equal(value, before[name])}
    if "lora" in options:
        adapted = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
        assert changed == {name for name in theirs if name.endswith(adapted) and name.startswith("model.")}
    elif "freeze" in options:
        assert changed and not any(name.startswith("visual") for name in changed)
    else:
        assert any(name.startswith("visual.patch_embed") for name in changed)


def _references(meeting: Rendezvous, folder: Path, options: dict, plan_options: dict) -> dict:
    """Reference values of older answers, and what they should be."""
    learner = make_learner(meeting, folder, **options)
    pairs = make_pairs(folder, 4, version=0)
    frame = frame_of(pairs, meeting)
    initial = scores_of(learner, pairs)
    learner.begin(PLAN)
    learner.step(frame, lr=1e-2, batch=0)
    start = scores_of(learner, pairs)
    learner.begin(replace(PLAN, **{"policy_version": 1, **plan_options}))
    learner.step(frame_of(make_pairs(folder, 4, seed=5, version=1), meeting), lr=1e-2, batch=0)
    before = scores_of(learner, pairs)
    learner.step(frame, lr=1e-3, batch=1)
    references = learner._references_of[1]
    batches = learner._collator(pairs)
    by_tokens = {}
    for batch, values in zip(batches, references, strict=True):
        pieces = values.tensor_split(batch.last_token[:-1] + 1)
        by_tokens |= {a.token_ids.tobytes(): float(v.sum()) for a, v in zip(batch.answers, pieces, strict=True)}
    used = [by_tokens[answer.token_ids.tobytes()] for pair in pairs for answer in (pair.chosen, pair.rejected)]
    sums = {name: [float(v.sum()) for v in values] for name, values in
            (("initial", initial), ("start", start), ("before", before))}  # fmt: skip
    recorded = [answer.logprob for pair in pairs for answer in (pair.chosen, pair.rejected)]
    return {"used": used, "recorded": recorded, **sums}


@pytest.mark.parametrize("stage", [0, 3])
def test_references_by_rule(one, folder, stage):
    options = {"zero_stage": stage, "initial_copy": True, "ema_decay": 0.5}
    (accumulated,) = one.run(_references, folder, options, {"accumulated": True})
    assert accumulated["used"] == pytest.approx(accumulated["start"], abs=1e-4)
    assert np.abs(np.subtract(accumulated["start"], accumulated["initial"])).max() > 1e-2
    # Version 3, one round after version 0: the round between was refused.
    (lagged,) = one.run(_references, folder, options, {"lag": 1, "round": 0, "policy_version": 3})
    assert lagged["used"] == pytest.approx(lagged["recorded"], abs=1e-4)
    (average,) = one.run(_references, folder, options, {"reference": "ema"})
    for other in ("recorded", "start", "before", "initial"):
        assert np.abs(np.subtract(average["used"], average[other])).max() > 1e-2


def _older_answers_on_one_rank(meeting: Rendezvous, folder: Path) -> dict:
    """A last batch of one pair of an earlier round: a rank has nothing and works in step."""
    learner = make_learner(meeting, folder)
    pairs = make_pairs(folder, 1, version=0)
    before = sum(float(values.sum()) for values in scores_of(learner, pairs))
    learner.begin(replace(PLAN, policy_version=1, accumulated=True))
    output = learner.step(frame_of(pairs, meeting), lr=1e-2, batch=0)
    references = [float(values.sum()) for values in learner._references_of[0]]
    return {"before": before, "used": references, "examples": output.sums["examples"]}


def test_ranks_without_a_share_follow_where_older_answers_need_a_forward_pass(two, folder):
    some, none = two.run(_older_answers_on_one_rank, folder)
    assert (some["examples"], none["examples"]) == (1.0, 0.0)
    assert some["used"] == pytest.approx([some["before"]], abs=1e-4)


def sampled_again(response: Response, **changes: Any) -> Response:
    """The response with other provenance."""
    return replace(response, sampled=replace(response.sampled, **changes))


def _kl_of_accumulated_data(meeting: Rendezvous, folder: Path) -> dict:
    """The answers of round 1, and as many of round 0 whose sampler was another policy."""
    learner = make_learner(meeting, folder)
    pairs = make_pairs(folder, 6)
    true = with_logprobs(pairs, scores_of(learner, pairs))
    others = with_logprobs(pairs, [values - 1.0 for values in scores_of(learner, pairs)])
    own = [
        replace(
            pair,
            round=1,
            chosen=sampled_again(pair.chosen, policy_version=1),
            rejected=sampled_again(pair.rejected, policy_version=1),
        )
        for pair in true
    ]
    learner.begin(replace(PLAN, round=1, policy_version=1, accumulated=True))
    learner.step(frame_of([*others[:3], *own, *others[3:]], meeting), lr=0.0, batch=0)
    return learner.end()


def test_kl_is_estimated_on_the_rounds_own_answers(one, folder):
    (end,) = one.run(_kl_of_accumulated_data, folder)
    assert end["kl_responses"] == 9 and end["kl_sum"] == pytest.approx(0.0, abs=1e-5)


def _kl_over_batches(meeting: Rendezvous, folder: Path, given: dict) -> dict:
    """Pairs of a few prompts in batches of two, which cut prompts apart, twice; the policy does not move."""
    learner = make_learner(meeting, folder, initial_copy=True)
    pairs = with_logprobs(make_pairs(folder, 9), [values - 1.0 for values in scores_of(learner, make_pairs(folder, 9))])
    changes = [
        {"chosen": sampled_again(pair.chosen, **given), "rejected": sampled_again(pair.rejected, **given)}
        for pair in pairs
    ]
    pairs = [replace(pair, **changed) for pair, changed in zip(pairs, changes, strict=True)]
    learner.begin(replace(PLAN, round=0))
    for _ in range(2):
        for batch in range(0, 9, 2):
            learner.step(frame_of(pairs[batch : batch + 2], meeting), lr=0.0, batch=batch)
    return learner.end()


def test_kl_counts_every_answer_once_over_batches_epochs_and_ranks(one, two, folder):
    pairs = make_pairs(folder, 9)
    answers = {(pair.prompt.id, one.token_ids.tobytes()) for pair in pairs for one in (pair.chosen, pair.rejected)}
    num_tokens = sum(len(tokens) // 4 for _, tokens in answers)
    for ranks in (one, two):
        ends = ranks.run(_kl_over_batches, folder, {})
        assert sum(end["kl_responses"] for end in ends) == len(answers)
        for name in ("kl_sum", "kl_initial_sum"):  # u = 1 at every token
            assert sum(end[name] for end in ends) == pytest.approx(num_tokens * (math.e - 2), rel=1e-3)


def test_kl_is_not_estimated_on_answers_of_another_temperature(two, folder):
    for end in two.run(_kl_over_batches, folder, {"temperature": 0.7}):
        assert (end["kl_responses"], end["kl_sum"], end["kl_initial_sum"]) == (0.0, 0.0, 0.0)


def _kl_of_a_nucleus(meeting: Rendezvous, folder: Path) -> dict:
    learner = make_learner(meeting, folder)
    learner.begin(replace(PLAN, round=0, top_p=0.9))
    learner.step(frame_of(make_pairs(folder, 4), meeting), lr=0.0, batch=0)
    return learner.end()


def test_kl_is_not_estimated_on_answers_without_the_tail_of_the_distribution(one, folder):
    (end,) = one.run(_kl_of_a_nucleus, folder)
    assert end["kl_responses"] == 0.0


def _initial_reference(meeting: Rendezvous, folder: Path, options: dict) -> dict:
    """Under rule `initial`, answers of version 1 are compared with the first weights."""
    learner = make_learner(meeting, folder, **options)
    pairs = make_pairs(folder, 4, version=1)
    initial = scores_of(learner, pairs)
    learner.begin(replace(PLAN, reference="initial"))
    learner.step(frame_of(make_pairs(folder, 4, seed=5), meeting), lr=1e-2, batch=0)
    learner.begin(replace(PLAN, reference="initial", policy_version=1))
    now = scores_of(learner, pairs)
    learner.step(frame_of(pairs, meeting), lr=1e-2, batch=0)
    used = sum(float(values.sum()) for values in learner._references_of[0])
    distinct = {answer.token_ids.tobytes(): float(score.sum()) for answer, score in zip(
        [answer for pair in pairs for answer in (pair.chosen, pair.rejected)], initial, strict=True)}  # fmt: skip
    moved = max(float(np.abs(a - b).max()) for a, b in zip(now, initial, strict=True))
    return {"used": used, "initial": sum(distinct.values()), "moved": moved}


@pytest.mark.parametrize("kind", ["copy", "adapter off"])
def test_the_initial_policy_as_reference(one, folder, kind):
    options = {"initial_copy": True} if kind == "copy" else {"lora": lora()}
    (found,) = one.run(_initial_reference, folder, options)
    assert found["moved"] > 1e-3
    assert found["used"] == pytest.approx(found["initial"], abs=1e-3)


def _check_references(meeting: Rendezvous, folder: Path, shift: float, options: dict) -> tuple[str, int]:
    """What came of a first step on recorded log-probabilities that are `shift` too high, and its forward passes."""
    from rlsys.errors import LearnerError

    learner = make_learner(meeting, folder, reference_checks=8, **options)
    pairs = make_pairs(folder, 6)
    true = scores_of(learner, pairs)
    learner.begin(PLAN)
    shifted = with_logprobs(pairs, [(values + shift).astype(np.float32) for values in true])
    passes = []
    learner._engine.module.register_forward_hook(lambda *_: passes.append(1))
    try:
        learner.step(frame_of(shifted, meeting), lr=1e-3, batch=0)
    except LearnerError as error:
        count = len(passes)
        after = scores_of(learner, pairs)
        assert all(np.array_equal(a, b) for a, b in zip(after, true, strict=True)), "a step was taken"
        return str(error), count
    count = len(passes)
    return f"checked {learner.end()['reference_checked']:g}", count


DROPPING = {"lora": {"dropout": 0.2}}
"""What an answer has in a training pass is then left to chance."""


@pytest.mark.parametrize(("options", "passes"), [({}, 1), (DROPPING, 2)])
def test_recorded_log_probabilities_are_checked_before_the_first_step(one, two, folder, options, passes):
    options = {name: lora(**given) for name, given in options.items()}
    assert one.run(_check_references, folder, 0.0, options) == [("checked 6", passes)]
    for ranks in (one, two):
        for message, _ in ranks.run(_check_references, folder, 0.01, options):
            assert "recorded log-probability is -" in message
            assert "the forward pass gives -" in message
            assert "1.00e-02 nats per token, tolerance 0.001" in message


def _check_after_a_step(meeting: Rendezvous, folder: Path, shift: float) -> str:
    """This round's answers come after a step on older ones."""
    from rlsys.errors import LearnerError

    learner = make_learner(meeting, folder, reference_checks=8)
    old, new = make_pairs(folder, 4, seed=5), make_pairs(folder, 4, version=1)
    new = with_logprobs(new, [(values + shift).astype(np.float32) for values in scores_of(learner, new)])
    learner.begin(replace(PLAN, policy_version=1, accumulated=True))
    learner.step(frame_of(old, meeting), lr=1e-2, batch=0)
    try:
        learner.step(frame_of(new, meeting), lr=1e-2, batch=1)
    except LearnerError as error:
        return str(error)
    return f"checked {learner.end()['reference_checked']:g}"


def test_answers_that_come_after_a_step_are_checked_against_the_weights_before_it(one, folder):
    assert one.run(_check_after_a_step, folder, 0.0) == ["checked 6"]
    assert "1.00e-02 nats per token" in one.run(_check_after_a_step, folder, 0.01)[0]


def _first_losses(meeting: Rendezvous, folder: Path) -> dict:
    """One round on true log-probabilities: the loss before anything moved, and kl of a policy that did not and one
    that did.
    """
    learner = make_learner(meeting, folder)
    pairs = with_logprobs(make_pairs(folder, 6), scores_of(learner, make_pairs(folder, 6)))
    found = {}
    for name, lr in (("still", 0.0), ("moved", 1e-2)):
        learner.begin(PLAN)
        output = learner.step(frame_of(pairs, meeting), lr=lr, batch=0)
        end = learner.end()
        found[name] = {"loss": output.sums["loss"] / output.sums["examples"], "kl": end["kl_sum"] / end["kl_responses"]}
    return found


def test_a_round_starts_at_ln_2_and_kl_is_zero_until_the_policy_moves(one, folder):
    (found,) = one.run(_first_losses, folder)
    assert found["still"]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert found["still"]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["moved"]["kl"] > 1e-3


def _rows_and_pictures(meeting: Rendezvous, folder: Path) -> dict[str, Any]:
    learner = make_learner(meeting, folder, precision="bf16", reference_checks=0)
    rows = []
    learner._engine.module.register_forward_pre_hook(
        lambda module, inputs: rows.append((len(inputs[0].token_ids), len(inputs[0].predict)))
    )
    kept = []
    for number, accumulated in enumerate((False, True, False)):
        learner.begin(replace(PLAN, accumulated=accumulated))
        pairs = make_pairs(folder, 4, seed=number, images="all")
        learner.step(frame_of(pairs, meeting), lr=0.0, batch=0)
        kept.append(learner._processor._cache.num_bytes)
    return {"rows": rows, "kept": kept}


def test_rows_in_bfloat16_have_few_shapes_and_pictures_of_a_stretch_go_with_it(one, folder):
    (found,) = one.run(_rows_and_pictures, folder)
    assert found["rows"] and all(tokens % 64 == 0 and answers % 64 == 0 for tokens, answers in found["rows"])
    first, both, last = found["kept"]
    assert 0 < last < both and first < both


def _answers_of_the_estimate(meeting: Rendezvous, folder: Path, limit: int) -> int:
    learner = make_learner(meeting, folder, kl_responses=limit)
    pairs = with_logprobs(make_pairs(folder, 8), scores_of(learner, make_pairs(folder, 8)))
    learner.begin(PLAN)
    learner.step(frame_of(pairs, meeting), lr=0.0, batch=0)
    return learner.end()["kl_responses"]


@pytest.mark.parametrize(("limit", "of_one", "of_two"), [(0, [0], [0, 0]), (6, [6], [3, 3]), (100, [12], [6, 6])])
def test_the_answers_of_the_kl_estimate_are_shared_by_the_ranks(one, two, folder, limit, of_one, of_two):
    assert one.run(_answers_of_the_estimate, folder, limit) == of_one
    assert two.run(_answers_of_the_estimate, folder, limit) == of_two


def _two_steps_on_one_pair(meeting: Rendezvous, folder: Path) -> dict:
    """What the second step says of a pair, and the policy's own numbers between the two."""
    learner = make_learner(meeting, folder)
    pairs = make_pairs(folder, 1)
    (pair,) = with_logprobs(pairs, scores_of(learner, pairs))
    frame = frame_of([replace(pair, beta_scale=1.31606)], meeting)
    learner.begin(replace(PLAN, options={"beta": 0.3}))
    learner.step(frame, lr=1e-3, batch=0)
    chosen, rejected = (float(values.sum()) for values in scores_of(learner, pairs))
    second = learner.step(frame, lr=1e-3, batch=0)
    return {
        "margin": (chosen - pair.chosen.logprob) - (rejected - pair.rejected.logprob),
        "chosen": chosen - pair.chosen.logprob,
        **second.sums,
    }


def test_a_step_makes_the_chosen_answer_likelier_by_the_beta_of_round_and_pair(one, folder):
    (found,) = one.run(_two_steps_on_one_pair, folder)
    assert found["margin"] > 0.05
    assert found["loss"] == pytest.approx(math.log1p(math.exp(-0.3 * 1.31606 * found["margin"])), abs=1e-5)
    assert found["implicit_accuracy"] == 1.0
    assert found["reward_chosen"] == pytest.approx(0.3 * 1.31606 * found["chosen"], abs=1e-5)


def _two_steps_on_critiques(meeting: Rendezvous, folder: Path) -> tuple[dict, dict]:
    learner = make_learner(meeting, folder, CritiqueReward(w_c=0.0))
    (pair,) = make_pairs(folder, 1)
    good, bad = (replace(pair.prompt, id=name, turns=(Turn(role="user", text=name),)) for name in ("red", "blue"))
    record = CritiquePair(
        chosen_prompt=good, rejected_prompt=bad, chosen_critique="a red circle", rejected_critique="a blue circle"
    )
    learner.begin(replace(PLAN, options={}))
    return tuple(learner.step(frame_of([record], meeting), lr=1e-3, batch=0).sums for _ in range(2))


def test_a_step_makes_the_score_of_the_chosen_answer_higher(one, folder):
    ((before, after),) = one.run(_two_steps_on_critiques, folder)
    assert after["score_margin"] > before["score_margin"] + 0.01
    assert after["score_margin"] == pytest.approx(after["score_chosen"] - after["score_rejected"], abs=1e-5)


def _imitate(meeting: Rendezvous, folder: Path, options: dict) -> tuple[float, float]:
    learner = make_learner(meeting, folder, SFT(), **options)
    pairs = make_pairs(folder, 6)
    records = [Demonstration(prompt=pair.prompt, response=text_response("there is a red circle .")) for pair in pairs]
    learner.begin(replace(PLAN, options={}))
    outputs = [learner.step(frame_of(records, meeting), lr=3e-3, batch=number) for number in range(12)]
    return outputs[0].sums["nll"] / 6, outputs[-1].sums["nll"] / 6


def test_imitation_is_learned_with_frozen_eyes_and_by_adapters(one, folder):
    adapters = lora(target_modules=["all-linear"], alpha=64.0)
    for options in ({}, {"freeze": ["visual"]}, {"lora": adapters}, {"precision": "bf16"}):
        ((first, last),) = one.run(_imitate, folder, options)
        assert last < first - 1


def _refusals(meeting: Rendezvous, folder: Path) -> list[str]:
    from rlsys.errors import ConfigError

    found = []
    for options in ({"freeze": ["vision"]}, {"freeze": ["model"]}):
        with pytest.raises(ConfigError) as error:
            make_learner(meeting, folder, DPO(), **options)
        found.append(str(error.value))
    learner = make_learner(meeting, folder)
    for reference in ("initial", "ema"):
        with pytest.raises(ConfigError) as error:
            learner.begin(replace(PLAN, reference=reference))
        found.append(str(error.value))
    return found


def test_options_that_do_not_fit_are_named(one, folder):
    (messages,) = one.run(_refusals, folder)
    assert messages[0] == "learner.freeze: no parameter has 'vision' in its name"
    assert "leaves nothing to train" in messages[1]
    assert "learner.initial_copy=true" in messages[2]
    assert "learner.ema_decay > 0" in messages[3]
