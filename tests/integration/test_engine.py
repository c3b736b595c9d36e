"""The vLLM adapter against transformers: answers, log-probabilities, and weight updates of every part of the model."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.engines import discover, vllm_steps
from actors.engines import engine as engines
from actors.rollout import RolloutWorker
from rlsys import wire
from rlsys.errors import ConfigError, EngineError, SyncError
from rlsys.records import Image, Probe, Prompt, Sampling, Turn
from rlsys.transports.gloo import Gloo
from tests.integration.small_model import Transformers, WeightSender, make_prompts, make_small, push, weights_of

TOLERANCE = 1e-4
PARTS = {
    "head": "lm_head.weight",
    "embeddings": "model.embed_tokens.weight",
    "final norm": "model.norm.weight",
    "layer norm": "model.layers.0.input_layernorm.weight",
    "attention": "model.layers.1.self_attn.k_proj.weight",
    "attention bias": "model.layers.0.self_attn.q_proj.bias",
    "mlp": "model.layers.0.mlp.up_proj.weight",
    "merger": "visual.merger.mlp.2.weight",
    "vision attention": "visual.blocks.0.attn.qkv.weight",
    "vision mlp": "visual.blocks.1.mlp.down_proj.weight",
    "vision norm": "visual.blocks.1.norm2.weight",
    "patch embedding": "visual.patch_embed.proj.weight",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model") / "policy")


@pytest.fixture(scope="module")
def engine(folder):
    discover()
    opened = engines.make("vllm", max_model_len=256, max_num_batched_tokens=2048).open(str(folder), version=7)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def truth(folder):
    return Transformers(folder)


@pytest.fixture(scope="module")
def sending(folder):
    """Connects on first use; weights can be replaced between updates."""
    made = WeightSender(Gloo(bucket_bytes=64 << 10, deadline_s=30), weights_of(folder))
    yield made
    made.close()


@pytest.fixture
def restored(engine, sending, folder):
    """Afterwards, the engine holds the checkpoint's weights again."""
    yield
    sending.weights = weights_of(folder)
    push(sending, engine, 7)


def gap(engine, truth, prompt, answer):
    probe = Probe(
        prompt=prompt,
        prompt_token_ids=tuple(engine.generate([(prompt, Sampling(max_tokens=1))])[0].prompt_token_ids.tolist()),
        response_token_ids=tuple(int(token) for token in answer),
    )
    [scored] = engine.logprobs([probe])
    return float(np.abs(scored - truth.logprobs(prompt, answer)).max())


def assert_same(some, others):
    for one, two in zip(some, others, strict=True):
        assert np.array_equal(one.prompt_token_ids, two.prompt_token_ids)
        for a, b in zip(one.completions, two.completions, strict=True):
            assert np.array_equal(a.token_ids, b.token_ids) and np.array_equal(a.logprobs, b.logprobs)


ANSWER = np.array([20, 31, 42, 25, 60, 33], dtype=np.int32)


def test_an_eager_engine_needs_no_compiler(folder, tmp_path):
    program = (
        "import sys\n"
        "import torch._dynamo\n"  # whose modules have read the environment when the engine comes
        "from actors.engines.vllm import Vllm\n"
        "from rlsys.records import Sampling\n"
        "from tests.integration.small_model import make_prompts\n"
        "engine = Vllm(max_model_len=256, max_num_batched_tokens=2048).open(sys.argv[1])\n"
        "[answer] = engine.generate([(prompt, Sampling(max_tokens=4)) for prompt in make_prompts(1)])\n"
        "print(len(answer.completions[0].logprobs), torch._dynamo.utils.counters['frames'].total())\n"
    )
    without = {"CXX": str(tmp_path / "absent"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    kept = {name: value for name, value in os.environ.items() if name != "TORCH_COMPILE_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], env=kept | without, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split()[-2:] == ["4", "0"], done.stderr
    assert not list(tmp_path.iterdir())


def test_options_are_checked():
    discover()
    with pytest.raises(ConfigError, match=r"engine\.dtype must be one of auto, float32.*got 'float8'"):
        engines.make("vllm", dtype="float8")
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens must be at least.*got 100 < 200"):
        engines.make("vllm", max_model_len=200, max_num_batched_tokens=100)


def test_sampled_tokens_come_with_the_models_own_logprobs(engine, truth):
    prompts = make_prompts(3)
    generations = engine.generate([(p, Sampling(num_samples=4, max_tokens=12, seed=i)) for i, p in enumerate(prompts)])
    for prompt, generation in zip(prompts, generations, strict=True):
        assert len(generation.completions) == 4
        for one in generation.completions:
            assert len(one.token_ids) == len(one.logprobs) and one.score_logits is None
            np.testing.assert_allclose(one.logprobs, truth.logprobs(prompt, one.token_ids), atol=TOLERANCE)


def test_logprobs_are_what_vllm_hands_out_to_others(engine):
    request = (make_prompts(1)[0], Sampling(num_samples=3, max_tokens=12, seed=5))
    [ours] = engine.generate([request])
    words = engine._translator
    [others] = engine._llm.generate([words.prompt(request[0])], [words.sampling(request[1])], use_tqdm=False)
    for one, other in zip(ours.completions, others.outputs, strict=True):
        entries = list(other.logprobs)
        assert [list(entry) for entry in entries] == [[token] for token in one.token_ids]
        assert [
            entry[token].logprob for entry, token in zip(entries, one.token_ids, strict=True)
        ] == one.logprobs.tolist()
        assert other.cumulative_logprob == pytest.approx(one.logprobs.sum(), abs=1e-4)


def test_prompt_tokens_are_those_of_the_processor(engine, truth):
    [prompt] = make_prompts(1)
    [generation] = engine.generate([(prompt, Sampling(max_tokens=1))])
    placeholder = truth.model.config.image_token_id
    assert int((generation.prompt_token_ids == placeholder).sum()) == 9  # 84 x 84 pixels: 3 x 3 merged patches
    text_only = Prompt(id="text", turns=(Turn(role="user", text="is there a red circle"),))
    [without] = engine.generate([(text_only, Sampling(max_tokens=1))])
    assert placeholder not in without.prompt_token_ids


def test_top_p_and_temperature_change_what_is_sampled_and_not_the_logprobs(engine, truth):
    [prompt] = make_prompts(1)
    [generation] = engine.generate(
        [(prompt, Sampling(num_samples=4, temperature=0.5, top_p=0.8, max_tokens=8, seed=3))]
    )
    for one in generation.completions:
        np.testing.assert_allclose(one.logprobs, truth.logprobs(prompt, one.token_ids), atol=TOLERANCE)


def test_special_tokens_never_appear_but_the_end_does(engine, truth, restored, sending, folder):
    weights = weights_of(folder)
    weights["lm_head.weight"] = weights["lm_head.weight"] * 0.01  # all tokens about equally likely
    sending.weights = weights
    push(sending, engine, 8)
    tokenizer = truth.processor.tokenizer
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    end = tokenizer.eos_token_id
    requests = [(p, Sampling(num_samples=16, max_tokens=60, seed=i)) for i, p in enumerate(make_prompts(4, seed=2))]
    completions = [one for generation in engine.generate(requests) for one in generation.completions]
    tokens = np.concatenate([one.token_ids for one in completions])
    assert len(tokens) > 1500
    assert set(tokens.tolist()) & special == {end}
    for one in completions:
        assert (one.finish_reason == "stop") == (one.token_ids[-1] == end)
        assert end not in one.token_ids[:-1]
        assert one.finish_reason in ("stop", "length") and "<" not in one.text


def test_greedy_candidates_are_all_the_same(engine):
    [generation] = engine.generate([(make_prompts(1)[0], Sampling(num_samples=3, temperature=0.0, max_tokens=5))])
    first, *others = generation.completions
    assert len(others) == 2 and all(np.array_equal(first.token_ids, one.token_ids) for one in others)


def test_same_seeds_same_tokens_whatever_was_asked_before(engine):
    requests = [
        (p, Sampling(num_samples=4, max_tokens=20, seed=100 + i)) for i, p in enumerate(make_prompts(4, seed=5))
    ]
    first = engine.generate(requests)
    engine.generate([(p, Sampling(num_samples=2, max_tokens=9, seed=9)) for p in make_prompts(7, seed=6)])
    again = engine.generate(requests)
    assert_same(first, again)
    other = engine.generate([(p, Sampling(num_samples=4, max_tokens=20, seed=900)) for p, _ in requests])
    assert any(not np.array_equal(a.completions[0].token_ids, b.completions[0].token_ids)
               for a, b in zip(first, other, strict=True))  # fmt: skip


def crowd():
    """More candidates than the engine samples at once: 40 requests of 8, where 256 are 32 requests."""
    return [
        (prompt, Sampling(num_samples=8, max_tokens=24 if 20 <= number < 24 else 4, seed=number))
        for number, prompt in enumerate(make_prompts(40, seed=11))
    ]


def test_answers_come_in_order_as_they_are_ready_and_requests_enter_as_others_leave(engine, truth, monkeypatch):
    entered, llm_engine = [], engine._llm.llm_engine
    add = llm_engine.add_request
    monkeypatch.setattr(llm_engine, "add_request", lambda *given: entered.append(given) or add(*given))
    parts, inside = [], []
    for ready in engine.stream(crowd()):
        parts.append(ready)
        inside.append(len(entered))
    assert inside[0] == 32 and inside[-1] == 40 and len(parts) > 2
    generations = [one for ready in parts for one in ready]
    for (_, wanted), generation in zip(crowd(), generations, strict=True):
        assert len(generation.completions) == 8
        assert all(len(one.token_ids) <= wanted.max_tokens for one in generation.completions)
    for number in (0, 17, 39):  # the first, one in the middle and the last: each has the answers of its own prompt
        one = generations[number].completions[7]
        np.testing.assert_allclose(one.logprobs, truth.logprobs(crowd()[number][0], one.token_ids), atol=TOLERANCE)


def test_how_often_answers_are_handed_over_does_not_change_them(engine, monkeypatch):
    requests = [(prompt, Sampling(max_tokens=2 + i, seed=i)) for i, prompt in enumerate(make_prompts(12, seed=31))]
    parts = list(engine.stream(requests))
    monkeypatch.setattr(vllm_steps, "STEPS", 1)
    singly = list(engine.stream(requests))
    assert len(parts) <= 4 and len(singly) > 6
    assert_same([one for ready in parts for one in ready], [one for ready in singly for one in ready])


def test_a_stream_that_is_left_leaves_an_idle_engine_and_the_next_call_as_it_was(engine):
    whole = engine.generate(crowd())
    stream = engine.stream(crowd())
    next(stream)
    stream.close()
    assert not engine._llm.llm_engine.has_unfinished_requests()
    assert_same(whole, engine.generate(crowd()))


def mixed(seed=17):
    """Pictures that are new, that were there before, both in one prompt, one twice, and none."""
    a, b, c, d, e, f, g = (image for prompt in make_prompts(7, seed=seed) for image in prompt.images)
    shown = [(a,), (b, c), (d,), (a,), (d, b), (e, a), (), (f, f), (g,)]
    asked = ("describe the picture", "is there a red circle")
    return [
        (
            Prompt(id=f"m{number}", turns=(Turn(role="user", text=asked[number % 2]),), images=images),
            Sampling(num_samples=2, max_tokens=6, seed=number),
        )
        for number, images in enumerate(shown)
    ]


@pytest.fixture
def num_images(engine, monkeypatch):
    """Of every prompt that vLLM processes."""
    renderer, found = engine._llm.renderer, []
    process = renderer.process_for_engine

    def watch(prompt, *given):
        found.append(len(prompt["multi_modal_uuids"]["image"]) if "multi_modal_uuids" in prompt else 0)
        return process(prompt, *given)

    monkeypatch.setattr(renderer, "process_for_engine", watch)
    return found


def test_joined_prompts_are_answered_as_if_each_were_alone(engine, truth, num_images, monkeypatch):
    together = engine.generate(mixed())
    assert num_images == [4, 3, 2, 0, 2, 1]  # a + bc + d, a + db, ea, none, ff, g
    monkeypatch.setattr(engine._joiner, "_most_images", 1)
    del num_images[:]
    assert_same(together, engine.generate(mixed()))
    assert num_images == [1, 2, 1, 1, 2, 2, 0, 2, 1]
    for (prompt, _), generation in zip(mixed(), together, strict=True):
        for one in generation.completions:
            np.testing.assert_allclose(one.logprobs, truth.logprobs(prompt, one.token_ids), atol=TOLERANCE)


def test_prompts_of_images_that_were_evicted_are_not_joined(engine, num_images, monkeypatch):
    expected = engine.generate(mixed())
    cache = engine._llm.renderer.mm_processor_cache
    is_cached = cache.is_cached

    def evict(digests):
        cache.invalidate(digests[0])
        return is_cached(digests)

    monkeypatch.setattr(cache, "is_cached", evict)
    del num_images[:]
    assert_same(expected, engine.generate(mixed()))
    assert num_images == [4, 1, 2, 2, 0, 2, 1]  # as before, but a and db by themselves


def test_prompts_that_the_model_does_not_take_are_not_answered_and_others_are_as_without_them(engine):
    engine.notes.clear()
    asked = mixed(seed=23)  # images that the engine has not had
    expected = [engine.generate([one])[0] for one in asked]
    (long, sampling), thin = asked[0], Image(pixels=np.zeros((1000, 4, 3), np.uint8))
    words = (Turn(role="user", text="red circle " * 200),)
    wrong = [replace(long, id="long", turns=words), replace(long, id="thin", images=(thin,))]
    found = engine.generate([(wrong[0], sampling), *asked[:3], (wrong[1], sampling), *asked[3:], (wrong[0], sampling)])
    assert [len(one.completions) for one in (found[0], found[4], found[-1])] == [0, 0, 0]
    assert_same(expected, [*found[1:4], *found[5:-1]])
    too_long = "prompt 'long': 416 tokens leave no room for an answer, engine.max_model_len is 256"
    assert engine.notes[0] == engine.notes[2] == too_long and len(engine.notes) == 3
    assert engine.notes[1].startswith("prompt 'thin': ") and "aspect ratio" in engine.notes[1]
    assert_same(engine.generate(asked), engine.generate(asked))


def test_an_engine_that_takes_no_prompt_at_all_says_why(engine, monkeypatch):
    [prompt] = make_prompts(1)
    long = replace(prompt, turns=(Turn(role="user", text="red circle " * 200),))
    assert engine.generate([(long, Sampling())])[0].completions == ()  # it has answered others
    monkeypatch.setattr(engine, "_has_answered", False)
    with pytest.raises(
        EngineError, match=rf"none of 2 prompts can be answered; prompt '{prompt.id}': 4\d\d tokens leave no"
    ):
        engine.generate([(long, Sampling())] * 2)
    probe = Probe(prompt=long, prompt_token_ids=(1,), response_token_ids=(20,))
    with pytest.raises(EngineError, match=rf"probe of prompt '{prompt.id}': 4\d\d tokens"):
        engine.logprobs([probe])


def test_a_probe_that_filled_the_engine_can_be_scored(engine):
    [prompt] = make_prompts(1)

    def worded(count):
        return replace(prompt, turns=(Turn(role="user", text=" ".join(["red"] * count)),))

    overhead = len(engine.generate([(worded(1), Sampling(max_tokens=1))])[0].prompt_token_ids) - 1
    worker = RolloutWorker.__new__(RolloutWorker)
    worker._engine = engine
    with pytest.raises(EngineError, match=rf"none of the probes' 1 prompts can be answered: '{prompt.id}'"):
        worker.answer(wire.encode_many([worded(400)]), Sampling(max_tokens=32, seed=1))
    frame = wire.encode_many([worded(256 - 4 - overhead), worded(400)])
    [probe] = wire.decode_many(worker.answer(frame, Sampling(max_tokens=32, seed=1)), Probe)
    assert len(probe.prompt_token_ids) == 252 and len(probe.response_token_ids) == 3
    assert np.isfinite(engine.logprobs([probe])[0]).all()


def test_a_request_that_fails_half_way_leaves_an_idle_engine(engine, monkeypatch):
    expected = engine.generate(mixed())
    core = engine._llm.llm_engine.engine_core
    add, added = core.add_request, []

    def fail(request):
        added.append(request)
        if len(added) == 6:  # the second candidate of the third prompt
            raise RuntimeError("no room")
        add(request)

    with monkeypatch.context() as patch:
        patch.setattr(core, "add_request", fail)
        with pytest.raises(EngineError, match="no room"):
            engine.generate(mixed())
    assert not engine._llm.llm_engine.has_unfinished_requests()
    assert_same(expected, engine.generate(mixed()))


def test_probes_are_scored_as_transformers_does_and_foreign_ones_refused(engine, truth):
    [prompt] = make_prompts(1)
    assert gap(engine, truth, prompt, ANSWER) < TOLERANCE
    with pytest.raises(EngineError, match="p0-0"):
        engine.logprobs([Probe(prompt=prompt, prompt_token_ids=(1, 2, 3), response_token_ids=(20, 31))])


def test_raw_scores_need_an_engine_opened_for_them(engine):
    with pytest.raises(EngineError, match="raw_logits"):
        engine.generate([(make_prompts(1)[0], Sampling(score_token="<score>"))])


@pytest.mark.parametrize("part", PARTS)
def test_an_update_of_each_part_arrives_also_for_an_image_seen_before(part, engine, truth, sending, restored, tmp_path):
    [prompt] = make_prompts(1, seed=11)
    before = truth.logprobs(prompt, ANSWER)
    assert gap(engine, truth, prompt, ANSWER) < TOLERANCE  # the image is now cached wherever it can be
    weights = weights_of(truth.folder)
    noise = torch.randn(weights[PARTS[part]].shape, generator=torch.Generator().manual_seed(0))
    weights[PARTS[part]] = weights[PARTS[part]] + 0.3 * noise
    sending.weights = weights
    outcome = push(sending, engine, 8)
    assert outcome["received"]["digest"] == outcome["sent"]["digest"]
    assert outcome["received"]["num_tensors"] == len(weights) and outcome["received"]["version"] == 8
    changed = Transformers(truth.folder)
    changed.load(weights, tmp_path / "changed")
    assert np.abs(changed.logprobs(prompt, ANSWER) - before).max() > 1e-2
    assert gap(engine, changed, prompt, ANSWER) < TOLERANCE


def transfer_of(engine):
    """The weight-transfer engine of vLLM's worker, which is in this process."""
    worker = engine._llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    return getattr(worker, "worker", worker).weight_transfer_engine


@pytest.mark.parametrize("way", ["InPlace", "Layerwise"])
def test_updates_arrive_by_either_way_of_loading(way, engine, truth, sending, restored, monkeypatch, tmp_path):
    from actors import vllm_loading

    transfer = transfer_of(engine)
    if way == "Layerwise":
        monkeypatch.setattr(transfer, "_loading", vllm_loading.Layerwise(transfer.model, transfer.model_config))
    generator = torch.Generator().manual_seed(5)
    sending.weights = {
        name: weight + 0.02 * torch.randn(weight.shape, generator=generator)
        for name, weight in weights_of(truth.folder).items()
    }
    changed = Transformers(truth.folder)
    changed.load(sending.weights, tmp_path / "changed")
    for version in (8, 9):
        push(sending, engine, version)
        assert type(transfer._loading).__name__ == way
        assert gap(engine, changed, make_prompts(1, seed=14)[0], ANSWER) < TOLERANCE


def test_a_layer_is_packed_as_soon_as_its_weight_is_whole_and_then_has_none(engine, truth, sending, restored):
    push(sending, engine, 8)
    transfer = transfer_of(engine)
    weights = weights_of(truth.folder)
    q, k, v = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv")
    layer = next(
        module for name, module in transfer.model.named_modules() if name.endswith("layers.0.self_attn.qkv_proj")
    )
    transfer._loading.begin()
    for name, numbers in ((q, 0), (k, 0), (v, None)):
        before = layer.cpu_linear
        transfer.model.load_weights(iter([(name, weights[name])]))
        assert (layer.cpu_linear is before) == (numbers is not None)
    assert layer.weight.numel() == 0
    transfer.model.load_weights((name, weight) for name, weight in weights.items() if name not in (q, k, v))
    transfer._loading.end()
    assert gap(engine, truth, make_prompts(1, seed=15)[0], ANSWER) < TOLERANCE


def test_models_that_make_something_else_of_their_weights_are_reloaded_layer_by_layer(engine):
    from types import SimpleNamespace

    from actors.vllm_loading import InPlace, Layerwise, way_of_loading

    model, plain = transfer_of(engine).model, SimpleNamespace(quantization=None)
    assert isinstance(way_of_loading(model, plain, ranks=1), InPlace)
    assert isinstance(way_of_loading(model, plain, ranks=2), Layerwise)  # a rank's part of what comes is not counted
    assert isinstance(way_of_loading(model, SimpleNamespace(quantization="fp8"), ranks=1), Layerwise)
    absorbing = torch.nn.Linear(2, 2)
    absorbing.process_weights_after_loading = lambda dtype: None
    holder = torch.nn.ModuleList([model, absorbing])
    assert isinstance(way_of_loading(holder, plain, ranks=1), Layerwise)


def test_without_emptying_the_caches_a_vision_update_would_be_wrong(
    engine, truth, sending, restored, monkeypatch, tmp_path
):
    [prompt] = make_prompts(1, seed=12)
    gap(engine, truth, prompt, ANSWER)
    weights = weights_of(truth.folder)
    weights[PARTS["patch embedding"]] = weights[PARTS["patch embedding"]] * -1
    sending.weights = weights
    changed = Transformers(truth.folder)
    changed.load(weights, tmp_path / "changed")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_forget", lambda **_: None)
        push(sending, engine, 8)
        assert gap(engine, changed, prompt, ANSWER) > 1e-2
    push(sending, engine, 9)
    assert gap(engine, changed, prompt, ANSWER) < TOLERANCE


def test_each_of_the_three_caches_is_emptied(engine, sending, restored, monkeypatch):
    [prompt] = make_prompts(1, seed=13)
    engine.generate([(prompt, Sampling(max_tokens=2))])
    emptied = []
    core = engine._llm.llm_engine.engine_core
    for owner, name in (
        (engine._llm, "reset_prefix_cache"),
        (engine._llm, "reset_mm_cache"),
        (core, "reset_encoder_cache"),
    ):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda name=name, original=original: (emptied.append(name), original())[1])
    push(sending, engine, 8)
    assert sorted(set(emptied)) == ["reset_encoder_cache", "reset_mm_cache", "reset_prefix_cache"]


def test_a_tensor_that_is_missing_stops_the_update_and_the_engine_until_a_whole_one(engine, truth, sending, restored):
    weights = weights_of(truth.folder)
    del weights["model.layers.1.self_attn.v_proj.weight"]
    sending.weights = weights
    with pytest.raises(SyncError, match=r"version 8: 1 tensors .* did not arrive: model\.layers\.1\.self_attn\.v_proj"):
        push(sending, engine, 8)
    with pytest.raises(EngineError, match="failed half way"):
        engine.generate([(make_prompts(1)[0], Sampling())])
    sending.weights = weights_of(truth.folder)
    assert push(sending, engine, 9)["received"]["version"] == 9 == engine.version
    assert gap(engine, truth, make_prompts(1)[0], ANSWER) < TOLERANCE


def test_a_sender_lost_in_the_middle_is_an_error_and_the_next_update_is_whole(engine, truth, sending, restored):
    manifest = sending.manifest(sending.transport.bucket_bytes)
    first = manifest["buckets"][0]
    engine.begin_update()
    sending.sender.send_bucket([(name, sending.weights[name]) for name in first["names"]])
    sending.close()
    with pytest.raises(SyncError):
        engine.receive(manifest)
    assert push(sending, engine, 9)["received"]["version"] == 9
    assert gap(engine, truth, make_prompts(1)[0], ANSWER) < TOLERANCE
