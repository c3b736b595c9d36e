"""Stages: their order, what makes them anew, how models are named, and the command that trains."""

import json
from pathlib import Path

import pytest

from rlsys import registry
from rlsys.app import cache, models, supervised, train
from rlsys.app import config as configuration
from rlsys.app.align import main as align
from rlsys.data.jsonl import JsonlDemonstrations
from rlsys.errors import ConfigError
from rlsys.objectives.dpo import DPO
from rlsys.objectives.sft import SFT
from rlsys.stages.base import MODEL, Stage, describe, in_order, stage_named
from rlsys.stages.recipe import Recipe
from rlsys.stages.train import Train, check_match


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("RLSYS_CACHE", str(tmp_path / "models"))
    return tmp_path / "models"


class On(Stage):
    """A stage that works on models, and writes down on which."""

    def __init__(self, *names):
        self.names = names

    def models(self):
        return self.names

    def make(self, target, tools):
        (target / MODEL).mkdir()
        (target / MODEL / "of").write_text(" ".join(Path(tools.model(name)).parent.name for name in self.names))


def load(*words):
    return configuration.load(["preset=scenes", *words])[0]


def test_stages_come_after_those_they_need_and_only_if_they_are_needed():
    stages = {"c": On("stage:b", "folder"), "a": On(), "b": On("stage:a", "stage:a"), "d": On()}
    assert in_order(stages, ["stage:c", "folder", "stage:b"]) == ["a", "b", "c"]
    assert in_order(stages, ["folder"]) == []
    assert (stage_named("stage:x"), stage_named("x"), stage_named("/stage:x")) == ("x", None, None)
    with pytest.raises(ConfigError, match="stage:e: no such stage; there are: c, a, b, d"):
        in_order(stages, ["stage:e"])
    stages["a"] = On("stage:c")
    with pytest.raises(ConfigError, match="stages need each other: b -> a -> c -> b"):
        in_order(stages, ["stage:b"])


def test_a_model_is_made_once_and_after_those_it_is_made_of(directory):
    config = load()
    config.stages = {"late": On("stage:early"), "early": On()}
    folder = models.model_folder(config, None, "stage:late", "key")
    assert (folder / "of").read_text() == models.model_folder(config, None, "stage:early", "key").parent.name
    stamp = (folder / "of").stat().st_mtime_ns
    assert models.model_folder(config, None, "stage:late", "key") == folder
    assert (folder / "of").stat().st_mtime_ns == stamp
    assert sorted(path.name.split("-")[0] for path in directory.iterdir() if path.is_dir()) == ["early", "late"]


def test_what_a_stage_reads_is_checked_before_an_earlier_one_is_made(directory):
    def fails():
        raise ConfigError("no such file")

    config = load()
    config.stages = {"late": On("stage:early"), "early": On()}
    config.stages["late"].check = fails
    with pytest.raises(ConfigError, match="no such file"):
        models.model_folder(config, None, "stage:late", "key")
    assert not directory.exists()


def test_models_are_given_as_folders_or_there_is_one_line(tmp_path):
    assert models.model_folder(load(), None, str(tmp_path), "key") == tmp_path
    with pytest.raises(ConfigError, match=r"policy\.model: no folder '/not/there', and no such model can be had"):
        models.model_folder(load(), None, "/not/there", "policy.model")


def test_the_scenes_models_are_stages_of_the_preset_with_their_old_names():
    config = load("policy.model=scenes")
    assert list(config.models().values()) == ["stage:policy", "stage:judge"]
    assert in_order(config.stages, list(config.models().values())) == ["random", "policy", "judge"]
    policy, judge = config.stages["policy"], config.stages["judge"]
    found = [(s.lr, s.lr_schedule, s.warmup, s.batch_size, s.epochs, s.shuffle) for s in (policy, judge)]
    assert found == [(1.5e-3, "linear", 0.03, 32, 1, False), (1e-3, "cosine", 0.1, 16, 1, False)]
    for stage in (policy, judge):
        learner = supervised.learner_options(config, stage.learner)
        assert (learner.num_ranks, learner.betas, learner.precision) == (1, [0.9, 0.98], "fp32")
    data = judge.data
    assert (data.batch, data.num_prompts, data.num_candidates, data.max_tokens) == (32, 2000, 4, 64)
    assert (data.max_pairs_per_prompt, data.num_shortened, data.disturbed_rate) == (4, 2, 0.5)
    assert (policy.data.num_examples, policy.data.partner_rate, data.engine.max_model_len) == (38400, 0.45, 512)


KEYS = [
    # overrides, stages that are made anew
    (["schedule.max_tokens=32", "schedule.rounds=9", "eval.batch=7", "name=other"], ""),
    (["rollout.engine.max_model_len=1024", "rollout.batch=3", "rollout.num_actors=2"], ""),
    (["learner.num_ranks=2", "learner.zero_stage=3", "learner.freeze=[visual]", "learner.precision=bf16"], ""),
    (["cluster=one_gpu", "objective.beta=0.3", "method=iterative_dpo", "feedback.max_tokens=7"], ""),
    (["seed=1"], "random policy judge"),
    (["stages.policy.lr=1e-3"], "policy judge"),
    (["stages.policy.objective.per=examples"], "policy judge"),
    (["+stages.policy.learner.weight_decay=0.1"], "policy judge"),
    (["stages.judge.data.max_tokens=32"], "judge"),
    (["stages.judge.data.engine.dtype=bfloat16"], "judge"),
    (["stages.judge.objective.c0=0.5"], "judge"),
    (["stages.judge.learner=null"], "judge"),
]


@pytest.fixture(scope="module")
def before():
    return keys_of(load())


def keys_of(config):
    return models.stage_keys(config, ["random", "policy", "judge"])


@pytest.mark.parametrize(("words", "anew"), KEYS, ids=[words[0] for words, _ in KEYS])
def test_options_make_those_models_anew_that_they_decide(before, words, anew):
    after = keys_of(load(*words))
    assert [name for name in before if before[name] != after[name]] == anew.split()


def test_the_versions_that_decide_weights_are_in_the_key(before):
    assert {"torch", "transformers", "deepspeed", "numpy"} <= set(before["policy"]["versions"])
    assert "ray" not in before["policy"]["versions"]
    assert cache.digest(before["policy"]) == before["judge"]["models"]["stage:policy"]
    json.dumps(before)


def test_the_runs_own_learner_counts_by_the_options_that_decide_weights():
    def options(*words):
        return supervised.deciding_options(load(*words), None)

    unchanged = options("learner.cores=1", "learner.deadline_s=5", "learner.image_cache_mib=9", "learner.batch_size=4")
    assert options() == unchanged and "ema_decay" not in unchanged
    assert options("learner.lora.r=4")["lora"]["r"] == 4
    assert options("learner.ema_decay=0.9")["ema_decay"] == 0.9
    assert options("learner.zero_stage=2") != options()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("{num_rank: 2}", r"stages\.policy: learner has no option 'num_rank'; there are: num_ranks, zero_stage"),
        ("{num_ranks: 0}", r"stages\.policy: learner\.num_ranks must be at least 1, got 0"),
        ("{num_ranks: two}", r"stages\.policy: learner: .*'two'.*Integer"),
        ("{lora: {rank: 2}}", r"stages\.policy: learner: Key 'rank' not in 'LoraConfig'"),
    ],
)
def test_a_learner_of_a_stages_own_is_checked(own, message):
    with pytest.raises(ConfigError, match=message):
        load(f"+stages.policy.learner={own}")


def test_a_learner_of_a_stages_own_works_on_the_runs_device():
    config = load("learner.gpus=0.5", "learner.num_ranks=1", "learner.precision=bf16", "cluster=one_gpu")
    found = supervised.learner_options(config, {"lora": {"r": 2}})
    assert (found.gpus, found.precision, found.lora.r) == (0.5, "fp32", 2)
    assert supervised.learner_options(config, None) is config.learner


@pytest.mark.parametrize(
    ("count", "epochs", "steps"),
    [(1, 1, 1), (32, 1, 1), (33, 1, 2), (100, 3, 12)],
)
def test_a_recipes_steps(count, epochs, steps):
    assert Recipe(batch_size=32, epochs=epochs).num_steps(count) == steps


def test_what_a_stage_is_holds_all_its_options_and_those_of_its_plug_ins(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    stage = Train(model="m", data=JsonlDemonstrations(path=str(tmp_path / "a.jsonl")), objective=SFT(), lr=1e-3)
    found = describe(stage)
    assert (found["plugin"], found["model"], found["lr"]) == ("Train", "m", 1e-3)
    assert found["objective"] == {"plugin": "SFT", "per": "tokens"}
    assert set(found["data"]) == {"plugin", "content"}


def test_an_objective_must_learn_from_what_the_data_has():
    registry.discover()
    data = JsonlDemonstrations(path="x")
    check_match(data, SFT())
    with pytest.raises(
        ConfigError, match=r"objective=dpo learns from PreferencePair .*data=jsonl has Demonstration .*sft"
    ):
        Train(model="m", data=data, objective=DPO())
    with pytest.raises(ConfigError, match=r"train\.objective must be an objective, got 3"):
        check_match(data, 3)


def run(capsys, *words):
    status = train.main(list(words))
    out = capsys.readouterr()
    return status, out.out, out.err


MISTAKES = [
    (
        [],
        "rlsys train needs data=NAME, there are: critiques, jsonl, preferences, scenes_critiques, scenes_demonstrations, text",
    ),
    (["data=jsonl", "data.path=x", "objective=sft"], "rlsys train needs train.model=FOLDER"),
    (["data=jsonl", "data.path=x", "objective=dpo", "train.model=m"], "objectives that learn from those: sft"),
    (["data=jsonl", "data.path=x", "objective=sft", "train.model=m"], "data.path must name a file, got 'x'"),
    (
        ["data=jsonl", "data.path=x", "objective=sft", "train.model=stage:b"],
        "stage:b: no such stage; there are: random",
    ),
    (["data=jsn"], "there are: critiques, jsonl, preferences, scenes_critiques, scenes_demonstrations, text"),
    (["data=jsonl", "data.paht=x"], "data.paht"),
    (["data=jsonl", "objective=sft", "train.model=m"], "data.path must name a file, got ''"),
    (
        ["train.stage=judge", "data=text", "data.path=x", "objective=sft"],
        "train.stage=judge says what is trained, and so",
    ),
    (["train.stage=critic"], "stage:critic: no such stage; there are: random, policy, judge"),
    (["train.epochs=0"], "train.epochs must be at least 1, got 0"),
    (["+stage@stages.mine=train"], "stages.mine"),
    (["learner.gpus=2", "data=text", "data.path=x", "objective=sft"], "learner.gpus must be at most 1"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line_before_anything_starts(capsys, words, message):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert message in err and err.count("\n") == 1


def test_a_name_that_is_taken_is_said(capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "a.txt").write_text("text")
    words = ["data=text", f"data.path={tmp_path / 'a.txt'}", "objective=sft", f"train.model={tmp_path}", "name=mine"]
    status, _, err = run(capsys, *words, f"output.runs_dir={tmp_path}")
    assert status == 2 and f"name: {tmp_path / 'mine'} exists already; choose another name" in err


def test_a_model_that_is_not_there_is_said_before_a_folder_is_made(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    words = ["data=text", f"data.path={tmp_path / 'a.txt'}", "objective=sft", "train.model=/not/there", "name=mine"]
    status, _, err = run(capsys, *words, f"output.runs_dir={tmp_path}")
    assert status == 2 and "train.model: no folder '/not/there', and no such model can be had from the hub" in err
    assert not (tmp_path / "mine").exists()


def test_plans_say_what_would_be_done(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    words = [f"data.path={tmp_path / 'a.txt'}", "data.max_characters=3", "objective=sft", "learner.num_ranks=2"]
    status, out, _ = run(capsys, "data=text", *words, "train.model=stage:policy", "train.epochs=2", "dry_run=true")
    assert status == 0
    assert (
        "train: stage:policy learns from text (2 examples, 2 steps) by sft: 2 x batches of 32, lr 1e-05 cosine" in out
    )
    assert "stage random: scenes_weights; to be made" in out
    assert "stage policy: stage:random learns from scenes_demonstrations (38,400 examples, 1,200 steps) by sft" in out
    assert "stage judge" not in out and "learner        2" in out
    status, out, _ = run(capsys, "train.stage=judge", "dry_run=true")
    assert status == 0 and "stage judge: stage:policy learns from scenes_critiques by critique_reward" in out
    assert "learner        1" in out


def test_a_plan_knows_what_is_made_already(capsys, directory):
    config = load()
    key = models.stage_keys(config, ["random"])["random"]
    cache.cached("random", key, lambda folder: (folder / MODEL).mkdir())
    assert align(["dry_run=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("; ")[2].partition(":")[0] for line in lines if line.startswith("stage ")] == [
        "made already",
        "to be made",
        "to be made",
    ]


def test_the_rounds_make_their_examples_themselves(capsys):
    assert align(["data=text", "data.path=x", "objective=sft", "dry_run=true"]) == 2
    assert "data=text is for rlsys train" in capsys.readouterr().err


def test_a_stage_of_ones_own_is_put_together_on_the_command_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    words = ["+stage@stages.mine=train", "+data@stages.mine.data=preferences", "+objective@stages.mine.objective=dpo"]
    words += [
        "stages.mine.model=stage:policy",
        f"stages.mine.data.path={tmp_path / 'a.jsonl'}",
        "policy.model=stage:mine",
    ]
    config = load(*words, "stages.mine.objective.beta=0.2")
    stage = config.stages["mine"]
    assert (stage.model, stage.objective, stage.data.count()) == ("stage:policy", DPO(beta=0.2), 1)
    assert in_order(config.stages, list(config.models().values())) == ["random", "policy", "mine", "judge"]
