"Random lives of a registry against a model of it in a few dicts; ranges and aliases against `packaging` and a list."
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from torch import nn

from flame_vision.core.errors import RegistryError, VersionExistsError, VersionNotFoundError
from flame_vision.versioning import ModelRegistry
from flame_vision.versioning.names import check_alias, choose_version, next_version, split_reference

pytestmark = pytest.mark.filterwarnings("ignore:.*no configuration builds")

NAMES, ALIASES = ("digits", "birds"), ("champion", "canary")
NUMBERS = ["1.0.0", "1.0.1", "1.1.0", "1.2.0", "2.0.0rc1", "2.0.0", "1!0.1.0", "0.9.0+cu1"]
WANTED = ["latest", ">=1.0,<1.2", "~=1.1", "<1", ">=2.0.0rc1", "!=1.1.0", *NUMBERS, *ALIASES, "3.0"]


def expected(wanted, there, aliases):
    "What a user means, in plain terms; None where it is nothing."
    if wanted in ALIASES: return aliases[wanted] if aliases.get(wanted) in there else None
    if wanted in NUMBERS or wanted == "3.0": return wanted if wanted in there else None
    spec = SpecifierSet("" if wanted == "latest" else wanted)
    fitting = sorted((v for v in there if spec.contains(v, prereleases=True)), key=Version)
    final = fitting if "rc" in wanted else [v for v in fitting if not Version(v).is_prerelease]
    return (final or fitting or [None])[-1]


class Lives(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.folder = tempfile.mkdtemp()
        self.registry, self.model = ModelRegistry(self.folder), nn.Linear(2, 2)
        self.there, self.gone = {n: {} for n in NAMES}, {n: set() for n in NAMES}
        self.moves = {(n, a): [] for n in NAMES for a in ALIASES}
        for number in ("auto", "auto", "2.0.0rc1"): self.register("digits", number, 5)

    def teardown(self): shutil.rmtree(getattr(self, "folder", ""), ignore_errors=True)
    def aliases(self, name): return {a: self.moves[name, a][-1] for a in ALIASES if self.moves[name, a] and self.moves[name, a][-1]}

    @rule(name=st.sampled_from(NAMES), number=st.sampled_from([*NUMBERS, "auto", "auto"]), metric=st.integers(0, 9))
    def register(self, name, number, metric):
        taken = {*self.there[name], *self.gone[name]}
        if number in taken:
            with pytest.raises(VersionExistsError): self.registry.register(name, number, model=self.model)
            return
        made = self.registry.register(name, number, model=self.model, metrics={"m": metric}, tags=[f"t{metric % 2}"])
        assert made.version == (next_version(taken) if number == "auto" else number)
        self.there[name][made.version] = (metric, made.manifest.digest)

    @rule(name=st.sampled_from(NAMES), alias=st.sampled_from(ALIASES), wanted=st.sampled_from(WANTED))
    def move(self, name, alias, wanted):
        means = expected(wanted, self.there[name], self.aliases(name))
        if means is None:
            with pytest.raises(RegistryError): self.registry.alias(name, alias, wanted)
            return
        before = self.moves[name, alias][-1] if self.moves[name, alias] else None
        with pytest.raises(RegistryError): self.registry.alias(name, alias, wanted, expected="9.9.9")
        move = self.registry.alias(name, alias, wanted, why="a rule", expected=before)
        assert (move.from_version, move.to_version) == (before, means)
        self.moves[name, alias].append(means)

    @rule(name=st.sampled_from(NAMES), alias=st.sampled_from(ALIASES), pick=st.integers(0, 20))
    def promote(self, name, alias, pick):
        if there := sorted(self.there[name]): self.move(name, alias, there[pick % len(there)])

    @rule(name=st.sampled_from(NAMES), alias=st.sampled_from(ALIASES))
    def withdraw(self, name, alias):
        if not self.moves[name, alias]:
            with pytest.raises(VersionNotFoundError): self.registry.alias(name, alias, None)
            return
        if self.moves[name, alias][-1] is None:
            with pytest.raises(RegistryError, match="means nothing already"): self.registry.alias(name, alias, None)
            return
        self.registry.alias(name, alias, None)
        self.moves[name, alias].append(None)

    @rule(name=st.sampled_from(NAMES), pick=st.integers(0, 20))
    def delete(self, name, pick):
        known = sorted([*self.there[name], *self.gone[name], "7.0.0"])
        number = known[pick % len(known)]
        if number not in self.there[name] or number in self.aliases(name).values():
            with pytest.raises(RegistryError): self.registry.delete(name, number)
            return
        self.registry.delete(name, number, why="a rule")
        del self.there[name][number]
        self.gone[name].add(number)

    @rule()
    def collect(self): assert self.registry.gc(older_than=-60) == []

    @rule(name=st.sampled_from(NAMES), wanted=st.sampled_from(WANTED))
    def ask(self, name, wanted):
        means = expected(wanted, self.there[name], self.aliases(name))
        assert ((name, wanted) in self.registry) == (means is not None)
        if means is None:
            with pytest.raises(RegistryError): self.registry.get(name, wanted)
            return
        found = self.registry.get(f"{name}@{wanted}")
        assert (found.version, found.metrics["m"], found.manifest.digest) == (means, *self.there[name][means])

    @invariant()
    def agrees(self):
        if not hasattr(self, "registry"): return
        assert self.registry.list() == sorted(n for n in NAMES if self.there[n])
        for name in NAMES:
            if self.there[name]: assert self.registry.versions(name) == sorted(self.there[name], key=Version)
            if self.there[name] or self.gone[name]: assert self.registry.aliases(name) == self.aliases(name)
            for alias in ALIASES:
                if moves := self.moves[name, alias]: assert [m.to_version for m in self.registry.history(alias, name)] == moves
        good = {f"{n}@{v}" for n in NAMES for v, (m, _) in self.there[n].items() if m >= 5}
        assert {str(v) for v in self.registry.search(metrics="m>=5")} == good
        assert {str(v) for v in self.registry.found(deleted=True)} == {f"{n}@{v}" for n in NAMES for v in [*self.there[n], *self.gone[n]]}

    @rule()
    def verify(self): assert self.registry.verify() == {}


quiet = dict(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("lives, steps", [(25, 30), pytest.param(400, 50, marks=pytest.mark.slow)])
def test_random_lives(lives, steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_state_machine_as_test(Lives, settings=settings(max_examples=lives, stateful_step_count=steps, **quiet))


numbers = st.lists(st.builds(lambda release, pre: ".".join(map(str, release)) + pre, st.lists(st.integers(0, 4), min_size=3, max_size=3),
                             st.sampled_from(["", "", "", "rc1", ".dev2", "a1"])), min_size=1, max_size=8, unique=True)
operators = st.sampled_from([">=", "<", "<=", ">", "!=", "~=", "=="])
ranges = st.lists(st.builds("{}{}.{}".format, operators, st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=3).map(",".join)


@settings(max_examples=200, **quiet)
@given(numbers, ranges)
def test_ranges_mean_what_they_mean_to_pip(there, wanted):
    fitting = sorted((v for v in there if SpecifierSet(wanted).contains(v, prereleases=True)), key=Version)
    final = [v for v in fitting if not Version(v).is_prerelease]
    if not fitting:
        with pytest.raises(VersionNotFoundError): choose_version(wanted, there, "m")
    else: assert choose_version(wanted, there, "m") == (final or fitting)[-1]


@settings(max_examples=200, **quiet)
@given(numbers)
def test_the_next_version_is_newer_than_all_and_free(there):
    assert all(Version(next_version(there)) > Version(v) for v in there)
    assert next_version([*there, next_version(there)]) != next_version(there)


@settings(max_examples=300, **quiet)
@given(st.text(max_size=120))
def test_an_alias_is_never_mistaken_for_a_version(alias):
    try: check_alias(alias)
    except RegistryError: return
    with pytest.raises(RegistryError): choose_version(alias, ["1.0.0"], "m")
    assert split_reference(f"m@{alias}") == ("m", alias)
