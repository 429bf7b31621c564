from __future__ import annotations

import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lavit.training.log import TrainingLog


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def scalars(folder, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_lines_and_events_say_the_same(tmp_path):
    log = TrainingLog(tmp_path, 0)
    log.write(0, {"loss": 2.5, "text": float("nan")})
    log.write(10, {"loss": 1.5}, {"step_seconds": 0.25})
    log.close()
    first, second = lines(tmp_path)
    assert first | {"elapsed": 0} == {"step": 0, "elapsed": 0, "loss": 2.5, "text": None}
    assert second | {"elapsed": 0} == {"step": 10, "elapsed": 0, "loss": 1.5, "speed": {"step_seconds": 0.25}}
    assert scalars(tmp_path, "loss") == [(0, 2.5), (10, 1.5)] and scalars(tmp_path, "speed/step_seconds") == [
        (10, 0.25)
    ]


def test_steps_that_are_made_again_stand_there_once(tmp_path):
    log = TrainingLog(tmp_path, 0)
    for step in (0, 10, 20):
        log.write(step, {"loss": 1.0 + step})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 25, "lo')  # killed while it wrote
    log = TrainingLog(tmp_path, 15)
    log.write(20, {"loss": 5.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(0, 1.0), (10, 11.0), (20, 5.0)]
    assert scalars(tmp_path, "loss") == [(0, 1.0), (10, 11.0), (20, 5.0)]
