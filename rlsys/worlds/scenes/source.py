"""From an index to a prompt, and from a prompt's id back to its scene.

Ids have the form `scenes/<split>/<index>/<task>`. Everything about a prompt is a function of its id, so that no prompt carries
its ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rlsys.records import Demonstration, Image, Prompt, Turn, text_response
from rlsys.seeding import generator
from rlsys.worlds.scenes.language import FORMS, ask, caption, read_question, true_answer
from rlsys.worlds.scenes.world import SPLITS, Scene, draw, sample

DEMONSTRATION_TASKS: dict[str, float] = {"describe": 0.5, "polar": 0.4, "open": 0.1}
PARTNER_RATE = 0.45


def make_prompt(split: str, index: int, task: str) -> Prompt:
    """The prompt of a task about scene `index` of a split.

    Raises:
        ValueError: unknown split or task, or a negative index.
    """
    scene = sample(split, index)
    question = ask(scene, task, generator(0, "question", split, index, task))
    return Prompt(
        id=f"scenes/{split}/{index}/{task}",
        turns=(Turn(role="user", text=question.text),),
        images=(Image(pixels=draw(scene)),),
    )


def read_id(prompt_id: str) -> tuple[str, int, str]:
    """Split, index and task of a prompt's id.

    Raises:
        ValueError: it is not the id of a prompt of this world.
    """
    parts = prompt_id.split("/")
    if (
        len(parts) != 4
        or parts[0] != "scenes"
        or parts[1] not in SPLITS
        or parts[3] not in FORMS
        or not parts[2].isdecimal()
    ):
        raise ValueError(f"{prompt_id!r} is not the id of a scenes prompt (scenes/<split>/<index>/<task>)")
    return parts[1], int(parts[2]), parts[3]


def scene_of(prompt: Prompt) -> Scene:
    """The scene of a prompt, which is its ground truth. Only annotation, evaluation and feedback that is declared to see the
    truth may use it.

    Raises:
        ValueError: the prompt is not of this world.
    """
    split, index, _ = read_id(prompt.id)
    return sample(split, index)


def choose_task(split: str, index: int, weights: Mapping[str, float]) -> str:
    """The task of position `index` under relative weights; a function of (split, index, weights) alone."""
    tasks = [task for task in FORMS if weights.get(task, 0.0) > 0]
    total = sum(weights[task] for task in tasks)
    rng = generator(0, "task", split, index)
    return tasks[int(rng.choice(len(tasks), p=[weights[task] / total for task in tasks]))]


def check_tasks(name: str, weights: Mapping[str, float]) -> None:
    """
    Raises:
        ValueError: there is an unknown task, a negative weight, or no positive weight; the message begins with `name`.
    """
    for task, weight in weights.items():
        if task not in FORMS:
            raise ValueError(f"{name} has unknown task {task!r}; there are: {', '.join(FORMS)}")
        if not weight >= 0:
            raise ValueError(f"{name}[{task!r}] must be >= 0, got {weight}")
    if not any(weight > 0 for weight in weights.values()):
        raise ValueError(f"{name} must have a positive weight, got {dict(weights)}")


def demonstrations(
    count: int,
    *,
    start: int = 0,
    tasks: Mapping[str, float] | None = None,
    partner_rate: float = PARTNER_RATE,
) -> Iterator[Demonstration]:
    """The examples that the starting policy imitates: scenes `start .. start + count - 1` of the `train` split, one question
    each.

    Polar and open questions are answered truthfully; descriptions also name partners that are not in the scene.

    Args:
        count: number of scenes.
        start: index of the first scene.
        tasks: relative weights; `DEMONSTRATION_TASKS` if not given.
        partner_rate: probability of naming the absent partner of an object, 0 to 1.

    Raises:
        ValueError: the weights or the rate are wrong.
    """
    weights = DEMONSTRATION_TASKS if tasks is None else tasks
    check_tasks("tasks", weights)
    if not 0 <= partner_rate <= 1:
        raise ValueError(f"partner_rate must be within 0..1, got {partner_rate}")
    for index in range(start, start + count):
        prompt = make_prompt("train", index, choose_task("train", index, weights))
        scene = sample("train", index)
        question = read_question(prompt.question)
        assert question is not None
        if question.task == "describe":
            text = caption(scene, generator(0, "caption", index), partner_rate=partner_rate)
        else:
            text = true_answer(scene, question)
        yield Demonstration(prompt=prompt, response=text_response(text))
