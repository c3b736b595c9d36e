"""Trees, packing and tokens. The processor is the real one of a small checkpoint."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.answers import Answers
from learners.collate import Collator
from learners.examples.kinds import kind_of
from learners.padding import Padding, multiple_for
from learners.plan import FitPlan
from learners.sample import ResponseSample
from learners.shards import batches_of, shards
from learners.tokens import Processor, RefusedRecord
from learners.trees import Branch, Tree, Unit, pack
from rlsys import wire
from rlsys.errors import ConfigError
from rlsys.objectives.kto import KTO
from rlsys.records import (
    CritiquePair,
    Demonstration,
    Image,
    PreferencePair,
    Prompt,
    RatedResponse,
    ScoredResponse,
    Turn,
    text_response,
)
from rlsys.worlds.scenes.policy import Shape, make_policy
from tests.fakes import sampled_response

SMALL = Shape(hidden=32, layers=1, mlp=32, vision_hidden=32, vision_layers=1, vision_mlp=32)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return Processor(make_policy(tmp_path_factory.mktemp("policy"), seed=0, shape=SMALL))


def picture(seed, size=84):
    return Image(pixels=np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def prompt(name, *images, text="describe the picture"):
    return Prompt(id=name, turns=(Turn(role="user", text=text),), images=images)


def rollout(*tokens, version=0):
    ids = np.array(tokens, dtype=np.int32)
    return sampled_response(text="", token_ids=ids, logprobs=-np.ones(len(ids), np.float32), policy_version=version)


def pair(processor, asked, chosen, rejected, version=0):
    return PreferencePair(
        prompt=asked, prompt_token_ids=processor.prompt_ids(asked), chosen=rollout(*chosen, version=version),
        rejected=rollout(*rejected, version=version), chosen_score=1.0, rejected_score=0.0, margin=1.0, beta_scale=1.0,
        round=0,
    )  # fmt: skip


def rated(processor, asked, *tokens, good=True):
    return RatedResponse(
        prompt=asked, prompt_token_ids=processor.prompt_ids(asked), response=rollout(*tokens), is_desirable=good,
        score=1.0, round=0,
    )  # fmt: skip


def test_pairs_of_one_prompt_become_one_tree_with_each_answer_once(processor):
    asked = prompt("p", picture(0))
    pairs = [pair(processor, asked, [20, 21], [22]), pair(processor, asked, [20, 21], [23, 24, 25])]
    (batch,) = Collator(processor, micro_batch_tokens=1000)(pairs)
    (tree,) = batch.trees
    assert [answer.token_ids.tolist() for answer in tree.answers] == [[20, 21], [22], [23, 24, 25]]
    assert [answers for _, answers in batch.examples] == [(0, 1), (0, 2)]
    size = len(tree.prompt_ids)
    assert batch.token_ids.tolist() == [*tree.prompt_ids.tolist(), 20, 21, 22, 23, 24, 25]
    assert batch.targets.tolist() == [20, 21, 22, 23, 24, 25]
    assert batch.predict.tolist() == [size - 1, size, size - 1, size - 1, size + 3, size + 4]
    assert batch.answer_of_token.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.last_token.tolist() == [1, 2, 5]
    assert len(batch.images) == 1


def test_pairs_of_other_versions_share_a_tree_and_those_of_other_pictures_do_not(processor):
    one, other = prompt("p", picture(0)), prompt("p", picture(1))
    pairs = [pair(processor, one, [20], [21]), pair(processor, one, [20], [22], version=1),
             pair(processor, other, [20], [21])]  # fmt: skip
    (batch,) = Collator(processor, micro_batch_tokens=1000)(pairs)
    first, second = sorted(batch.trees, key=lambda tree: -len(tree.answers))
    assert [(answer.token_ids.tolist(), answer.policy_version) for answer in first.answers] == [
        ([20], 0), ([21], 0), ([20], 1), ([22], 1)]  # fmt: skip
    assert len(second.answers) == 2
    assert len(batch.images) == 2
    assert sorted(batch.image_order) == [0, 1]


def test_responses_and_prompts_of_which_only_the_text_is_known_are_tokenized(processor):
    asked = prompt("p", picture(0))
    corrected = replace(
        pair(processor, asked, [20], [21]),
        chosen=text_response("there is a red circle ."),
        prompt_token_ids=np.zeros(0, np.int32),
    )
    (batch,) = Collator(processor, micro_batch_tokens=1000)([corrected])
    (tree,) = batch.trees
    words = processor.tokenizer.convert_ids_to_tokens(tree.answers[0].token_ids.tolist())
    assert words == ["there", "is", "a", "red", "circle", ".", "<|im_end|>"]
    assert tree.prompt_ids.tolist() == processor.prompt_ids(asked).tolist()
    assert [answer.policy_version for answer in tree.answers] == [None, 0]


def test_copies_of_a_scored_response_are_computed_once(processor):
    asked = prompt("p")
    record = ScoredResponse(
        prompt=asked, prompt_token_ids=processor.prompt_ids(asked), response=rollout(20, 21), score=1.0, advantage=0.5,
        round=0,
    )  # fmt: skip
    (batch,) = Collator(processor, micro_batch_tokens=1000)([record, replace(record, response=rollout(22)), record])
    assert [answers for _, answers in batch.examples] == [(0,), (1,), (0,)]
    assert batch.targets.tolist() == [20, 21, 22]
    assert (batch.num_target_tokens, batch.num_loss_tokens) == (3, 5)
    inputs = kind_of(ScoredResponse).inputs(batch, Answers(batch, torch.tensor([[-1.0, -2.0, -4.0], [0, 0, 0]])))
    assert inputs.responses.logps_B.tolist() == [-3.0, -4.0, -3.0]
    assert inputs.advantages_B.tolist() == [0.5, 0.5, 0.5]


def test_the_same_tokens_at_several_temperatures_are_computed_once_and_known_as_those_at_1(processor):
    asked = prompt("p")
    cool, warm = (
        replace(rollout(20, 21), count=count, sampled=replace(rollout(20, 21).sampled, temperature=temperature))
        for count, temperature in ((3, 0.7), (2, 1.0))
    )
    for chosen, other in ((cool, warm), (warm, cool)):
        pairs = [replace(pair(processor, asked, [20], [22]), chosen=one) for one in (chosen, other)]
        (batch,) = Collator(processor, micro_batch_tokens=1000)(pairs)
        assert [answers for _, answers in batch.examples] == [(0, 1), (0, 1)]
        assert (batch.answers[0].rollout.sampled.temperature, batch.answers[0].rollout.count) == (1.0, 2)


def conversation(processor, *, mask, tokens):
    ids = np.array(tokens, dtype=np.int32)
    return replace(rollout(*ids.tolist()), loss_mask=np.array(mask, dtype=np.uint8))


def test_tokens_of_a_users_turn_carry_no_loss_and_may_be_special(processor):
    end, start = processor.tokenizer.eos_token_id, processor.token_id("<|im_start|>")
    response = conversation(processor, tokens=[20, end, start, 21, 22, end], mask=[1, 1, 0, 0, 1, 1])
    record = Demonstration(prompt=prompt("p"), response=response)
    (batch,) = Collator(processor, micro_batch_tokens=1000)([record])
    assert batch.loss_mask.tolist() == [1, 1, 0, 0, 1, 1]
    output = torch.tensor([[-1.0, -1, -90, -90, -1, -1], [0.0] * 6])
    answers = Answers(batch, output, reference_L=torch.tensor([-2.0, -2, 0, 0, -2, -2]), with_old=True)
    tokens = answers.at(0)
    assert (tokens.logps_B.item(), tokens.log_ratios_B.item(), tokens.num_tokens_B.item()) == (-4.0, 4.0, 4)
    assert tokens.reference_logps_M.tolist() == [-2, -2, -90, -90, -2, -2]  # no ratio of theirs runs away
    assert tokens.old_logps_M.tolist() == [-1, -1, -90, -90, -1, -1]


@pytest.mark.parametrize(
    ("special", "mask"), [("<|im_start|>", [1, 1, 0]), ("<|image_pad|>", [1, 0, 1]), ("<|im_start|>", [0, 0, 0])]
)
def test_a_conversation_may_not_hold_what_a_template_does_not_write(processor, special, mask):
    response = conversation(processor, tokens=[20, processor.token_id(special), 21], mask=mask)
    with pytest.raises(RefusedRecord, match=r"special token|without a token that carries loss"):
        Collator(processor, micro_batch_tokens=1000)([Demonstration(prompt=prompt("p"), response=response)])


def test_one_example_of_every_prompt_brings_a_response_to_another_prompt(processor):
    kind = kind_of(RatedResponse)
    batch = [rated(processor, prompt(name, text=name), token) for name, token in
             (("red", 20), ("red", 21), ("blue", 22), ("green", 23))]  # fmt: skip
    completed = kind.completed(batch, KTO.needs)
    assert [r.mismatched and r.mismatched.token_ids.tolist() for r in completed] == [[22], None, [23], [20]]
    assert kind.completed(batch, frozenset()) == batch
    assert kind.completed(batch[:2], KTO.needs) == batch[:2]  # one prompt alone has no other
    (micro,) = Collator(processor, micro_batch_tokens=1000)(completed)
    found = {record.response.token_ids[0]: answers for record, answers in micro.examples}
    assert len(micro.trees) == 3 and [len(found[token]) for token in (20, 21, 22, 23)] == [2, 1, 2, 2]
    strangers = [answers[1] for _, answers in micro.examples if len(answers) > 1]
    assert all(micro.answers[number].policy_version is None for number in strangers)
    values = torch.stack([-micro.targets.float(), torch.zeros(len(micro.targets))])
    inputs = kind.inputs(micro, Answers(micro, values, reference_L=torch.zeros(len(micro.targets))))
    assert inputs.responses.logps_B.tolist() == [-float(r.response.token_ids[0]) for r, _ in micro.examples]
    assert sorted(inputs.mismatched.logps_B.tolist()) == [-23, -22, -20]


def test_responses_without_recorded_log_probabilities_are_named_where_they_are_needed(processor):
    record = Demonstration(prompt=prompt("red"), response=text_response("a red circle"))
    (batch,) = Collator(processor, micro_batch_tokens=1000)([record])
    with pytest.raises(RefusedRecord, match="prompt 'red': a response that no engine of the run sampled"):
        Answers(batch, torch.zeros(2, len(batch.targets)), with_old=True)


def test_a_record_without_an_adapter_is_named():
    with pytest.raises(ConfigError, match="no adapter for Turn records; there are adapters for CritiquePair, Demonst"):
        kind_of(Turn)


def test_a_prompt_with_more_answers_than_a_micro_batch_holds_is_shown_again(processor):
    asked = prompt("p")
    size = len(processor.prompt_ids(asked))
    pairs = [pair(processor, asked, [20, i], [21, i]) for i in range(22, 28)]
    batches = Collator(processor, micro_batch_tokens=size + 8)(pairs)
    assert [len(batch.examples) for batch in batches] == [2, 2, 2]
    assert all(len(batch.token_ids) == size + 8 for batch in batches)


def test_a_pair_of_answers_that_are_there_needs_no_room(processor):
    asked = prompt("p")
    size = len(processor.prompt_ids(asked))
    pairs = [pair(processor, asked, [20, i], [20, j]) for i, j in ((22, 23), (24, 25), (22, 24), (25, 26))]
    batches = Collator(processor, micro_batch_tokens=size + 8)(pairs)
    assert [[answers for _, answers in batch.examples] for batch in batches] == [[(0, 1), (2, 3), (0, 2)], [(0, 1)]]
    within = Collator(processor, micro_batch_tokens=size + 4)(pairs[:1] * 2)  # full, and as long as one example may be
    assert [[answers for _, answers in batch.examples] for batch in within] == [[(0, 1), (0, 1)]]


@pytest.mark.parametrize(
    ("prompts", "answers", "multiple", "expected"),
    [
        ([7, 5], [[2, 3], [3]], 1, ((), ())),
        ([7, 5], [[2, 3], [3]], 8, ((), (4,))),  # 8 tokens of answers already, 20 in all
        ([7, 5], [[2, 3], [4]], 8, ((4, 3), (4,))),  # 9 and 7 make 16, 28 and 4 make 32
        ([6], [[2]], 8, ((2, 2, 2), (2,))),
        ([9], [[3]], 64, ((3,) * 20 + (1,), (9, 9, 9, 9, 9, 9, 1))),
    ],
)
def test_rows_and_their_answers_are_filled_up_by_nothing_longer_than_they_have(prompts, answers, multiple, expected):
    padding = Padding.of(prompts, answers, multiple)
    assert (padding.answers, padding.prompts) == expected


def test_rows_are_filled_up_where_a_shape_costs_a_kernel():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [multiple_for(cpu, torch.bfloat16), multiple_for(cpu, torch.float32)] == [64, 1]
    assert multiple_for(gpu, torch.bfloat16) == 1


def test_packing_is_by_tokens_longest_first():
    def unit(size):
        return Unit(trees=[Tree(prompt_ids=np.zeros(size - 1, np.int32), answers=[Branch(token_ids=np.zeros(1))])])

    bins = pack([unit(size) for size in (3, 9, 4, 5, 20)], budget=10)
    assert [[one.num_tokens for one in packed] for packed in bins] == [[20], [9], [5, 4], [3]]


def test_demonstrations_end_with_end_of_sequence(processor):
    record = Demonstration(prompt=prompt("p", picture(0)), response=text_response("there is a red circle ."))
    (batch,) = Collator(processor, micro_batch_tokens=1000)([record])
    words = processor.tokenizer.convert_ids_to_tokens(batch.targets.tolist())
    assert words == ["there", "is", "a", "red", "circle", ".", "<|im_end|>"]


def test_critiques_end_with_the_score_token_and_stay_together(processor):
    record = CritiquePair(
        chosen_prompt=prompt("p", picture(0)), rejected_prompt=prompt("p", picture(0), text="is there a red circle"),
        chosen_critique="a red circle", rejected_critique="",
    )  # fmt: skip
    (batch,) = Collator(processor, micro_batch_tokens=4, score_token="<score>")([record])
    words = processor.tokenizer.convert_ids_to_tokens(batch.targets.tolist())
    assert words == ["a", "red", "circle", "<score>", "<score>"]
    assert batch.examples[0][1] == (0, 1)
    assert len(batch.images) == 1


def test_a_score_token_the_tokenizer_lacks_is_named(processor):
    with pytest.raises(ConfigError, match="no token '<worth>'"):
        Collator(processor, micro_batch_tokens=4, score_token="<worth>")


def test_prompts_are_those_of_the_processor_itself(processor):
    asked = prompt("p", picture(0), picture(1, size=56))
    whole = processor._processor
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": asked.question}]
    text = whole.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    expected = whole(text=[text], images=[image.pixels for image in asked.images])
    assert processor.prompt_ids(asked).tolist() == expected["input_ids"][0]
    ours = torch.cat([tensors.values["pixel_values"] for tensors in processor.images(asked.images)])
    torch.testing.assert_close(ours, torch.as_tensor(expected["pixel_values"]))


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|im_start|>", "<score>", "<|im_end|>"])
def test_special_tokens_inside_an_answer_are_refused_by_name(processor, token):
    bad = [20, processor.token_id(token), 21]
    with pytest.raises(RefusedRecord, match=r"special token '.*' \(\d+\) at place 1") as error:
        Collator(processor, micro_batch_tokens=100)([pair(processor, prompt("p"), [20], bad)])
    assert token in str(error.value)
    assert isinstance(error.value, ValueError)


def test_end_of_sequence_may_end_an_answer_and_text_may_not_smuggle_in_a_placeholder(processor):
    ended = [20, processor.tokenizer.eos_token_id]
    assert Collator(processor, micro_batch_tokens=100)([pair(processor, prompt("p"), ended, [21])])
    with pytest.raises(RefusedRecord, match="image_pad"):
        processor.response_ids("a red <|image_pad|> circle")


def test_an_empty_answer_is_refused(processor):
    with pytest.raises(RefusedRecord, match="without tokens"):
        Collator(processor, micro_batch_tokens=100)([pair(processor, prompt("p"), [20], [])])


def test_processed_pictures_are_kept_within_bounds(tmp_path):
    folder = make_policy(tmp_path, seed=0, shape=SMALL)
    small = Processor(folder, cache_mib=1)
    pictures = [picture(seed, size=168) for seed in range(30)]
    first = small.images(pictures)
    again = small.images(pictures[-1:])
    assert again[0] is first[-1]
    assert small._cache.num_bytes <= 1 << 20
    assert small.images(pictures[:1])[0] is not first[0]


def test_batches_keep_the_order_and_the_last_one_though_it_is_small():
    assert list(batches_of(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches_of([], 2)) == []


def test_shares_are_even_complete_and_keep_prompts_together(processor):
    batch = [pair(processor, prompt(f"p{number // 2}"), [20 + number], [30]) for number in range(8)]
    parts = shards(batch, 2)
    assert [len(part) for part in parts] == [4, 4]
    assert sorted(id(record) for part in parts for record in part) == sorted(map(id, batch))
    assert not {record.prompt.id for record in parts[0]} & {record.prompt.id for record in parts[1]}
    assert [len(part) for part in shards(batch[:1], 3)] == [1, 0, 0]
    assert [len(part) for part in shards([pair(processor, prompt("p"), [20 + i], [30]) for i in range(8)], 2)] == [4, 4]


def test_a_sample_does_not_keep_the_frames_that_its_trees_came_in(processor):
    asked = prompt("p", picture(0))
    frame = wire.encode_many([pair(processor, asked, [20, 21], [22])])
    (batch,) = Collator(processor, micro_batch_tokens=1000)(wire.decode_many(frame, PreferencePair))
    sample = ResponseSample(limit=4)
    sample.add(batch.trees)
    (kept,), (tree,) = sample.trees, batch.trees
    arrays = [kept.prompt_ids, kept.images[0].pixels]
    for answer, before in zip(kept.answers, tree.answers, strict=True):
        assert answer.rollout == before.rollout and answer.token_ids is answer.rollout.token_ids
        assert (answer.policy_version, answer.round) == (0, 0)
        arrays += [answer.token_ids, answer.rollout.sampled.logprobs]
    assert kept.images == tree.images and kept.prompt_ids.tolist() == tree.prompt_ids.tolist()
    assert all(array.flags.owndata for array in arrays)


def test_learning_rates():
    plan = FitPlan(lr=1.0, lr_schedule="linear", warmup=0.4, num_steps=5)
    assert [plan.lr_at(step) for step in range(6)] == pytest.approx([0.5, 1.0, 1.0, 2 / 3, 1 / 3, 0.0])
    cosine = FitPlan(lr=2.0, lr_schedule="cosine", warmup=0.5, num_steps=4)
    assert [cosine.lr_at(step) for step in range(4)] == pytest.approx([1.0, 2.0, 2.0, 1.0])
    assert FitPlan(lr=3.0).lr_at(99) == 3.0
    with pytest.raises(ConfigError, match=r"'cosine' with warmup 0\.0 needs num_steps"):
        FitPlan(lr=1.0, lr_schedule="cosine")
