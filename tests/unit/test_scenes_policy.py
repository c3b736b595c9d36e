import numpy as np
import pytest

from rlsys.worlds.scenes.annotate import annotate
from rlsys.worlds.scenes.language import JUDGE_TEMPLATE
from rlsys.worlds.scenes.policy import SCORE_TOKEN, Shape, make_policy, make_tokenizer
from rlsys.worlds.scenes.source import demonstrations, make_prompt

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("policy"), seed=3)


def test_words_of_the_world_survive_the_tokenizer():
    tokenizer = make_tokenizer()
    for demo in demonstrations(100):
        for text in (demo.prompt.question, demo.response.text, annotate(demo.prompt, demo.response.text).critique):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert len(ids) == len(text.split())
            assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in tokenizer(JUDGE_TEMPLATE.format(question="", answer="")).input_ids


def test_special_tokens_are_special_and_the_vocabulary_is_full():
    tokenizer = make_tokenizer()
    score = tokenizer.convert_tokens_to_ids(SCORE_TOKEN)
    assert score in tokenizer.all_special_ids
    assert tokenizer.decode([score, tokenizer.convert_tokens_to_ids("yes")], skip_special_tokens=True) == "yes"
    assert len(tokenizer) % 32 == 0
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_the_checkpoint_answers_about_a_picture(folder):
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert 1_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    prompt = make_prompt("online", 0, "describe")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt.question}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    batch = processor(text=[text], images=[prompt.images[0].pixels], return_tensors="pt")
    image_token = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert int((batch["input_ids"] == image_token).sum()) == 9
    assert processor.tokenizer.unk_token_id not in batch["input_ids"]
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape == (1, batch["input_ids"].shape[1], len(processor.tokenizer))
    assert bool(torch.isfinite(logits).all())


def test_text_content_and_lists_of_parts_read_the_same(folder):
    processor = transformers.AutoProcessor.from_pretrained(folder)
    plain = [{"role": "system", "content": "yes"}, {"role": "user", "content": "no"}]
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in plain]
    expected = "<|im_start|>system yes <|im_end|><|im_start|>user no <|im_end|>"
    for turns in (plain, parts):
        assert processor.apply_chat_template(turns, tokenize=False) == expected
    with_cue = processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert with_cue == expected + "<|im_start|>assistant "


def test_weights_depend_on_the_seed_only(folder, tmp_path):
    state = torch.random.get_rng_state()
    again, other = make_policy(tmp_path / "again", seed=3), make_policy(tmp_path / "other", seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [(path / "model.safetensors").read_bytes() for path in (folder, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_first_weights_keep_the_variance_of_their_inputs(folder):
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    weights = dict(model.named_parameters())
    layer = "model.language_model.layers.0"
    assert weights[f"{layer}.self_attn.q_proj.weight"].std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert weights[f"{layer}.self_attn.o_proj.weight"].std().item() == pytest.approx(128**-0.5 / 8**0.5, rel=0.05)
    assert weights["model.language_model.embed_tokens.weight"].std().item() == pytest.approx(0.7, rel=0.05)
    assert weights["lm_head.weight"].std().item() == pytest.approx(0.02, rel=0.05)


def test_sizes_fit_the_heads():
    with pytest.raises(ValueError, match=r"Shape\.hidden .* 100"):
        Shape(hidden=100)
    assert np.gcd(Shape().hidden, 32) == 32
