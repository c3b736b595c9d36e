"""Command lines: what they compose to, and the one line that a mistake in them gets."""

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
from PIL import Image

from actors.engines.scripted import Scripted
from learners.config import LearnerConfig
from rlsys import registry
from rlsys.app import align
from rlsys.app import config as configuration
from rlsys.app.align import main
from rlsys.app.assembly import fingerprint
from rlsys.app.evaluate import main as evaluate
from rlsys.app.plan import ModelSize, check, learner_role, placements
from rlsys.app.report import main as report
from rlsys.app.starting import probe_prompts
from rlsys.checkpoints import checkpoint
from rlsys.errors import ConfigError
from rlsys.examples.all_pairs import AllPairs
from rlsys.examples.best_worst import BestWorst
from rlsys.feedback.text_judge import TextJudge
from rlsys.journal import Journal
from rlsys.objectives.dpo import DPO
from rlsys.placement.machine import Machine
from rlsys.records import (
    Demonstration,
    Interval,
    PreferencePair,
    RatedResponse,
    RoundReport,
    ScoredResponse,
    SyncReport,
)
from rlsys.schedules.gate import GateConfig, MetricGate

MISTAKES = [
    ("schedule.round=3", "schedule.round", "did you mean schedule.rounds?"),
    ("schedule.rounds=three", "schedule.rounds", "three"),
    ("preset=scene", "scene", "there are: qwen2_5_vl_3b, qwen2_5_vl_7b, scenes, scenes_ci"),
    ("rollout.num_actors=-1", "rollout.num_actors must be at least 1, got -1", ""),
    ("rollout.batch=0", "rollout.batch must be at least 1, got 0", ""),
    ("engines.judge.batch=0", "engines.judge.batch must be at least 1, got 0", ""),
    ("engines.judge.deadline_s=0", "engines.judge.deadline_s must be > 0, got 0.0", ""),
    ("eval.batch=0", "eval.batch must be at least 1, got 0", ""),
    ("eval.every=-1", "eval.every must be at least 0, got -1", ""),
    ("output.keep_checkpoints=-1", "output.keep_checkpoints must be at least 0, got -1", ""),
    ("sync.num_probes=0", "sync.num_probes must be at least 1, got 0", ""),
    ("gate.max_refusals=-4", "gate.max_refusals must be >= 0, got -4", ""),
    ("train.lr=-1", "train.lr must be > 0, got -1.0", ""),
    ("train.lr_schedule=falling", "train.lr_schedule must be one of constant, linear, cosine, got 'falling'", ""),
    ("stages.policy.warmup=1", "train.warmup must be in [0, 1), got 1.0", ""),
    ("stages.policy.data.partner_rate=-3", "data.partner_rate must be in [0, 1], got -3.0", ""),
    ("+stages.policy.data.tasks.sing=1", "data.tasks has unknown task 'sing'", ""),
    ("stages.judge.data.disturbed_rate=7", "data.disturbed_rate must be in [0, 1], got 7.0", ""),
    ("stages.judge.data.prompts=7", "stages.judge.data.prompts", "not in"),
    ("stages.policy.model=stage:judge", "stages need each other: policy -> judge -> policy", ""),
    ("policy.model=stage:writer", "stage:writer: no such stage; there are: random, policy, judge", ""),
    ("+stages.mine=3", "stages.mine must be a stage, got 3; choose one with +stage@stages.mine=KIND", "train"),
    ("objective@stages.policy.objective=dpo", "objective=dpo learns from PreferencePair records", "those: sft"),
    ("data@stages.policy.data=text", "data.path must name a file or folder, got ''", ""),
    ("schedule.lr=nan", "schedule.lr must be finite, got nan", ""),
    ("schedule.temperatures=[inf]", "schedule.temperatures must be finite, got [inf]", ""),
    ("learner.grad_clip=nan", "learner.grad_clip must be finite, got nan", ""),
    ("schedule.phases=[{rounds: x}]", "rounds must be a whole number of at least 1, got 'x'", ""),
    ("schedule.phases=[{temperatures: 1}]", "temperatures must be a list of numbers, got 1", ""),
    ("schedule.phases=[3]", "schedule.phases=[3]", "Cannot assign int"),
    ("schedule.lr={start: a, end: 2}", "lr.start must be a number, got 'a'", ""),
    ("+nope=1", "nope: no such option", ""),
    ("+learner.rank=1", "learner.rank: no such option", ""),
    ("prompts=null", "prompts=null", ""),
    ("rollout.engine=scripted", "rollout.engine must be an engine, got 'scripted'", "engine@rollout.engine=NAME"),
    (
        "objective=sft",
        "objective=SFT learns from Demonstration records",
        "examples=AllPairs makes PreferencePair records",
    ),
    ("objective.beta=0", "objective.beta must be > 0, got 0.0", ""),
    ("examples.min_margin=-1", "examples.min_margin must be at least 0, got -1.0", ""),
    (
        "schedule.phases=[{objective: {bta: 0.3}}]",
        "objective DPO has no option 'bta'",
        "there are: beta, label_smoothing, lambda_sft",
    ),
    (
        "schedule.phases=[{rounds: 2}, {examples: {name: best_worst, max_per_prompt: 3}}]",
        "examples BestWorst has no option 'max_per_prompt'",
        "there are: min_margin, scale_w, scale_k",
    ),
    ("schedule.phases=[{examples: nope}]", "no examples named 'nope'", "there are: all_pairs, best_worst"),
    ("schedule.phases=[{objective: {beta: hot}}]", "objective DPO, option beta: Value 'hot'", "converted to Float"),
    ("schedule.phases=[{objective: {beta: 0}}]", "objective.beta must be > 0, got 0.0", ""),
    ("schedule.phases=[{objective: 3}]", "objective must be options such as {name: value}, got 3", ""),
    ("schedule.phases=[{rounds: 2}, {objective: sft}]", "objective=SFT learns from Demonstration records", "AllPairs"),
    ("schedule.phases=[{pairs: best_worst}]", "schedule.phases.0: no key 'pairs'", "examples"),
    ("transport=nccl", "transport=nccl goes between GPUs", "rollout.gpus=0"),
    ("learner.gpus=2", "learner.gpus must be at most 1, as a rank works on one GPU; got 2", ""),
    ("sync.tolerance=-1", "sync.tolerance must be > 0, got -1.0", ""),
    ("sync.deadline_s=0", "sync.deadline_s must be > 0, got 0.0", ""),
    ("seed=-1", "seed must be in [0, 2^63), got -1", ""),
    ("output.wandb=mine", "output.wandb must be a mapping", "got 'mine'"),
    ("rollout.gpus=2", "rollout.gpus must be the engine's tensor-parallel size, 1, got 2", ""),
    ("schedule.lr", "'schedule.lr' is not of the form key=value", ""),
    ("gate.kl_budget=1", "gate.kl_budget needs learner.initial_copy=true, or LoRA", ""),
]


@pytest.mark.parametrize(("word", "said", "advice"), MISTAKES)
def test_a_mistake_gets_one_line_with_name_and_value(word, said, advice):
    with pytest.raises(ConfigError) as caught:
        configuration.load(["preset=scenes", word])
    message = str(caught.value)
    assert said in message and advice in message and "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "chosen"),
    [
        (["examples=best_worst"], ("examples", BestWorst(min_margin=0.5))),
        (["examples=all_pairs"], ("examples", AllPairs(min_margin=0.5, max_per_prompt=6))),
        (["feedback=text_judge"], ("feedback", TextJudge(max_tokens=96, seed=0))),
        (["method=iterative_dpo"], ("examples", BestWorst(min_margin=0.5, scale_w=0.0))),
        (["examples=best_worst", "examples.min_margin=0.25"], ("examples", BestWorst(min_margin=0.25))),
        (["examples.max_per_prompt=2", "examples.min_margin=0"], ("examples", AllPairs(max_per_prompt=2))),
        (["feedback.max_tokens=7", "feedback=text_judge"], ("feedback", TextJudge(max_tokens=7, seed=0))),
    ],
)
def test_a_plug_in_gets_the_presets_options_for_it_alone_and_the_command_lines_beat_them(overrides, chosen):
    group, plugin = chosen
    assert getattr(configuration.load(["preset=scenes", *overrides])[0], group) == plugin


def test_another_engine_meets_no_options_of_the_one_it_replaces():
    config, _ = configuration.load(["preset=scenes", "engine@rollout.engine=scripted"])
    assert config.rollout.engine == Scripted()
    assert config.engines["judge"].engine.max_model_len == 512


def test_a_phase_sets_options_of_plug_ins_and_names_others():
    phases = "schedule.phases=[{rounds: 2}, {rounds: 1, examples: best_worst, objective: {beta: 0.3}}]"
    config, _ = configuration.load(["preset=scenes", phases])
    found = []
    for plan in map(config.schedule.build().plan, range(3)):
        builder = registry.examples.configured(config.examples, plan.options.get("examples", {}))
        objective = registry.objective.configured(config.objective, plan.options.get("objective", {}))
        found.append((builder, objective))
    whole = AllPairs(min_margin=0.5, max_per_prompt=6), DPO(beta=0.1)
    assert found == [whole, whole, (BestWorst(min_margin=0.5), DPO(beta=0.3))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["cluster=one_gpu", "transport=nccl"],
            r"transport=nccl goes between GPUs of their own; with learner\.gpus=0\.4",
        ),
        (["cluster=one_node", "transport=ipc"], r"transport=ipc goes between processes on one GPU; .* they share none"),
        (
            ["cluster=one_gpu", "learner.num_ranks=2", "learner.gpus=0.2"],
            r"learner\.num_ranks=2: ranks cannot share a GPU",
        ),
    ],
)
def test_what_gpus_cannot_do_is_said_before_a_round_is_trained(words, said):
    with pytest.raises(ConfigError, match=said):
        configuration.load(words)


def test_a_start_that_failed_leaves_no_run_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(align, "cluster", lambda address: nullcontext(Machine(num_cpus=2, num_gpus=0, memory_gib=64)))
    words = ["preset=scenes", "name=mine", f"output.runs_dir={tmp_path}"]
    assert main([*words, "rollout.cores=50"]) == 1
    assert "50 asked for" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_options_that_a_resumed_run_cannot_start_with_are_not_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(align, "cluster", lambda address: nullcontext(Machine(num_cpus=2, num_gpus=0, memory_gib=64)))
    words = ["preset=scenes", "seed=7"]
    (tmp_path / "mine").mkdir()
    configuration.save(configuration.load(words)[1], words, tmp_path / "mine")
    assert main([f"resume={tmp_path / 'mine'}", "rollout.cores=50"]) == 1
    assert "50 asked for" in capsys.readouterr().err
    assert configuration.load_saved(tmp_path / "mine", [])[0].rollout.cores == 0


@pytest.mark.parametrize(("every", "measured"), [(5, 1), (0, 0)])
def test_a_resumed_run_that_has_nothing_left_to_do_is_measured_if_its_last_round_was_not(
    tmp_path, capsys, monkeypatch, every, measured
):
    """Killed in the middle, and resumed with fewer rounds than it has done."""
    started = []

    def evaluator(config, roles, progress, *, directory):
        return lambda: {"chair_i": Interval(value=0.25, low=0.2, high=0.3)}

    monkeypatch.setattr(align, "cluster", lambda address: nullcontext(Machine(num_cpus=2, num_gpus=0, memory_gib=64)))
    monkeypatch.setattr(
        align, "engines_for_evaluations", lambda config, context, policy: nullcontext(started.append(policy))
    )
    monkeypatch.setattr(align, "evaluator", evaluator)
    run = tmp_path / "mine"
    run.mkdir()
    words = ["preset=scenes", "schedule.rounds=4", f"eval.every={every}", "output.tensorboard=false"]
    configuration.save(configuration.load(words)[1], words, run)
    sync = SyncReport(
        version=1, num_tensors=1, num_bytes=1, digest="", seconds=0.0, max_logprob_gap=0.0, num_probe_tokens=1
    )
    with Journal(run / "journal") as journal:
        for round in range(2):
            numbers = dict.fromkeys(("num_prompts", "num_responses", "num_examples", "staleness"), 0)
            report = RoundReport(
                round=round, policy_version=round + 1, **numbers, failed={}, loss=0.0, kl=0.0, metrics={}, sync=sync,
                eval={}, seconds={},
            )  # fmt: skip
            journal.begin(round)
            journal.append(round, report)
    gate = MetricGate(config=GateConfig()).state()
    state = {"round": 1, "version": 2, "cursor": 512, "gate": gate}
    checkpoint.save(run / "checkpoints", 1, lambda target: (target / "policy").mkdir(), state)
    for _ in range(2):
        assert main([f"resume={run}", "schedule.rounds=2"]) == 0
        assert "all 2 rounds are done" in capsys.readouterr().out
        rounds = json.loads((run / "summary.json").read_text())["rounds"]
        assert [entry["eval"].get("chair_i", {}).get("value") for entry in rounds] == [None, 0.25 if measured else None]
    assert started == [run / "checkpoints" / "round-0001" / "policy"] * measured


def test_no_cluster_at_the_address_is_one_line(tmp_path, capsys, monkeypatch):
    import ray

    def nobody(**options):
        raise ConnectionError("could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", nobody)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    words = ["preset=scenes", "name=mine", f"output.runs_dir={tmp_path}", "ray_address=auto"]
    assert main(words) == 2
    assert "rlsys: ray_address=auto: could not find any running Ray instance\n" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"  # what the user has set stays


@pytest.mark.parametrize("off", ["eval.every=0", "evaluations=none"])
def test_a_gate_without_evaluations_is_refused(off):
    with pytest.raises(ConfigError, match=r"gate\.refuse and gate\.patience need rounds that are evaluated"):
        configuration.load(["preset=scenes", "gate.refuse=true", off])


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("evaluations=none", []),
        ("evaluations=scenes_polar", ["scenes_polar"]),
        ("evaluations=[scenes,scenes_polar]", ["scenes", "scenes_polar"]),
        ("evaluations.scenes_polar.temperature=0", ["scenes", "scenes_polar"]),
        ("+evaluations.scenes_polar.temperature=0", ["scenes", "scenes_polar"]),
    ],
)
@pytest.mark.parametrize("preset", ["scenes", "scenes_ci"])
def test_evaluations_are_chosen_by_name_or_added_by_an_option(preset, override, names):
    config, _ = configuration.load([f"preset={preset}", override])
    assert sorted(config.evaluations) == names
    assert [registry.evaluation.name_of(config.evaluations[name]) for name in names] == names
    if preset == "scenes_ci":
        assert all(evaluation.num_scenes == 32 for evaluation in config.evaluations.values())


def test_an_evaluation_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"sceness.*scenes_polar"):
        configuration.load(["preset=scenes", "evaluations=sceness"])
    with pytest.raises(ConfigError, match="no evaluation named 'sceness'; there are: judged, scenes, scenes_polar"):
        configuration.load(["preset=scenes", "evaluations.sceness.num_scenes=5"])


def test_a_gate_on_a_metric_that_is_not_measured_is_refused_before_the_start():
    known = "chair_i, chair_s, chair_s_refined, false_position, mean_length, partner_share, recall, unparsable"
    with pytest.raises(ConfigError, match=f"gate.metric=accuracy is no metric of the evaluation; there are: {known}"):
        configuration.load(["gate.refuse=true", "gate.metric=accuracy"])
    assert configuration.load(["gate.refuse=true", "gate.metric=accuracy", "evaluations.scenes_polar.num_scenes=20"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"gate\.kl_budget needs learner\.initial_copy=true, or LoRA"),
        (
            ["learner.initial_copy=true", "learner.kl_responses=0"],
            r"gate\.kl_budget needs learner\.kl_responses > 0, got 0",
        ),
        (["learner.initial_copy=true", "schedule.temperatures=[0.7]"], r"round 0 has temperatures 0\.7 and top_p 1"),
        (["learner.initial_copy=true", "schedule.top_p=0.9"], r"round 0 has temperatures 1 and top_p 0\.9"),
        (
            ["learner.lora.r=4", "schedule.phases=[{rounds: 1}, {rounds: 1, temperatures: [0.5, 0.7]}]"],
            r"round 1 has temperatures 0\.5, 0\.7 and top_p 1",
        ),
    ],
)
def test_a_kl_budget_that_nothing_would_be_held_against_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        configuration.load(["gate.kl_budget=5", *words])


def test_a_kl_budget_needs_one_temperature_of_1():
    assert configuration.load(["gate.kl_budget=5", "learner.lora.r=4", "schedule.temperatures=[0.5, 1.0]"])


def test_an_evaluation_must_say_which_way_its_metrics_get_better():
    @dataclass(kw_only=True)
    class Silent:
        roles = ("policy",)

    config, _ = configuration.load([])
    with pytest.raises(ConfigError, match=r"evaluations\.mine=Silent must have `directions`"):
        replace(config, evaluations={"mine": Silent()})


def test_resume_shows_the_runs_own_configuration(tmp_path, capsys):
    words = ["preset=scenes_ci", "seed=7", "name=mine"]
    run = tmp_path / "mine"
    run.mkdir()
    configuration.save(configuration.load(words)[1], words, run)
    for given in ([f"resume={run}"], ["resume=mine", f"output.runs_dir={tmp_path}"]):
        assert main([*given, "--cfg", "job"]) == 0
        assert "seed: 7" in capsys.readouterr().out.splitlines()
    assert main(["resume=other", f"output.runs_dir={tmp_path}"]) == 2
    assert f"no run in {tmp_path / 'other'}" in capsys.readouterr().err


@pytest.mark.parametrize(("main", "option"), [(main, "resume"), (report, "run")], ids=["align", "report"])
def test_a_run_of_another_format_is_refused_with_one_line(tmp_path, capsys, main, option):
    run = tmp_path / "old"
    run.mkdir()
    configuration.save(configuration.load(["preset=scenes"])[1], ["preset=scenes"], run)
    kept = json.loads((run / "overrides.json").read_text())
    del kept["format"]  # as the first format was written
    (run / "overrides.json").write_text(json.dumps(kept))
    assert main([f"{option}={run}"]) == 2
    assert capsys.readouterr().err == (
        f"rlsys: {option}: {run} is a run of format 1, this version reads format 2: use the version that began it, or begin a "
        "new run from its last policy (policy.model=...)\n"
    )


def test_adapters_and_wandb_are_set_from_the_command_line():
    config, _ = configuration.load(["preset=scenes", "learner.lora={r: 8}", "output.wandb={project: mine}"])
    assert config.learner.has_adapter and (config.learner.lora.r, config.learner.lora.alpha) == (8, 32.0)
    assert config.output.wandb == {"project": "mine"}
    assert configuration.load(["learner.lora.r=4", "schedule.reference=initial"])[0].learner.has_adapter
    assert not configuration.load([])[0].learner.has_adapter


def test_what_a_runs_answers_are_of_is_told_from_any_other():
    changes = ["seed=7", "policy.model=other", "prompts.offset=5", "+prompts.tasks.polar=1"]
    told = [
        fingerprint(configuration.load(["preset=scenes", *words])[0]) for words in ([], *([word] for word in changes))
    ]
    assert len(set(told)) == 5
    assert fingerprint(configuration.load(["preset=scenes", "rollout.num_actors=2"])[0]) == told[0]


def test_one_root_seed_reaches_the_judge():
    assert configuration.load(["seed=7"])[0].feedback.seed == 7
    assert configuration.load(["seed=7", "feedback.seed=3"])[0].feedback.seed == 3


def test_methods_are_those_of_their_papers():
    """What a preset does not set: the method's rules for pairs, beta, reference and data."""
    found = {}
    for method in ("mm_rlhf", "iterative_dpo"):
        config, _ = configuration.load(["preset=qwen2_5_vl_3b", f"method={method}"])
        plan = config.schedule.build().plan(0)
        builder, objective = config.examples, config.objective
        found[method] = (
            type(builder),
            objective.beta,
            builder.scale_w,
            builder.scale_k,
            plan.reference,
            type(config.replay).__name__,
        )
        found[method] += (plan.temperatures, plan.epochs, config.learner.initial_copy, plan.options)
    assert found == {
        "mm_rlhf": (AllPairs, 0.1, 0.5, 0.5, "previous", "NoReplay", (1.0,), 1, False, {}),
        "iterative_dpo": (BestWorst, 0.1, 0.0, 0.5, "initial", "Accumulated", (1.0, 0.7), 2, True, {}),
    }


@pytest.mark.parametrize(
    ("method", "builder", "objective", "kind"),
    [
        ("ipo", "BestWorst", "IPO(beta=0.1)", PreferencePair),
        ("simpo", "BestWorst", "SimPO(beta=2.0, gamma=1.0)", PreferencePair),
        ("kto", "Desirable", "KTO(beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)", RatedResponse),
        ("rejection_sampling", "RejectionSampling", "SFT(per='tokens')", Demonstration),
        ("grpo", "GroupNormalized", "GRPO(clip=0.2, beta=0.04)", ScoredResponse),
    ],
)
def test_methods_bring_a_builder_and_an_objective_that_fit(method, builder, objective, kind):
    config, _ = configuration.load(["preset=qwen2_5_vl_3b", f"method={method}"])
    assert (type(config.examples).__name__, str(config.objective)) == (builder, objective)
    assert config.examples.produces is config.objective.consumes is kind


def test_only_objectives_that_need_a_reference_ask_for_its_weights():
    words = ["schedule.reference=initial", "learner.initial_copy=false", "learner.lora.r=0"]
    with pytest.raises(ConfigError, match="reference=initial needs"):
        configuration.load(["method=ipo", *words])
    assert configuration.load(["method=simpo", *words])[0].schedule.reference == "initial"
    assert configuration.load(["method=grpo", *words, "objective.beta=0"])[0].objective.needs == {"old"}


def test_phases_may_change_the_kind_of_example():
    phases = "[{rounds: 1}, {rounds: 2, examples: desirable, objective: {name: kto, beta: 0.2}}]"
    config, _ = configuration.load([f"schedule.phases={phases}"])
    assert config.schedule.build().plan(2).options["objective"] == {"name": "kto", "beta": 0.2}
    with pytest.raises(ConfigError, match="KTO learns from RatedResponse records, and"):
        configuration.load(["schedule.phases=[{rounds: 1}, {rounds: 2, objective: kto}]"])


@pytest.mark.parametrize("preset", ["scenes", "scenes_ci", "qwen2_5_vl_3b", "qwen2_5_vl_7b"])
@pytest.mark.parametrize("cluster", ["laptop", "one_gpu", "one_node", "two_nodes"])
def test_every_preset_composes_for_every_cluster_and_prints_its_plan(preset, cluster, capsys):
    words = [f"preset={preset}", f"cluster={cluster}"]
    assert main([*words, "dry_run=true"]) == 0
    said = capsys.readouterr().out
    assert "rollout " in said and "judge " in said and "learner " in said and "round 0: " in said
    assert main([*words, "--cfg", "job"]) == 0
    assert f"preset_name: {preset}" in capsys.readouterr().out


def test_a_weight_updates_tolerance_follows_the_learners_precision_unless_it_is_given():
    found = {}
    for words in ([], ["learner.precision=bf16"], ["learner.precision=bf16", "sync.tolerance=0.02"]):
        config, _ = configuration.load(words)
        found[tuple(words)] = config.sync.tolerance_at(config.learner.precision)
    assert list(found.values()) == [0.001, 0.5, 0.02]


@pytest.mark.parametrize(("words", "gib"), [("fp32 0", 5.0), ("fp32 1", 7.225), ("bf16 0", 4.363), ("bf16 3", 3.681)])
def test_a_ranks_memory_is_what_zero_leaves_it_and_bf16_shares_out_the_optimizer_always(words, gib):
    precision, stage = words.split()
    learner = LearnerConfig(num_ranks=2, precision=precision, zero_stage=int(stage), gpus=1)
    role = learner_role(learner, ModelSize(num_parameters=1 << 28))
    assert role.gpu_memory_gib == pytest.approx(gib, abs=1e-3)  # from stage 1 on with DeepSpeed's buffers


def test_cfg_takes_the_word_job(capsys):
    assert main(["--cfg=job", "seed=5"]) == 0
    assert "seed: 5" in capsys.readouterr().out.splitlines()
    assert main(["--cfg", "seed=5"]) == 2
    assert "--cfg takes the word job, got seed=5" in capsys.readouterr().err


def test_a_plug_in_that_is_not_there_gets_one_line(monkeypatch):
    monkeypatch.setenv("RLSYS_PLUGINS", "not_there_at_all")
    with pytest.raises(ConfigError, match="RLSYS_PLUGINS: 'not_there_at_all' cannot be imported"):
        configuration.load([])


def test_actors_get_the_plug_ins_of_the_driver(monkeypatch):
    role = learner_role(LearnerConfig(num_ranks=2, cores=1), ModelSize(num_parameters=1))
    machine = Machine(num_cpus=2, num_gpus=0, memory_gib=64)
    monkeypatch.setenv("RLSYS_PLUGINS", "mine,yours")
    assert [one.environment["RLSYS_PLUGINS"] for one in placements([role], machine)["learner"]] == ["mine,yours"] * 2
    monkeypatch.delenv("RLSYS_PLUGINS")
    assert "RLSYS_PLUGINS" not in placements([role], machine)["learner"][0].environment


def test_other_commands_have_no_plan(capsys):
    assert evaluate(["dry_run=true"]) == 2
    assert "dry_run=true prints the plan of rlsys align" in capsys.readouterr().err


def test_words_given_at_a_resume_stay(tmp_path):
    run = tmp_path / "mine"
    run.mkdir()
    for words in (["preset=scenes_ci", "seed=7"], ["output.examples=3"]):
        earlier = configuration.load_saved(run, words) if (run / "config.yaml").exists() else configuration.load(words)
        configuration.save(earlier[1], words, run)
    config, _ = configuration.load_saved(run, [])
    assert (config.seed, config.output.examples) == (7, 3)


def test_too_few_prompts_are_seen_before_anything_starts(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "prompt": "what is this"}\n' * 5)
    source = ["prompts=jsonl", f"prompts.path={tmp_path / 'prompts.jsonl'}", "evaluations=none"]
    machine = Machine(num_cpus=2, num_gpus=0, memory_gib=64, cores=(0, 1))
    check(configuration.load([*source, "schedule.rounds=1", "schedule.num_prompts=5"])[0], machine)
    with pytest.raises(ConfigError, match=r"prompts: the schedule takes 6; .* has 5 prompts, 6 were asked for"):
        check(configuration.load([*source, "schedule.rounds=2", "schedule.num_prompts=3"])[0], machine)


def test_probes_are_prompts_with_pictures_where_there_are_any(tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "one.png")
    lines = [{"id": f"{n}", "prompt": "what"} | ({"image": "one.png"} if n in (5, 9) else {}) for n in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["prompts=jsonl", f"prompts.path={tmp_path / 'prompts.jsonl'}", "evaluations=none"]
    config, _ = configuration.load([*words, "schedule.rounds=1", "schedule.num_prompts=12"])
    assert [prompt.id for prompt in probe_prompts(config)] == ["5", "9", "0", "1"]
    config, _ = configuration.load([*words, "schedule.rounds=1", "schedule.num_prompts=2"])
    assert [prompt.id for prompt in probe_prompts(config)] == ["0", "1"]


def test_a_dry_run_says_what_a_learners_memory_is_made_of(capsys):
    words = ["preset=qwen2_5_vl_7b", "cluster=one_gpu", "learner.lora.r=16", "schedule.lag=1", "learner.ema_decay=0.9"]
    assert main([*words, "dry_run=true"]) == 0
    # Of 8.29e9 parameters 1 % more in adapters; an average in float32 and two copies in bf16 of those.
    said = "a learner rank holds weights 15.6, gradients 2.0, optimizer 0.9, copies 0.6 GiB, besides activations"
    assert said in capsys.readouterr().out.splitlines()
