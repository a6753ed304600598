"""Fine-tuning: an encoder trained further with few labels, and the same network from scratch."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lib import InputError, data
from lib.augmentations import RECIPES
from lib.data import Dataset
from lib.evaluation import classified, cross_validated_probe
from lib.evidence import tables
from lib.probes import Seen, Unfinished, few_labels, fine_tuning
from lib.runs import Run
from lib.runs.run import UNFINISHED
from tests.conftest import arrays, small, trained

AS_IT_IS = RECIPES["none"]
EIGHT = torch.arange(8)  # rows


class Encoder(nn.Module):
    """A model whose encoder learns in no time: h are 8 numbers of an image's mean colours."""

    def __init__(self):
        super().__init__()
        self.encoder = fresh()
        self.head = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return h, self.head(h)


def fresh() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8), nn.BatchNorm1d(8))


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fine_tuning, "STEPS", 40)
    monkeypatch.setattr(fine_tuning, "EPOCHS", 1)
    monkeypatch.setattr(fine_tuning, "RATES", (0.03, 0.3))
    monkeypatch.setattr(fine_tuning, "PER_CLASS", (5, 1000))
    monkeypatch.setattr(fine_tuning, "SUBSETS", 2)


def seen(dataset: Dataset, build: Callable[[], nn.Module] | None = fresh, seed: int = 0) -> Seen:
    torch.manual_seed(1)
    return Seen(Encoder(), dataset, AS_IT_IS, fresh=build, seed=seed)


def toy_with(**changes) -> Dataset:
    return data.build("toy", **arrays(n=200) | changes)


def test_both_starts_learn_from_few_labels(toy):
    rows = fine_tuning.ask(seen(toy))
    told = [(row["probe"], row["per_class"], row["labels"], row["subset"]) for row in rows]
    assert told == [
        ("fine-tuned", 5, 20, "random 0"),
        ("fine-tuned", 5, 20, "random 1"),
        ("from scratch", 5, 20, "random 0"),
        ("from scratch", 5, 20, "random 1"),
        ("probed", 5, 20, "random 0"),
        ("probed", 5, 20, "random 1"),
    ]
    for row in rows:
        assert row["n"] == 60
        assert row["correct"] > 50, row  # the class shows in the colour
        assert row["probe"] == "probed" or row["learning_rate"] in fine_tuning.RATES


def test_the_frozen_h_is_probed_with_the_same_labels(toy):
    asked = seen(toy)
    *_, last = fine_tuning.ask(asked)
    places = fine_tuning.label_sets(toy)[5][1]
    h, y = asked.labelled("h", "train")
    probe = cross_validated_probe(h[places], y[places], 4)
    test, truth = asked.labelled("h", "test")
    assert last["correct"] == int((probe.predict(test) == truth).sum())


def test_without_a_fresh_encoder_or_with_nothing_to_train_there_is_no_start_from_scratch(toy):
    only = {"fine-tuned", "probed"}
    assert {row["probe"] for row in fine_tuning.ask(seen(toy, build=None))} == only
    fixed = seen(toy)
    fixed.model.encoder = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    rows = fine_tuning.ask(fixed)
    assert {row["probe"] for row in rows} == only
    assert rows[1]["correct"] > 50  # the layer on h learns


def test_the_model_stays_as_it_was(toy):
    asked = seen(toy)
    before = copy.deepcopy(asked.model.state_dict())
    fine_tuning.ask(asked)
    for name, value in asked.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_start_is_where_the_encoder_begins(toy):
    """One step at a rate of next to nothing: the weights are those of the start."""
    asked = seen(toy)
    few = fine_tuning.tuned(
        asked, lambda: copy.deepcopy(asked.model.encoder), torch.arange(8), 1e-9
    )
    assert torch.allclose(few.encoder[2].weight, asked.model.encoder[2].weight, atol=1e-6)
    other = fine_tuning.tuned(asked, fresh, EIGHT, 1e-9)
    assert not torch.allclose(other.encoder[2].weight, asked.model.encoder[2].weight, atol=1e-2)
    again = fine_tuning.tuned(asked, fresh, EIGHT, 1e-9)
    assert torch.equal(other.encoder[2].weight, again.encoder[2].weight)
    another = fine_tuning.tuned(seen(toy, seed=7), fresh, EIGHT, 1e-9)  # a run of another seed
    assert not torch.allclose(other.encoder[2].weight, another.encoder[2].weight, atol=1e-2)


def test_only_the_subsets_labels_are_learned_from(toy):
    """All other training labels are turned round: nothing of that subset's classifier changes."""
    places = fine_tuning.label_sets(toy)[5][0]
    wrong = 3 - toy.train.labels
    wrong[places] = toy.train.labels[places]
    turned = replace(toy, train=replace(toy.train, labels=wrong))

    one, other = (fine_tuning.tuned(seen(dataset), fresh, places, 0.3) for dataset in (toy, turned))
    assert torch.equal(one.head.weight, other.head.weight)
    assert classified(one, toy.test, AS_IT_IS) > 50


def test_many_labels_are_passed_over_several_times(toy, monkeypatch):
    """Else a network from scratch would not have seen enough of them."""
    monkeypatch.setattr(fine_tuning, "EPOCHS", 30)
    asked = seen(toy)
    few = replace(toy, train=toy.train[:8])
    assert fine_tuning.config_for(asked, few, 0.1).epochs == 40  # of a step each
    assert fine_tuning.config_for(asked, toy, 0.1).epochs == 30  # of two


def test_the_rate_is_chosen_on_val_and_test_chooses_nothing(toy):
    places = torch.arange(180)
    right = fine_tuning.best_rate(seen(toy), fresh, places)
    turned = replace(toy, test=replace(toy.test, labels=3 - toy.test.labels))
    assert fine_tuning.best_rate(seen(turned), fresh, places) == right

    def score(rate: float) -> int:
        model = fine_tuning.tuned(seen(toy), fresh, places, rate)
        return classified(model, toy.val, AS_IT_IS)

    assert score(right) == max(map(score, fine_tuning.RATES))


def test_a_runs_rows_are_few_labels_in_the_measures(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning, "STEPS", 2)
    run: Run = trained(small(epochs=1), toy, tmp_path)
    run.evaluate(toy, "cpu", ["fine-tuning"])
    measured = tables.measures([run.record]).query("measure == 'few labels'")
    assert list(measured["probe"].unique()) == ["fine-tuned", "from scratch", "probed"]
    first = run.record["fine_tuning"][0]
    assert measured["accuracy"].iloc[0] == first["correct"] / first["n"]
    one, other = run.fresh(), run.fresh()
    assert not all(map(torch.equal, one.parameters(), other.parameters()))


def test_a_probe_that_was_stopped_goes_on_with_the_rows_that_it_had(toy, tmp_path, monkeypatch):
    whole = fine_tuning.ask(seen(toy))
    path, fits = tmp_path / "rows.json", []
    tuned = fine_tuning.tuned

    def stopped(*about) -> fine_tuning.Classifier:
        fits.append(about)
        if len(fits) == 7:  # two rates and two subsets, then the same from scratch
            raise KeyboardInterrupt
        return tuned(*about)

    monkeypatch.setattr(fine_tuning, "tuned", stopped)
    first = seen(toy)
    first.unfinished = Unfinished(path)
    with pytest.raises(KeyboardInterrupt):
        fine_tuning.ask(first)
    assert Unfinished(path).rows == whole[:2]

    again = seen(toy)
    again.unfinished = Unfinished(path)
    fits.clear()
    assert fine_tuning.ask(again) == whole
    assert len(fits) == 4  # those of the start that was under way
    assert Unfinished(path).rows == whole[:4]  # a probe is made anew, in no time

    path.write_text("cut off [", encoding="utf-8")
    assert Unfinished(path).rows == []


def test_a_run_leaves_no_rows_beside_its_record(toy, tmp_path):
    run = trained(small(epochs=0), toy, tmp_path)
    run.evaluate(toy, "cpu", ["fine-tuning"])
    assert run.record["fine_tuning"]
    assert not (run.folder / UNFINISHED).exists()


def test_rows_wait_for_their_table_while_other_probes_are_asked(toy, tmp_path):
    run = trained(small(epochs=0), toy, tmp_path)
    rows = Unfinished(run.folder / UNFINISHED)
    where = {"probe": "fine-tuned", "per_class": 5, "subset": "random 0"}
    rows.add(where | {"n": 60, "correct": 50, "learning_rate": 0.3})
    run.evaluate(toy, "cpu", ["knn"])
    assert Unfinished(run.folder / UNFINISHED).rows == rows.rows


def test_a_class_with_too_few_images_is_named(toy):
    small_class = toy.train[torch.cat([(toy.train.labels != 3).nonzero()[:, 0], torch.tensor([3])])]
    lacking = replace(toy, train=small_class)
    for probe in (fine_tuning, few_labels):
        with pytest.raises(InputError, match="class '3' of toy has .* images to draw"):
            probe.ask(seen(lacking))


@pytest.mark.parametrize("content", ["", "null", "5", "{}", '["a"]', '[{"probe": "fine-tuned"}]'])
def test_rows_that_are_none_are_computed_anew(content, tmp_path):
    path = tmp_path / UNFINISHED
    path.write_text(content, encoding="utf-8")
    assert Unfinished(path).rows == []
