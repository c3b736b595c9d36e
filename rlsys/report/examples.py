"""One example as HTML: the image, the question, and every response with its critiques, its score and its role in the pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from html import escape

from rlsys.records import Critique, Response, Verdict
from rlsys.report.gather import Example
from rlsys.report.images import image_html

Mark = Callable[[str, str], Sequence[tuple[str, bool | None]]]
"""A function from prompt id and response to the response in segments; each segment is true, false, or no claim (`None`)."""

_LONG = 320
"""Number of characters above which a critique is folded."""


def example_html(example: Example, *, mark: Mark | None) -> str:
    """The example as an `<article>`; responses are sorted from the highest score down, those without a score last.

    Args:
        example: the example.
        mark: splits a response into segments with the truth of each; `None` shows responses unmarked.
    """
    group = example.scored.group
    chosen = Counter(pair.chosen for pair in example.pairs)
    rejected = Counter(pair.rejected for pair in example.pairs)
    answers = sorted(zip(group.responses, example.scored.verdicts, strict=True), key=_rank)
    items = "".join(_answer(group.prompt.id, *answer, chosen, rejected, mark) for answer in answers)
    identity = escape(group.prompt.id)
    pictures = "".join(image_html(image, alt=f"picture of {group.prompt.id}") for image in group.prompt.images)
    missing = f", {_several(group.failed, 'candidate')} failed" if group.failed else ""
    return (
        f'<article class="example"><div class="picture">{pictures}'
        f'<p class="note">round {group.round} · weights {group.policy_version}<br><code>{identity}</code>'
        f"<br>{_several(len(example.pairs), 'pair')}{missing}</p></div>"
        f'<div class="talk">{_conversation(example)}<ol class="answers">{items}</ol></div></article>'
    )


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _rank(answer: tuple[Response, Verdict]) -> tuple[bool, float]:
    score = answer[1].score
    return (True, 0.0) if score is None else (False, -score)


def _conversation(example: Example) -> str:
    turns = example.scored.group.prompt.turns
    if len(turns) == 1:
        return f'<p class="question">{escape(turns[0].text)}</p>'
    return "".join(
        f'<p class="question"><span class="role">{escape(turn.role)}</span> {escape(turn.text)}</p>' for turn in turns
    )


def _answer(
    prompt_id: str,
    rollout: Response,
    verdict: Verdict,
    chosen: Counter[Response],
    rejected: Counter[Response],
    mark: Mark | None,
) -> str:
    score = "no score" if verdict.score is None else f"{verdict.score:+.2f}"
    badges = [f'<span class="score">{score}</span>']
    if rollout.count > 1:
        badges.append(f'<span class="badge" title="sampled {rollout.count} times">×{rollout.count}</span>')
    if chosen[rollout]:
        badges.append(f'<span class="badge chosen">chosen {chosen[rollout]}×</span>')
    if rejected[rollout]:
        badges.append(f'<span class="badge rejected">rejected {rejected[rollout]}×</span>')
    if rollout.finish_reason == "length":
        badges.append('<span class="badge">cut at the limit</span>')
    if verdict.failed:
        badges.append(f'<span class="badge rejected">{_several(verdict.failed, "critique")} failed</span>')
    critiques = "".join(_critique(critique, several=len(verdict.critiques) > 1) for critique in verdict.critiques)
    words = _marked(mark(prompt_id, rollout.text)) if mark else escape(rollout.text)
    return (
        f'<li><div class="badges">{" ".join(badges)}</div>'
        f'<p class="answer">{words or "<i>(empty)</i>"}</p>{critiques}</li>'
    )


def _critique(critique: Critique, *, several: bool) -> str:
    score = f'<span class="note">{critique.score:+.2f}</span> ' if several and critique.score is not None else ""
    if critique.score is None:
        score = '<span class="badge rejected">unreadable</span> '
    text = escape(critique.text) or "<i>(no words)</i>"
    if len(critique.text) <= _LONG:
        return f'<p class="critique">{score}{text}</p>'
    head = escape(critique.text[: _LONG // 2].rsplit(" ", 1)[0])
    return f'<details class="critique"><summary>{score}{head} …</summary>{text}</details>'


def _marked(segments: Sequence[tuple[str, bool | None]]) -> str:
    names = {True: ("true", "true"), False: ("false", "not true")}
    return "".join(
        escape(text)
        if truth is None
        else f'<mark class="{names[truth][0]}" title="{names[truth][1]}">{escape(text)}</mark>'
        for text, truth in segments
    )
