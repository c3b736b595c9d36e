"""The page of a run: complete, offline, escaped. The run is made by hand."""

import base64
import io
import json
import re
from dataclasses import asdict, dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from rlsys.errors import ConfigError
from rlsys.examples.all_pairs import AllPairs
from rlsys.journal import Journal
from rlsys.records import (
    Critique,
    Image,
    Interval,
    PreferencePair,
    Prompt,
    RolloutGroup,
    RoundReport,
    ScoredGroup,
    SyncReport,
    Turn,
    Verdict,
)
from rlsys.report.examples import example_html
from rlsys.report.gather import Example, gather, shares
from rlsys.report.measures import change
from rlsys.report.metrics import RunMetrics, plain
from rlsys.report.sections import rounds_table
from rlsys.report.svg import Point, bin_edges, histogram, line_chart, short, stacked_bars, ticks
from rlsys.report.writer import write_report
from tests.fakes import sampled_response

COLOURS = {"red": (205, 52, 46), "blue": (48, 96, 200), "green": (40, 150, 84), "yellow": (238, 196, 52)}


@dataclass
class FakeJournal:
    """A journal that is a dictionary: round -> its scored groups."""

    groups: dict[int, list[ScoredGroup]] = field(default_factory=dict)

    def rounds(self):
        return list(self.groups)

    def read(self, round, record):
        for scored in self.groups[round]:
            yield from [scored] if record is ScoredGroup else AllPairs()(scored)


def scene(random: np.random.Generator) -> tuple[Image, str, str]:
    """A picture of one or two coloured squares, with a true description and one false word."""
    pixels = np.full((84, 84, 3), 236, np.uint8)
    names = random.choice(list(COLOURS), size=2, replace=False)
    for place, name in enumerate(names):
        row, column = 10 + 28 * int(random.integers(0, 2)), 8 + 40 * place
        pixels[row : row + 24, column : column + 24] = COLOURS[name]
    return Image(pixels=pixels), f"a {names[0]} square and a {names[1]} square", "a purple ring"


def scored_group(round: int, index: int) -> ScoredGroup:
    random = np.random.default_rng(100 * round + index)
    image, true, false = scene(random)
    texts = [true, f"{true} and {false}", f"{false} and {true}", f"{false}", f"{true} near {false} <b>&"]
    rollouts, verdicts = [], []
    for number, text in enumerate(texts):
        rollouts.append(
            sampled_response(
                text=text, token_ids=np.array([number, 7], np.int32), logprobs=np.array([-0.7, -0.1], np.float32),
                count=1 + int(random.integers(0, 3)), finish_reason="length" if number == 4 else "stop",
                temperature=1.0, seed=number,
            )
        )  # fmt: skip
        score = float(random.normal(1.5 - 1.2 * text.count("purple") + 0.2 * round, 0.6))
        words = "the squares are there." + (" there is no purple ring." if "purple" in text else " nothing is wrong.")
        critiques = () if number == 3 and index % 3 == 0 else (Critique(text=words, score=score),)
        verdicts.append(Verdict.of_critiques(critiques, failed=1 - len(critiques)))
    prompt = Prompt(
        id=f"online/{round}-{index}", turns=(Turn(role="user", text="Describe the picture."),), images=(image,)
    )
    group = RolloutGroup(
        prompt=prompt, round=round, index=index, policy_version=round, prompt_token_ids=np.array([1, 2], np.int32),
        responses=tuple(rollouts),
    )  # fmt: skip
    return ScoredGroup(group=group, verdicts=tuple(verdicts))


def evaluation(chair: float, recall: float, length: float) -> dict[str, Interval]:
    def around(value: float, width: float) -> Interval:
        return Interval(value=value, low=value - width, high=value + width)

    return {
        "chair_i": around(chair, 0.02), "chair_s": around(2 * chair, 0.04), "recall": around(recall, 0.015),
        "mean_length": around(length, 0.4),
    }  # fmt: skip


def report(round: int) -> RoundReport:
    sync = SyncReport(
        version=round + 1, num_tensors=93, num_bytes=10_400_000, digest="ab", seconds=0.3,
        max_logprob_gap=2e-5 * (round + 1), num_probe_tokens=128,
    )  # fmt: skip
    return RoundReport(
        round=round, policy_version=round + 1, num_prompts=12, num_responses=96, num_examples=70 - 5 * round,
        failed={"rollouts": 0, "critiques": 4, "workers": 0}, staleness=0, loss=0.69 - 0.04 * round,
        kl=0.01 * (round + 1), metrics={"grad_norm": 1.0, "implicit_accuracy": 0.55 + 0.05 * round}, sync=sync,
        eval=evaluation(0.235 * 0.7 ** (round + 1), 0.96 - 0.003 * round, 11.5 - 0.5 * round),
        seconds={
            "rollout": 6.0, "feedback": 5.0 + round, "learn": 8.0, "sync": 0.3, "evaluate": 3.0, "checkpoint": 0.4,
            "round": 14.0 + round,
        },
    )  # fmt: skip


def fake_run(directory: Path, *, rounds: int = 5) -> FakeJournal:
    """A run's folder without its journal, and the journal."""
    with RunMetrics(directory, config={"preset": "scenes", "seed": 3}, tensorboard=False) as metrics:
        metrics.start(evaluation(0.235, 0.962, 12.1))
        for round in range(rounds):
            metrics.append(report(round))
    (directory / "config.yaml").write_text("preset: scenes\nschedule:\n  rounds: 5  # <five>\n")
    return FakeJournal({round: [scored_group(round, index) for index in range(12)] for round in range(rounds)})


def mark(prompt_id: str, answer: str) -> list[tuple[str, bool | None]]:
    parts = re.split(r"(a purple ring|a \w+ square)", answer)
    return [(part, None if i % 2 == 0 else "purple" not in part) for i, part in enumerate(parts) if part]


class Page(HTMLParser):
    """Opened and closed tags must match; collects attributes and text."""

    VOID = {"meta", "img", "br"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def classes(self) -> list[str]:
        return [attributes.get("class") or "" for _, attributes in self.attributes]


@pytest.fixture
def html(tmp_path) -> str:
    journal = fake_run(tmp_path / "demo")
    return write_report(tmp_path / "demo", truth=mark, journal=journal).read_text()


def test_the_page_has_every_section_and_twenty_examples(html):
    page = Page(html)
    identifiers = [attributes["id"] for tag, attributes in page.attributes if tag == "section"]
    assert identifiers == ["curves", "training", "time", "scores", "margins", "rounds", "examples", "config"]
    assert page.classes().count("example") == 20
    text = " ".join(page.words)
    assert "demo" in text and "20 examples" in text
    assert "-83 %" in text, "CHAIR_i from 23.5 % to 3.95 %"
    assert "-1.4 points" in text, "recall from 96.2 % to 94.8 %"
    assert "# <five>" in text, "config.yaml as it stands"


def test_the_page_opens_offline_and_runs_nothing(html):
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.attributes}
    for _, attributes in page.attributes:
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
    assert "http://" not in html and "https://" not in html and "url(" not in html
    assert "default-src 'none'" in html


def test_curves_have_a_point_per_round_and_the_start(html):
    curves = html.split('<section id="curves">')[1].split("</section>")[0]
    charts = curves.split("<svg")[1:]
    assert len(charts) == 4
    assert all(chart.count("<circle") == 6 and chart.count('class="band"') == 1 for chart in charts)
    assert "start: 23.5 % [21.5 %, 25.5 %]" in charts[0]


def test_examples_show_picture_answers_scores_and_marks(html):
    first = html.split('<article class="example">')[1].split("</article>")[0]
    data = re.search(r'src="data:image/png;base64,([^"]+)"', first).group(1)
    shown = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))
    expected = scored_group(0, 0)
    assert np.array_equal(shown, expected.group.prompt.images[0].pixels), "the picture is exact"
    assert 'class="pixelated"' in first
    assert '<mark class="false" title="not true">a purple ring</mark>' in first
    assert '<mark class="true" title="true">' in first
    scores = [float(score) for score in re.findall(r'class="score">([+-][\d.]+)<', first)]
    assert scores == sorted(scores, reverse=True) and len(scores) == 4
    assert "no score" in first and "1 critique failed" in first
    pairs = AllPairs()(expected)
    assert sum(map(int, re.findall(r">chosen (\d+)×", first))) == len(pairs) == 6
    assert sum(map(int, re.findall(r">rejected (\d+)×", first))) == 6
    assert "there is no purple ring." in first


def test_a_critique_without_a_score_is_shown_as_unreadable():
    scored = scored_group(0, 1)
    critiques = (Critique(text="all is there. 2", score=2.0), Critique(text="nothing <to> read", score=None))
    verdicts = (Verdict.of_critiques(critiques, failed=1), Verdict.of_critiques(critiques[1:], failed=1))
    group = replace(scored.group, responses=scored.group.responses[:2])
    shown = example_html(Example(scored=ScoredGroup(group=group, verdicts=verdicts), pairs=()), mark=None)
    unreadable = '<span class="badge rejected">unreadable</span> nothing &lt;to&gt; read</p>'
    assert f'<p class="critique">{unreadable}' in shown
    assert shown.count(unreadable) == 2 and shown.count("1 critique failed") == 2
    assert '<span class="note">+2.00</span> all is there. 2</p>' in shown
    assert shown.count('class="score">no score<') == 1


def test_everything_from_outside_is_escaped(html):
    assert "&lt;b&gt;&amp;" in html
    assert "<b>" not in html


def test_a_hostile_run_changes_nothing_of_the_page(tmp_path):
    hostile = '"><script>alert(1)</script>'
    journal = fake_run(tmp_path / "demo", rounds=1)
    scored = journal.groups[0][0]
    prompt = replace(scored.group.prompt, id=hostile, turns=(Turn(role=hostile, text=hostile),) * 2)
    rollouts = tuple(replace(rollout, text=hostile) for rollout in scored.group.responses)
    verdicts = tuple(Verdict.of_critiques((Critique(text=hostile * 20, score=1.0),) * 2) for _ in rollouts)
    group = replace(scored.group, prompt=prompt, responses=rollouts)
    journal.groups[0] = [ScoredGroup(group=group, verdicts=verdicts)]
    (tmp_path / "demo" / "config.yaml").write_text(hostile)
    page = Page(write_report(tmp_path / "demo", truth=lambda *_: [(hostile, True)], journal=journal).read_text())
    assert "script" not in {tag for tag, _ in page.attributes}


def test_the_runs_own_journal_gives_the_same_page(tmp_path):
    fake = fake_run(tmp_path / "demo", rounds=2)
    with Journal(tmp_path / "demo" / "journal") as journal:
        for round, groups in fake.groups.items():
            journal.begin(round)
            for scored in groups:
                journal.append(round, scored.group)
                journal.append(round, scored)
                for pair in AllPairs()(scored):
                    journal.append(round, pair)
        while_it_runs = write_report(tmp_path / "demo", truth=mark).read_text()
    assert while_it_runs == write_report(tmp_path / "demo", truth=mark, journal=fake).read_text()


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    with RunMetrics(tmp_path, config={}, tensorboard=False):
        pass
    page = Page(write_report(tmp_path, journal=FakeJournal()).read_text())
    assert "0 examples" in " ".join(page.words)


def test_what_got_better_is_what_the_evaluation_says(tmp_path):
    found = {}
    for direction in (-1, 0, 1):
        with RunMetrics(tmp_path, config={}, directions={"chair_i": direction}, tensorboard=False) as metrics:
            metrics.start(evaluation(0.4, 0.9, 12.0))
            metrics.append(replace(report(0), eval=evaluation(0.2, 0.9, 12.0)))
        classes = Page(write_report(tmp_path, journal=FakeJournal()).read_text()).classes()
        found[direction] = [kind for kind in classes if kind in ("better", "worse")]
    assert found == {-1: ["better"], 0: [], 1: ["worse"]}


def test_an_objective_without_implicit_rewards_has_no_curve_of_their_accuracy(tmp_path):
    words = {}
    for name, metrics_of in (("with", {"implicit_accuracy": 0.5}), ("without", {"grad_norm": 1.0})):
        with RunMetrics(tmp_path / name, config={}, tensorboard=False) as metrics:
            metrics.append(replace(report(0), metrics=metrics_of))
        words[name] = Page(write_report(tmp_path / name, journal=FakeJournal()).read_text()).words
    assert "Implicit accuracy" in words["with"] and "Implicit accuracy" not in words["without"]
    assert "Loss" in words["without"]


def test_numbers_that_are_not_finite_leave_a_gap(tmp_path):
    nan = float("nan")
    with RunMetrics(tmp_path, config={}, tensorboard=False) as metrics:
        metrics.append(replace(report(0), loss=nan, seconds={}, eval={}))
        broken = {"chair_i": Interval(value=nan, low=nan, high=nan)}
        metrics.append(replace(report(1), eval=broken, seconds={"learn": nan, "round": nan}))
        metrics.append(replace(report(2), accepted=False))
    html = write_report(tmp_path, journal=FakeJournal({2: [scored_group(2, 0)]})).read_text()
    Page(html)
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]+", "", html), re.IGNORECASE)
    assert "refused" in html


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no summary\.json"):
        write_report(tmp_path, journal=FakeJournal())


@pytest.mark.parametrize(
    ("rounds", "examples", "given"),
    [(5, 20, [4, 4, 4, 4, 4]), (6, 20, [4, 3, 3, 3, 3, 4]), (3, 2, [1, 0, 1]), (1, 20, [20]), (0, 20, [])],
)
def test_examples_are_shared_out_first_and_last_round_first(rounds, examples, given):
    assert shares(rounds, examples) == given


def test_gather_prefers_groups_with_pairs_and_reads_all_scores():
    lone = scored_group(0, 1)
    silent = replace(lone, verdicts=tuple(Verdict(critiques=(), failed=1) for _ in lone.verdicts))
    journal = FakeJournal({0: [silent, scored_group(0, 2), silent, scored_group(0, 4)]})
    (view,) = gather(journal, examples=2)
    assert [example.scored.group.index for example in view.examples] == [2, 4]
    assert len(view.scores) == 10
    assert len(view.margins) == sum(len(list(AllPairs()(scored_group(0, i)))) for i in (2, 4))
    assert all(isinstance(pair, PreferencePair) for example in view.examples for pair in example.pairs)
    (view,) = gather(journal, examples=20)
    assert [example.scored.group.index for example in view.examples] == [1, 2, 1, 4]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 0.25, [0, 0.05, 0.1, 0.15, 0.2, 0.25]), (-3, 4, [-2, 0, 2, 4])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.12345, "0.123"), (12.34, "12.3"), (1234.5, "1234"), (2e-5, "2.0e-05"), (12345, "1.2e+04")],
)
def test_short_numbers(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("name", "start", "end", "text"),
    [("chair_i", 0.2, 0.05, "-75 %"), ("recall", 0.96, 0.95, "-1.0 points"), ("mean_length", 10, 9, "-10 %"),
     ("unknown", 1.0, 1.5, "+0.5"), ("chair_i", 0.0, 0.1, "from zero")],
)  # fmt: skip
def test_changes_in_words(name, start, end, text):
    assert change(name, start, end) == text


def test_charts_place_what_they_draw():
    points = [Point(label=str(i), value=v, low=v, high=v) for i, v in enumerate([1.0, float("nan"), 3.0, 2.0])]
    chart = line_chart(points, title="t")
    assert [line.count(",") for line in re.findall(r'polyline class="line" points="([^"]+)"', chart)] == [1, 2]
    heights = {m[0]: float(m[1]) for m in re.findall(r'cy="[\d.]+" r="3.2"><title>(\d): ([\d.]+)', chart)}
    assert heights == {"0": 1.0, "2": 3.0, "3": 2.0}
    tops = [float(y) for y in re.findall(r'cy="([\d.]+)"', chart)]
    assert tops[1] < tops[2] < tops[0], "larger values stand higher"

    bars = stacked_bars(
        ["0", "1"], [("a", [1.0, 2.0]), ("b", [3.0, float("nan")])], title="t", marks=[5.0, float("nan")]
    )
    sizes = [float(height) for height in re.findall(r'height="([\d.]+)"', bars)]
    assert sizes == pytest.approx([sizes[0], 2 * sizes[0], 3 * sizes[0], 0.0], abs=0.21)
    assert bars.count('class="mark"') == 1

    edges = bin_edges([np.array([0.0, 1.0]), np.array([2.0])], bins=4)
    assert edges.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert bin_edges([np.array([1.0, 4.0])], bins=2, include=(0.0,)).tolist() == [0.0, 2.0, 4.0]
    assert bin_edges([], bins=2).tolist() == [0.0, 0.5, 1.0]
    assert re.findall(r": (\d+)</title>", histogram(np.array([0.0, 0.1, 2.0]), edges, title="t")) == [
        "2",
        "0",
        "0",
        "1",
    ]


def test_summary_on_disk_is_what_the_page_reads(tmp_path):
    fake_run(tmp_path, rounds=2)
    assert [entry["round"] for entry in json.loads((tmp_path / "summary.json").read_text())["rounds"]] == [0, 1]


def test_the_table_of_rounds_says_what_their_replay_brought(tmp_path):
    rounds = [
        plain(asdict(replace(report(round), replayed=found))) for round, found in enumerate(({}, {"rlaif_v": 30}))
    ]
    first, second = rounds_table({"rounds": rounds}).split("<tr>")[2:]
    assert first.startswith("<td>0</td><td>12</td><td>96</td><td>70</td><td>0</td>")
    assert second.startswith("<td>1</td><td>12</td><td>96</td><td>65</td><td>30 rlaif_v</td>")
