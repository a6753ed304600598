"""The plan: what its entries ask for, stage by stage, and that it stood before its runs."""

import copy
import math
import re
import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import yaml

from lib import InputError
from lib.config import Config
from lib.evidence import experiments, plan
from lib.evidence.plan import Entry, ValAccuracy
from lib.methods import METHODS
from lib.presets import preset
from lib.runs import records
from tests.plans import TEXTS, TUNING, written

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


@pytest.fixture
def tuning(tmp_path) -> Entry:
    (entry,) = plan.read(written(tmp_path, TUNING))
    return entry


def no_score(config: Config) -> None:
    return None


def best_at(**rates: float) -> ValAccuracy:
    """A score that falls with the distance from each method's best rate, in doublings.

    Larger batches are better, a temperature of 0.2 is worse.
    """

    def score(config: Config) -> float:
        distance = abs(math.log2(config.learning_rate / rates[config.method]))
        value = 0.8 - 0.1 * distance + 0.001 * config.batch_size / 32
        if config.temperature == 0.2:
            value -= 0.05
        return value

    return score


INSIDE = best_at(simclr=0.2, ce=4.0)


def counts(entry: Entry, score: ValAccuracy) -> dict[str, list[int]]:
    """How many trials each arm has in the stages known so far."""
    found = {}
    for name, tried in plan.stages(entry, score).items():
        found[name] = list(map(len, tried.values()))
    return found


def test_stages_follow_from_the_scores_so_far(tuning):
    assert counts(tuning, no_score) == {"grid": [8, 8]}
    assert counts(tuning, INSIDE) == {"grid": [8, 8], "changes": [2, 2], "longer": [2, 2]}

    grid = plan.stages(tuning, INSIDE)["grid"]
    in_grid = grid["simclr"] + grid["ce"]

    def score_of_the_grid(config: Config) -> float | None:
        if config in in_grid:
            return INSIDE(config)
        return None

    assert counts(tuning, score_of_the_grid) == {"grid": [8, 8], "changes": [2, 2]}


def test_where_one_methods_best_lies_at_an_edge_every_method_tries_one_more_rate(tuning):
    known = plan.stages(tuning, best_at(simclr=1.6, ce=4.0))
    assert list(known) == ["grid", "growth 1", "growth 2", "changes", "longer"]

    first, second = known["growth 1"], known["growth 2"]
    (simclr,), (ce,) = first["simclr"], first["ce"]
    assert (simclr.learning_rate, simclr.batch_size) == (1.6, 32)
    assert (ce.learning_rate, ce.batch_size) == (16.0, 32)
    (simclr,), (ce,) = second["simclr"], second["ce"]
    assert simclr.learning_rate == 3.2
    assert ce.learning_rate == 0.5  # 4 of 1 to 16: no side


def test_the_grid_grows_no_more_where_the_best_lies_inside(tuning):
    known = plan.stages(tuning, best_at(simclr=0.1, ce=2.0))
    assert known["growth 1"]["simclr"][0].learning_rate == 0.05
    assert known["growth 1"]["ce"][0].learning_rate == 0.5
    assert "growth 2" not in known


def test_the_grid_grows_as_often_as_the_entry_says(tuning):
    known = plan.stages(tuning, best_at(simclr=100.0, ce=4.0))
    assert list(known) == ["grid", "growth 1", "growth 2", "changes", "longer"]
    assert known["growth 2"]["simclr"][0].learning_rate == 3.2


def test_the_best_two_are_tried_for_longer(tuning):
    longer = plan.stages(tuning, INSIDE)["longer"]
    for config in longer["simclr"]:
        assert (config.learning_rate, config.batch_size) == (0.2, 32)
        assert (config.epochs, config.seed) == (2, 9)
    first, second = longer["simclr"]
    assert (first.recipe, second.recipe) == ("digits", "none")  # of equals the first
    for config in longer["ce"]:
        assert (config.batch_size, config.epochs, config.recipe) == (32, 4, "digits")
    first, second = longer["ce"]
    assert (first.label_smoothing, second.label_smoothing) == (0, 0.1)


def test_the_better_of_the_longer_two_is_chosen(tuning):
    chosen = {"batch_size": 32, "learning_rate": 0.2}
    assert plan.choice(tuning, "simclr", INSIDE) == chosen

    def better_without_a_recipe(config: Config) -> float:
        return INSIDE(config) + (config.epochs == 2 and config.recipe == "none")

    def longer_ones_are_missing(config: Config) -> float | None:
        if config.epochs == 2:
            return None
        return INSIDE(config)

    assert plan.choice(tuning, "simclr", better_without_a_recipe) == chosen | {"recipe": "none"}
    assert plan.choice(tuning, "simclr", longer_ones_are_missing) is None


def test_trials_that_are_not_known_yet_are_counted(tuning):
    runs = plan.runs(tuning, no_score)
    open_ones = [run for run in runs if run.config is None]
    assert (len(runs), len(open_ones)) == (2 * (8 + 2 + 2), 2 * (2 + 2))
    assert {run.like.epochs for run in open_ones if run.arm == "ce"} == {2, 4}

    settled = plan.runs(tuning, INSIDE)
    assert len(settled) == 24
    assert all(run.config.seed == 9 for run in settled)


def test_the_shortest_come_first_and_all_arms_of_a_seed_together(tmp_path):
    _, entry = plan.read(written(tmp_path, TUNING, LENGTHS))
    runs = plan.runs(entry, no_score)
    order = [(run.arm, run.like.epochs, run.like.seed) for run in runs]
    assert order == [
        ("simclr", 1, 0),
        ("ce", 2, 0),
        ("tuned", 1, 0),
        ("simclr", 1, 1),
        ("ce", 2, 1),
        ("simclr", 2, 0),
        ("ce", 4, 0),
    ]
    assert [run.arm for run in runs if run.config is None] == ["tuned"]


def test_what_tuning_chose_is_part_of_an_arm(tmp_path):
    entered = copy.deepcopy(LENGTHS)
    entered["arms"]["tuned"]["chosen"] = {"learning_rate": 0.2, "batch_size": 32}
    _, entry = plan.read(written(tmp_path, TUNING, entered))
    (tuned,) = (run for run in plan.runs(entry, no_score) if run.arm == "tuned")
    assert tuned.config == preset("simclr-digits", epochs=1, learning_rate=0.2, batch_size=32)
    assert entry.sha256 == plan.canonical_hash(entered) != plan.canonical_hash(LENGTHS)


def test_the_hash_is_of_content_not_of_the_order_of_keys():
    assert plan.canonical_hash(dict(reversed(LENGTHS.items()))) == plan.canonical_hash(LENGTHS)
    assert plan.canonical_hash(LENGTHS | {"margin": 2.0}) != plan.canonical_hash(LENGTHS)
    assert plan.canonical_hash({"b": 1, "a": [None]}) == (  # by sha256sum
        "1bf05c0d625a0ef02a68ac100ecae45da7763ccc9dd8f7e46c28256467f2e58d"
    )


def an_arm(**fields) -> dict:
    """A change of an entry: its only arm."""
    return {"arms": {"a": {"preset": "ce-digits"} | fields}}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"hypothesis": None}, "hypothesis must be text"),
        ({"margin": "small"}, "margin must be a number"),
        ({"wanted": ["lin"]}, "unknown probe 'lin'"),
        ({"speed": 1}, "unknown field 'speed'"),
        ({"growths": -1}, "growths must be at least 0"),
        ({"arms": [1]}, "arms must be a mapping"),
        (an_arm(preset="x", seeds={1: 1}), "unknown preset 'x'"),
        (an_arm(seeds={1: 1}, delta={"epoch": 1}), "unknown field 'epoch'"),
        (an_arm(seeds={1: "many"}), "seeds.1 must be an integer"),
        (an_arm(seeds={1: -1}), "seeds.1 must be at least 0"),
        (an_arm(seeds={1: 1, "2": 1}), "not supported between"),  # which JSON can't sort
        (an_arm(tuned="c", seeds={}), "unknown arm of tuning 'c'"),
        (an_arm(chosen={}, seeds={}), "chosen needs tuned"),
        (an_arm(wanted=["lin"]), "unknown probe 'lin'"),
    ],
)
def test_bad_entries_are_named(tmp_path, change, words):
    with pytest.raises(InputError, match=f"experiments.yml: entry lengths: .*{words}"):
        plan.read(written(tmp_path, TUNING, LENGTHS | change))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"learning_rate": []}, "learning_rate"),
        ({"then": [{"temperature": 0}]}, "temperature must be"),
        ({"longer": {"epoch": 2}}, "unknown field 'epoch'"),
        ({"among": {"recipes": "none"}}, "unknown field 'recipes'"),
    ],
)
def test_bad_trials_are_named(tmp_path, change, words):
    trials = {"simclr": TUNING["trials"]["simclr"] | change}
    with pytest.raises(InputError, match=f"experiments.yml: entry tuning: .*{words}"):
        plan.read(written(tmp_path, TUNING | {"trials": trials}))


# --- what was planned before it was run


def git(folder: Path, *arguments: object, at: int = 0) -> None:
    """Call git in a folder, as if it were so many seconds after 1970."""
    environment = {}
    for who in ("AUTHOR", "COMMITTER"):
        environment[f"GIT_{who}_DATE"] = f"@{at} +0000"
        environment[f"GIT_{who}_NAME"] = environment[f"GIT_{who}_EMAIL"] = "x"
    command = ["git", "-C", folder, *arguments]
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=60)


def with_margin(margin: float) -> dict:
    return LENGTHS | {"margin": margin}


FIRST, SECOND = plan.canonical_hash(with_margin(1.0)), plan.canonical_hash(with_margin(2.0))
VERSIONS = [
    plan.Version("lengths", FIRST, "1" * 40, 1000, with_margin(1.0)),
    plan.Version("lengths", SECOND, "2" * 40, 2000, with_margin(2.0)),
]


def test_a_version_is_known_by_its_first_commit(tmp_path):
    git(tmp_path, "init")
    path = tmp_path / "experiments.yml"
    first, second = (written(tmp_path, with_margin(margin)).read_bytes() for margin in (1.0, 2.0))
    slip = b"a slip: ["  # which says nothing of any entry
    for at, content in ((1000, first), (1500, slip), (2000, second), (3000, first)):
        path.write_bytes(content)
        git(tmp_path, "add", path.name)
        git(tmp_path, "commit", "-m", "x", at=at)
    found = plan.history(path)
    assert [replace(version, commit="") for version in found] == [
        replace(version, commit="") for version in VERSIONS
    ]
    assert all(re.fullmatch("[0-9a-f]{40}", version.commit) for version in found)

    of_plan = {"scale": experiments.PLAN, "margin": 1.0}
    nameless = [of_plan, of_plan | {"name": "a", "margin": date(1970, 1, 1)}]
    git(tmp_path, "rm", path.name)
    git(tmp_path, "commit", "-m", "gone", at=4000)
    path.write_text(yaml.safe_dump(nameless), encoding="utf-8")
    git(tmp_path, "add", path.name)
    git(tmp_path, "commit", "-m", "back", at=5000)
    assert plan.history(path) == found

    git(tmp_path, "clone", "--depth", "1", f"file://{tmp_path}", tmp_path / "shallow")
    assert plan.history(tmp_path / "shallow" / "experiments.yml") is None
    assert plan.history(tmp_path / "nowhere" / "experiments.yml") is None


@pytest.mark.parametrize(
    "entry, version, started, words",
    [
        ("lengths", FIRST, "1970-01-01T00:16:40Z", None),
        ("lengths", SECOND, "1970-01-01T00:33:20Z", None),
        ("lengths", SECOND, "1970-01-01T00:33:19Z", "began 1 seconds before"),
        ("lengths", "0" * 64, "1970-01-01T01:00:00Z", "never committed"),
        ("other", FIRST, "1970-01-01T01:00:00Z", "never committed"),
    ],
)
def test_a_run_must_follow_the_commit_of_its_version(entry, version, started, words):
    record = {"id": "r", "plan": {"entry": entry, "version": version}, "started": started}
    why = plan.unplanned(record, VERSIONS)
    if words is None:
        assert why is None
    else:
        assert words in why


def test_a_run_of_the_plan_says_when_it_began():
    record = {"id": "r", "plan": {"entry": "lengths", "version": FIRST}}
    assert plan.unplanned(record, VERSIONS) == "r does not say when it began"


def test_a_run_outside_of_the_plan_needs_no_commit():
    assert plan.unplanned({"id": "r"}, VERSIONS) is None


def version_of(entry: dict) -> plan.Version:
    return plan.Version(entry["name"], plan.canonical_hash(entry), "1" * 40, 1000, entry)


def test_runs_of_an_earlier_version_that_are_planned_no_more_are_left_out(tmp_path):
    """Another name of the arm, another precision, and what tuning chose leave nothing out."""
    now, _ = plan.read(written(tmp_path, LENGTHS, TUNING))
    (name, arm), *_ = LENGTHS["arms"].items()
    more = {epochs: count + 2 for epochs, count in arm["seeds"].items()}
    gone = arm | {"delta": arm.get("delta", {}) | {"learning_rate": 0.123}}
    earlier = LENGTHS | {"arms": LENGTHS["arms"] | {name: arm | {"seeds": more}, "gone": gone}}
    in_half = arm | {"delta": arm.get("delta", {}) | {"precision": "bfloat16"}}
    renamed = LENGTHS | {"arms": LENGTHS["arms"] | {"other": in_half}}

    same = [version_of(LENGTHS), version_of(with_margin(2.0)), version_of(renamed)]
    same.append(version_of(TUNING))
    assert plan.left_out(now, same, no_score) == 0
    expected = 2 * len(more) + sum(arm["seeds"].values())
    assert plan.left_out(now, [*same, version_of(earlier)], no_score) == expected

    trials = TUNING["trials"]["simclr"] | {"learning_rate": [0.05, 0.1, 0.2, 0.4, 0.8]}
    wider = TUNING | {"trials": TUNING["trials"] | {"simclr": trials}}
    _, tuning = plan.read(written(tmp_path, LENGTHS, TUNING))
    assert plan.left_out(tuning, [version_of(wider), version_of(TUNING)], no_score) == 2
    assert plan.left_out(tuning, [version_of(wider)], INSIDE) == 2  # no trial stands for the others
    in_half = trials | {"longer": trials["longer"] | {"precision": "bfloat16"}}
    halved = wider | {"trials": wider["trials"] | {"simclr": in_half}}
    assert plan.left_out(tuning, [version_of(halved)], INSIDE) == 2

    unreadable = version_of(LENGTHS | {"colour": "red"})
    assert plan.left_out(now, [unreadable], no_score) == 0


def test_what_was_cut_from_the_plan_is_told_here():
    """Versions that differ in arms' names, precision, or lengths that were added cut nothing."""
    cut = {  # runs, by the entry
        "supcon-against-ce": 6,  # three seeds of the longest length, in both arms
        "simclr-done-well": 1,  # one seed at 300 epochs
    }
    versions = plan.history() or []
    for entry in plan.read():
        assert plan.left_out(entry, versions, no_score) == cut.get(entry.name, 0), entry.name


def test_every_record_of_the_plan_was_planned():
    versions = plan.history()
    if versions is None:
        pytest.skip(
            "this checkout has no whole history: whether runs were planned before they began "
            "can't be seen"
        )
    planned = [record for record in records.load_all() if "plan" in record]
    assert planned
    for record in planned:
        assert plan.unplanned(record, versions) is None


def test_the_entries_hash_what_stands_in_the_file():
    listed = yaml.safe_load(plan.EXPERIMENTS.read_bytes())
    wanted = [plan.canonical_hash(entry) for entry in listed if entry["scale"] == "plan"]
    assert wanted
    assert [entry.sha256 for entry in plan.read()] == wanted


def test_the_methods_tuning_is_alike_and_decides_nothing():
    """Each arm has as many trials, of a seed that no other run has."""
    listed = plan.read()
    (tuning,) = (entry for entry in listed if entry.trials)
    known = plan.stages(tuning, lambda config: 0.5)
    assert known.keys() >= {"grid", "changes", "longer"}
    for stage, tried in known.items():
        assert tried.keys() == METHODS.keys()
        assert len(set(map(len, tried.values()))) == 1, stage
        assert all(tried.values()), stage

    arms = 0
    for entry in listed:
        for arm in entry.arms.values():
            assert max(arm.seeds.values()) <= tuning.seed, entry.name
            arms += 1
    assert arms > 10


def test_methods_are_compared_at_equal_numbers_of_views_and_seeds():
    """SupCon sees two views of an image in an epoch, cross-entropy one."""
    (entry,) = (entry for entry in plan.read() if entry.name == "supcon-against-ce")
    seeds = {}
    for name in ("supcon", "ce"):
        arm = entry.arms[name]
        seeds[name] = {epochs * arm.config().views: n for epochs, n in arm.seeds.items()}
    assert seeds["supcon"] == seeds["ce"]
    assert max(seeds["ce"].values()) == seeds["ce"][120] > 3  # most at the primary length
