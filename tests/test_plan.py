import copy
import subprocess

import numpy as np
import pytest
import yaml

from lib import InputError, plan, records
from lib.config import preset

TEXTS = {
    "about": "a",
    "hypothesis": "b",
    "contrast": "c",
    "metric": "d",
    "margin": 1.0,
    "stopping": "e",
}
TUNING = TEXTS | {
    "name": "tuning",
    "scale": "plan",
    "wanted": ["validation"],
    "seed": 9,
    "growths": 2,
    "trials": {
        "simclr": {
            "preset": "simclr-digits",
            "delta": {"epochs": 1},
            "batch_size": [16, 32],
            "learning_rate": [0.1, 0.2, 0.4, 0.8],
            "then": [{"temperature": 0.2}, {"recipe": "none"}],
            "longer": {"epochs": 2},
        },
        "ce": {
            "preset": "ce-digits",
            "delta": {"epochs": 2},
            "batch_size": [16, 32],
            "learning_rate": [1.0, 2.0, 4.0, 8.0],
            "then": [{"label_smoothing": 0.1}, {"recipe": "crop-flip"}],
            "longer": {"epochs": 4},
            "among": {"recipe": "digits"},
        },
    },
}
LENGTHS = TEXTS | {
    "name": "lengths",
    "scale": "plan",
    "wanted": ["linear"],
    "arms": {
        "simclr": {"preset": "simclr-digits", "seeds": {1: 2, 2: 1}},
        "ce": {"preset": "ce-digits", "seeds": {2: 2, 4: 1}},
        "tuned": {"preset": "simclr-digits", "tuned": "simclr", "chosen": None, "seeds": {1: 1}},
    },
}


def entries(tmp_path, *listed):
    path = tmp_path / "experiments.yml"
    path.write_text(yaml.dump(list(listed), sort_keys=False))
    return plan.read(path)


def best_at(**rates):
    """A score that falls with the distance from each method's best rate, in doublings; larger
    batches are better."""

    def score(config):
        distance = abs(np.log2(config.learning_rate / rates[config.method]))
        return (
            0.8
            - 0.1 * distance
            + 0.001 * config.batch_size / 32
            - 0.05 * (config.temperature == 0.2)
        )

    return score


def stages(entry, score):
    return {
        name: {arm: len(trials) for arm, trials in stage.items()}
        for name, stage in plan.stages(entry, score).items()
    }


def test_stages_follow_from_the_scores_so_far(tmp_path):
    (entry,) = entries(tmp_path, TUNING)
    assert stages(entry, lambda config: None) == {"grid": {"simclr": 8, "ce": 8}}
    inside = best_at(simclr=0.2, ce=4.0)
    assert stages(entry, inside) == {
        "grid": {"simclr": 8, "ce": 8},
        "changes": {"simclr": 2, "ce": 2},
        "longer": {"simclr": 2, "ce": 2},
    }
    only_grid = {id_of(c) for trials in plan.stages(entry, inside)["grid"].values() for c in trials}
    assert list(stages(entry, lambda c: inside(c) if id_of(c) in only_grid else None)) == [
        "grid",
        "changes",
    ]


def id_of(config):
    return str(config.decisive) + config.method


def test_where_one_methods_best_lies_at_an_edge_every_method_tries_one_more_rate(tmp_path):
    (entry,) = entries(tmp_path, TUNING)
    known = plan.stages(entry, best_at(simclr=1.6, ce=4.0))
    assert list(known) == ["grid", "growth 1", "growth 2", "changes", "longer"]
    first, second = known["growth 1"], known["growth 2"]
    assert [(c.learning_rate, c.batch_size) for c in first["simclr"] + first["ce"]] == [
        (1.6, 32),
        (16.0, 32),
    ]
    assert [c.learning_rate for c in second["simclr"] + second["ce"]] == [
        3.2,
        0.5,
    ]  # 4 of 1 to 16: no side
    low = plan.stages(entry, best_at(simclr=0.1, ce=2.0))
    assert [c.learning_rate for c in low["growth 1"]["simclr"] + low["growth 1"]["ce"]] == [
        0.05,
        0.5,
    ]
    assert "growth 2" not in low  # 0.1 lies inside by now
    beyond = plan.stages(entry, best_at(simclr=100.0, ce=4.0))  # the grid grows twice at most
    assert [name for name in beyond if "growth" in name] == ["growth 1", "growth 2"]


def test_the_longer_two_and_the_choice(tmp_path):
    (entry,) = entries(tmp_path, TUNING)
    score = best_at(simclr=0.2, ce=4.0)
    longer = plan.stages(entry, score)["longer"]
    assert [
        (c.learning_rate, c.batch_size, c.epochs, c.seed, c.recipe) for c in longer["simclr"]
    ] == [(0.2, 32, 2, 9, "digits"), (0.2, 32, 2, 9, "none")]  # of equals the first
    assert [(c.batch_size, c.epochs, c.label_smoothing) for c in longer["ce"]] == [
        (32, 4, 0),
        (32, 4, 0.1),
    ]
    assert plan.choice(entry, "simclr", score) == {"batch_size": 32, "learning_rate": 0.2}
    better = lambda c: score(c) + 0.5 * (c.epochs == 2 and c.recipe == "none")  # noqa: E731
    assert plan.choice(entry, "simclr", better) == {
        "batch_size": 32,
        "learning_rate": 0.2,
        "recipe": "none",
    }
    assert plan.choice(entry, "simclr", lambda c: None if c.epochs == 2 else score(c)) is None


def test_trials_that_are_not_known_yet_are_counted(tmp_path):
    (entry,) = entries(tmp_path, TUNING)
    runs = plan.runs(entry, lambda config: None)
    assert len(runs) == 2 * (8 + 2 + 2) and sum(run.config is None for run in runs) == 8
    assert {run.like.epochs for run in runs if run.config is None and run.arm == "ce"} == {2, 4}
    settled = plan.runs(entry, best_at(simclr=0.2, ce=4.0))
    assert len(settled) == 24 and all(run.config.seed == 9 for run in settled)


def test_the_shortest_come_first_and_all_arms_of_a_seed_together(tmp_path):
    *_, entry = entries(tmp_path, TUNING, LENGTHS)
    order = [
        (run.arm, run.like.epochs, run.like.seed) for run in plan.runs(entry, lambda config: None)
    ]
    assert order == [
        ("simclr", 1, 0),
        ("ce", 2, 0),
        ("tuned", 1, 0),
        ("simclr", 1, 1),
        ("ce", 2, 1),
        ("simclr", 2, 0),
        ("ce", 4, 0),
    ]
    assert [run.arm for run in plan.runs(entry, lambda config: None) if run.config is None] == [
        "tuned"
    ]


def test_what_tuning_chose_is_part_of_an_arm(tmp_path):
    chosen = copy.deepcopy(LENGTHS)
    chosen["arms"]["tuned"]["chosen"] = {"learning_rate": 0.2, "batch_size": 32}
    *_, entry = entries(tmp_path, TUNING, chosen)
    (tuned,) = (run for run in plan.runs(entry, lambda config: None) if run.arm == "tuned")
    assert tuned.config == preset("simclr-digits", epochs=1, learning_rate=0.2, batch_size=32)
    assert entry.sha256 != plan.canonical_hash(LENGTHS)


def test_the_hash_is_of_content_not_of_the_order_of_keys():
    assert plan.canonical_hash(dict(reversed(LENGTHS.items()))) == plan.canonical_hash(LENGTHS)
    assert plan.canonical_hash(LENGTHS | {"margin": 2.0}) != plan.canonical_hash(LENGTHS)
    assert plan.canonical_hash({"b": 1, "a": [None]}) == (  # by sha256sum
        "1bf05c0d625a0ef02a68ac100ecae45da7763ccc9dd8f7e46c28256467f2e58d"
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"hypothesis": None}, "'hypothesis' is missing"),
        ({"wanted": ["lin"]}, "unknown probe 'lin'"),
        ({"speed": 1}, "unexpected keyword argument 'speed'"),
        ({"arms": {"a": {"preset": "x", "seeds": {1: 1}}}}, "unknown preset 'x'"),
        (
            {"arms": {"a": {"preset": "ce-digits", "tuned": "c", "seeds": {}}}},
            "unknown arm of tuning 'c'",
        ),
    ],
)
def test_bad_entries_are_named(tmp_path, change, words):
    with pytest.raises(InputError, match=f"experiments.yml: entry lengths: .*{words}"):
        entries(tmp_path, TUNING, LENGTHS | change)


# --- what was planned before it was run


def git(folder, *arguments, at=0):
    when = {"GIT_COMMITTER_DATE": f"@{at} +0000", "GIT_AUTHOR_DATE": f"@{at} +0000"}
    names = {
        f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    subprocess.run(
        ["git", "-C", folder, *arguments], check=True, capture_output=True, env=when | names
    )


def test_a_run_must_follow_the_commit_of_its_version(tmp_path):
    path = tmp_path / "experiments.yml"
    git(tmp_path, "init")
    for at, margin in ((1000, 1.0), (2000, 2.0), (3000, 1.0)):
        path.write_text(yaml.dump([LENGTHS | {"margin": margin}]))
        git(tmp_path, "add", path.name)
        git(tmp_path, "commit", "-m", "x", at=at)
    versions = plan.history(path)
    first, second = (plan.canonical_hash(LENGTHS | {"margin": margin}) for margin in (1.0, 2.0))
    assert versions == {("lengths", first): 1000, ("lengths", second): 2000}

    def why(sha256, started, entry="lengths"):
        return plan.unplanned(
            {"id": "r", "plan": {"entry": entry, "version": sha256}, "started": started}, versions
        )

    assert (
        why(first, "1970-01-01T00:16:40Z") is None and why(second, "1970-01-01T00:33:20Z") is None
    )
    assert "began 1 seconds before" in why(second, "1970-01-01T00:33:19Z")
    assert "never committed" in why("0" * 64, "1970-01-01T01:00:00Z")
    assert "never committed" in why(first, "1970-01-01T01:00:00Z", entry="other")
    assert plan.unplanned({"id": "r"}, versions) is None  # outside of the plan
    git(tmp_path, "clone", "--depth", "1", f"file://{tmp_path}", tmp_path / "shallow")
    assert plan.history(tmp_path / "shallow" / "experiments.yml") is None
    assert plan.history(tmp_path / "nowhere" / "experiments.yml") is None


def test_every_record_of_the_plan_was_planned():
    versions = plan.history()
    if versions is None:
        pytest.skip(
            "this checkout has no whole history: whether runs were planned before they began "
            "can't be seen"
        )
    planned = [record for record in records.load_all() if "plan" in record]
    assert planned
    assert [why for record in planned if (why := plan.unplanned(record, versions))] == []


def test_the_plan_can_be_read_and_orders_its_work():
    listed = plan.read()
    assert [entry.name for entry in listed][:4] == [
        "recorded",
        "tuning",
        "supcon-against-ce",
        "simclr-done-well",
    ]
    (tuning,) = (entry for entry in listed if entry.trials)
    assert {len(arm.grid()) + len(arm.then) for arm in tuning.trials} == {10}
    supcon, ce = listed[2].arms[:2]
    assert supcon.seeds[60] == ce.seeds[120] == 5  # the primary length
    used = {
        seed
        for entry in listed
        for arm in entry.arms
        for count in arm.seeds.values()
        for seed in range(count)
    }
    assert tuning.seed not in used  # its runs decide nothing
