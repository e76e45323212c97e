"""The averaged encoder, and the learning rates: their warm-up, and their share where a learned model goes on."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.small import Stopped, build, encoder, recipe, stop_at, train
from trainer.encoders import Encoder
from trainer.known import Known
from trainer.objectives import make_objective


def _weights(encoder: Encoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in encoder.state_dict().items()}


def test_the_average_is_that_of_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, `decay * average + (1 - decay) * weights`, from the weights after the first step."""
    chosen = recipe("run.averaging=0.7")
    objective = build(chosen)
    after_steps: list[dict[str, Tensor]] = []
    own = objective.after_step

    def after_step(progress: float) -> None:
        own(progress)
        after_steps.append(_weights(objective.encoder))

    monkeypatch.setattr(objective, "after_step", after_step)
    _, outcome = train(tmp_path, chosen, objective)

    expected = after_steps[0]
    for weights in after_steps[1:]:
        expected = {name: 0.7 * expected[name] + 0.3 * value for name, value in weights.items()}
    assert len(after_steps) == 4
    for name, value in outcome.encoder.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name])


def test_what_is_judged_after_an_epoch_is_the_average(tmp_path: Path) -> None:
    """The encoder that `on_epoch` gets, in eval mode, is the one that the outcome has in the end."""
    judged = []

    def judge(_: int, encoder: Encoder) -> dict[str, float]:
        assert not encoder.training
        judged.append(encoder)
        return {}

    objective, outcome = train(tmp_path, recipe("run.averaging=0.7"), on_epoch=judge)
    assert judged == [outcome.encoder] * 2
    assert outcome.encoder is not objective.encoder


def test_without_averaging_the_encoder_is_the_objective_s(tmp_path: Path) -> None:
    """Averaging of 0 gives the weights of the last step."""
    objective, outcome = train(tmp_path, recipe("run.averaging=0"))
    assert outcome.encoder is objective.encoder


@pytest.mark.parametrize("averaging", [0.0, 0.7])
def test_a_share_of_what_was_known_before_is_kept(tmp_path: Path, averaging: float) -> None:
    """Every weight and statistic of what is judged and given is so far back to where it was, on a straight line."""
    chosen = recipe(f"run.averaging={averaging}")
    objective = build(chosen)
    before, judged = _weights(objective.encoder), []

    def judge(_: int, encoder: Encoder) -> dict[str, float]:
        judged.append(_weights(encoder))
        return {}

    _, kept = train(tmp_path / "kept", chosen, objective, kept=0.3, on_epoch=judge)
    _, learned = train(tmp_path / "learned", chosen)
    after = learned.encoder.state_dict()
    assert not kept.encoder.training
    moved = 0.0
    for name, value in kept.encoder.state_dict().items():
        expected = 0.3 * before[name] + 0.7 * after[name] if value.is_floating_point() else after[name]
        torch.testing.assert_close(value, expected)
        assert torch.equal(value, judged[-1][name]), name
        moved += (value - before[name]).abs().sum().item()
    assert moved > 0.01
    assert not all(torch.equal(value, judged[0][name]) for name, value in judged[-1].items())


def test_a_stopped_training_keeps_what_was_known_before_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within an epoch and continued, it goes back to where the run began, not to its checkpoint."""
    monkeypatch.setattr("trainer.loop.SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("trainer.loop.LOG_EVERY", 1)
    chosen = recipe("run.averaging=0.7", "run.batch_size=10")
    _, whole = train(tmp_path / "whole", chosen, kept=0.5)
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", chosen, kept=0.5, progress=stop_at(3))
    _, resumed = train(tmp_path / "stopped", chosen, kept=0.5)
    assert resumed.steps < whole.steps
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(value, resumed.encoder.state_dict()[name]), name


def test_a_stopped_training_goes_on_with_the_same_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed within an epoch and continued, it ends with the same average, bit by bit."""
    monkeypatch.setattr("trainer.loop.SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("trainer.loop.LOG_EVERY", 1)
    chosen = recipe("run.averaging=0.7", "run.batch_size=10", "optimizer.warmup_steps=6")
    _, whole = train(tmp_path / "whole", chosen)
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", chosen, progress=stop_at(3))
    _, resumed = train(tmp_path / "stopped", chosen)
    assert resumed.steps < whole.steps
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(value, resumed.encoder.state_dict()[name]), name


def test_learning_rates_rise_over_the_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step from a share of the learning rate to all of it, times the schedule."""
    monkeypatch.setattr("trainer.loop.LOG_EVERY", 1)
    changes = ("optimizer.warmup_steps=3", "optimizer.lr=0.03", "run.schedule=constant")
    train(tmp_path, recipe(*changes))
    assert _rates(tmp_path) == pytest.approx([0.01, 0.02, 0.03, 0.03])


def _rates(directory: Path) -> list[float]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if "lr" in line]


@pytest.mark.parametrize(
    ("learned", "labelled", "rate"), [(True, False, 0.01), (False, False, 0.04), (True, True, 0.04)]
)
def test_a_learned_model_goes_on_at_a_share_of_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: bool, labelled: bool, rate: float
) -> None:
    """Unless there are labels to learn from: those it has never seen."""
    monkeypatch.setattr("trainer.loop.LOG_EVERY", 1)
    changes = ("optimizer.lr=0.04", "optimizer.learning_on_share=0.25", "run.epochs=1", "run.schedule=constant")
    start = encoder()
    start.head_is_trained = learned
    label = torch.full((40,), -1)
    if labelled:
        label[:4] = torch.tensor([0, 0, 1, 1])
    objective = make_objective("stml_semi", start, background_dim=32, neighbours=5, context=10)
    train(tmp_path, recipe(*changes), objective, known=Known(label))
    assert _rates(tmp_path) == pytest.approx([rate] * 2)
