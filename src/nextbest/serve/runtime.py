"""What a server holds while it runs: the bundle, catalogue and policy in use, and the store.

Bundle, catalogue and policy are verified together and swapped together. When a new one is refused
the last good ones stay, and readiness, the log and a metric say why.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from nextbest.decide.binding import BoundPolicy, bind
from nextbest.decide.engine import Decisions
from nextbest.decide.frame import Situation
from nextbest.decide.offers import BoundCatalogue, Catalogue
from nextbest.decide.policy import Policy, load_serving
from nextbest.decide.steps import compiled_loops
from nextbest.errors import ArtifactError, ConfigError, DataError, NextbestError, StoreError
from nextbest.serve import approvals, archive, lastgood
from nextbest.serve.audience import ANSWERS, Shaper, known_columns
from nextbest.serve.audit import Change
from nextbest.serve.bundle import Bundle, current_id, load_bundle
from nextbest.serve.problems import Problem
from nextbest.serve.records import Erased
from nextbest.serve.scarcity import FILE as PRICES_FILE
from nextbest.serve.scarcity import StoredPrices, read_prices
from nextbest.serve.store import Store
from nextbest.serve.telemetry import Metrics, log

if TYPE_CHECKING:
    from nextbest.decide.assign import Prices

__all__ = [
    "Runtime",
    "State",
    "load_approved",
    "load_last_good",
    "load_state",
    "note_configuration",
    "open_store",
    "serving_dir",
    "who_is_erased",
]

Clock = Callable[[], datetime]
SQLITE = Path(".nextbest", "store.db")
PARTS = ("bundle", "configuration")
RETRY_SECONDS = 60.0
# So far back contacts are held against what the model expected of them.
COMPARED = timedelta(days=90)


def serving_dir(project_dir: Path) -> Path:
    """Return where a project keeps its bundles."""
    return project_dir / ".nextbest" / "serving"


def open_store(project_dir: Path, *, queued: bool = False) -> Store:
    """Open the project's store: the URL in ``NEXTBEST_STORE``, else its own SQLite file.

    Parameters
    ----------
    queued : decisions are answered before they are on disk (`Store`).

    Raises
    ------
    StoreError: it cannot be opened.
    """
    url = os.environ.get("NEXTBEST_STORE")
    own = project_dir / SQLITE
    return Store(url, queued=queued) if url else Store.at(own, queued=queued)


@dataclass(frozen=True)
class State:
    """A bundle with the catalogue and policy that were checked against it.

    ``prices`` are those of the last batch on each channel; ``prices_damage`` says why they cannot
    be read, where they cannot.
    """

    bundle: Bundle
    catalogue: BoundCatalogue
    policy: BoundPolicy
    shaper: Shaper
    prices: Mapping[str, StoredPrices] = field(default_factory=dict)
    prices_damage: str | None = None

    @property
    def offers(self) -> Catalogue:
        """The catalogue as the file states it."""
        return self.catalogue.catalogue

    @property
    def rules(self) -> Policy:
        """The policy as the file states it."""
        return self.policy.policy

    @property
    def identity(self) -> lastgood.LastGood:
        """What names the state's content: two states of one identity decide alike."""
        return lastgood.LastGood(self.bundle.id, self.offers.content_hash, self.rules.content_hash)

    def moment(self, clock: Clock) -> datetime:
        """Return what "now" is for decisions: the policy's fixed moment, if it has one."""
        return self.rules.decide_as_of or clock()

    def prices_for(self, situation: Situation) -> Prices | None:
        """Return the scarcity prices that a single decision heeds, if there are any that hold."""
        stored = self.prices.get(situation.channel)
        heeded = stored is not None and self.rules.tables.budgets.online
        return stored.prices if stored and heeded and not self.prices_fault(situation) else None

    def prices_fault(self, situation: Situation) -> str | None:
        """Say why stored prices do not hold for a decision; None where they do, or are not used."""
        budgets, stored = self.rules.tables.budgets, self.prices.get(situation.channel)
        if not budgets.online:
            return None
        if stored is None:
            return self.prices_damage
        return stored.fault(
            self.offers.content_hash,
            self.rules.content_hash,
            situation.decided_at,
            budgets.prices_valid_days,
        )

    def ignored_prices(self, decisions: Decisions) -> str | None:
        """Say why stored prices did not decide; None where they did, or there are none."""
        return None if decisions.prices is not None else self.prices_fault(decisions.situation)

    def without(self, erased: Erased) -> State:
        """The same, where the profiles of these people are not read."""
        return replace(self, shaper=replace(self.shaper, erased=erased))

    def is_stale(self, moment: datetime) -> bool:
        """Tell whether the profiles are older than the policy's freshness limit."""
        limit = self.rules.tables.profiles.freshness_limit_days
        age = moment - self.bundle.as_of
        return limit is not None and age.total_seconds() > limit * 86_400


def who_is_erased(project_dir: Path) -> Erased:
    """Return who was erased and may still be in a bundle; makes no store where there is none.

    Raises
    ------
    StoreError: there is a store, and it cannot be read.
    """
    if not os.environ.get("NEXTBEST_STORE") and not (project_dir / SQLITE).exists():
        return Erased()
    store = open_store(project_dir)
    try:
        return store.erased()
    finally:
        store.close()


def note_configuration(store: Store, state: State, actor: str) -> None:
    """Note in the audit trail that another policy or catalogue is in force from now on."""
    for name, content_hash in (
        ("policy", state.rules.content_hash),
        ("offers", state.offers.content_hash),
    ):
        detail = {"content_hash": content_hash}
        store.audit_if_new(Change(actor, "configure", f"serving/{name}.toml", detail))


def load_state(
    project_dir: Path,
    before: State | None = None,
    *,
    policy_file: Path | None = None,
    erased: Erased | None = None,
) -> State:
    """Load and check the bundle, catalogue and policy of a project, and archive the latter two.

    Whether the policy may go live is `load_approved`'s question.

    Parameters
    ----------
    before : what is in use; its bundle is taken over where it is still the current one.
    policy_file : a policy to use in place of the project's own, to try it out.
    erased : whose profiles are not to be read; None asks the project's store.

    Raises
    ------
    StoreError : nobody can say who was erased.
    ArtifactError : the bundle is missing, damaged or scores otherwise than when it was made.
    ConfigError : catalogue or policy are wrong (all faults at once).
    """
    folder = serving_dir(project_dir)
    if before is not None and before.bundle.id == current_id(folder):
        bundle = before.bundle
    else:
        bundle = load_bundle(folder)
        _ = bundle.offer_scorer  # refuses a propensity model that does not fit the profiles
    catalogue, policy = load_serving(project_dir / "serving", policy_file, bundle.offers)
    gone = who_is_erased(project_dir) if erased is None else erased
    state = _assembled(folder, bundle, catalogue, policy, gone)
    archive.keep(project_dir, catalogue, policy)
    return state


def load_approved(
    project_dir: Path, before: State | None = None, *, erased: Erased | None = None
) -> State:
    """Load what a project may decide with; errors as in `load_state`, and one more.

    Raises
    ------
    GateRefusal : the policy has not passed what it has to pass before it goes live.
    """
    state = load_state(project_dir, before, erased=erased)
    approvals.require_approved(project_dir, state.offers, state.rules)
    return state


def load_last_good(project_dir: Path, *, erased: Erased | None = None) -> State | None:
    """Load what a server of this project last decided with; None where that is gone."""
    folder = serving_dir(project_dir)
    used = lastgood.recall(folder)
    if used is None:
        return None
    try:
        bundle = load_bundle(folder, used.bundle)
        _ = bundle.offer_scorer
        catalogue = archive.archived_catalogue(project_dir, used.catalogue)
        policy = archive.archived_policy(project_dir, used.policy)
        gone = who_is_erased(project_dir) if erased is None else erased
        return _assembled(folder, bundle, catalogue, policy, gone)
    except NextbestError as error:
        log("last good cannot be loaded", level=logging.ERROR, error=str(error))
        return None


def _assembled(
    folder: Path, bundle: Bundle, catalogue: Catalogue, policy: Policy, erased: Erased
) -> State:
    """Check bundle, catalogue and policy against each other."""
    _require_contacts(bundle, policy)
    _require_fair_models(bundle, policy)
    bound_catalogue, bound_policy = bind(catalogue, policy, known_columns(bundle))
    compiled_loops()  # now, and not while somebody waits for a decision
    shaper = Shaper(bundle, bound_catalogue.offer_ids, erased)
    try:
        prices, damage = read_prices(folder), None
    except DataError as error:
        # Without prices decisions are right for each customer; with none there would be no answer.
        prices, damage = {}, str(error)
    return State(bundle, bound_catalogue, bound_policy, shaper, prices, damage)


def _require_contacts(bundle: Bundle, policy: Policy) -> None:
    """Refuse a policy that counts more of the warehouse's contacts than the bundle holds."""
    needed = policy.tables.history_days()
    held = bundle.contacts
    if policy.tables.contact.count_history and (held is None or held.days < needed):
        raise ConfigError(
            f"{policy.where}: [contact]",
            "count_history needs contacts that the bundle does not hold",
            expected=f"those of the last {needed:g} days",
            got="none" if held is None else f"those of the last {float(held.days):g} days",
            action="Run `nextbest refresh`.",
        )


def _require_fair_models(bundle: Bundle, policy: Policy) -> None:
    """Refuse a bundle whose models read a sensitive attribute that the policy keeps from them."""
    sensitive, where = policy.tables.sensitive, f"{policy.where}: [sensitive]"
    faults = sensitive.unknown(known_columns(bundle), policy.where)
    for name, model in bundle.models.items():
        faults += sensitive.read_by_model(where, name, model.columns)
    if faults:
        raise ConfigError(faults=faults)


class Runtime:
    """The state and the store of one running server; safe to share between threads."""

    def __init__(
        self, project_dir: Path, metrics: Metrics, clock: Clock | None, *, queued: bool = False
    ) -> None:
        self.project_dir = project_dir
        self.clock: Clock = clock or (lambda: datetime.now(UTC))
        self._metrics = metrics
        self._queued = queued
        self._state: State | None = None
        self._store: Store | None = None
        self._seen: object = None
        self._retry_at = 0.0
        self._lock = threading.Lock()
        self._faults: dict[str, str] = {}
        self._erased: Erased | None = None
        self._heeding = threading.Lock()
        self._noted = False

    def open(self) -> None:
        """Load what there is; what is missing or broken shows in `parts`."""
        self.reload()
        try:
            self.store()
        except StoreError as error:
            log("store unavailable", level=logging.ERROR, error=str(error))

    def close(self) -> None:
        """Let go of the store, after the writes that wait."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None

    def state(self) -> State:
        """Return the state in use.

        Raises
        ------
        Problem: ``not-ready`` while there is none.
        StoreError: it was never known who was erased.
        """
        if self._state is None:
            raise Problem("not-ready", "No verified models, profiles, catalogue and policy yet.")
        if self._erased is None:
            self.heed_erasures()
        return self._state

    def store(self) -> Store:
        """Return the store, opening it where that failed before.

        Raises
        ------
        StoreError: it cannot be opened now.
        """
        with self._lock:
            if self._store is None:
                self._store = open_store(self.project_dir, queued=self._queued)
            return self._store

    def heed_erasures(self) -> None:
        """Take up who was erased, by this server or another.

        Raises
        ------
        StoreError: the store does not say.
        """
        store = self.store()
        # Held while reading, or an older answer could come to be written over a newer one.
        with self._heeding:
            erased = store.erased()
            if erased != self._erased:
                self._erased = erased
                if self._state is not None:
                    self._state = self._state.without(erased)

    def reload(self) -> None:
        """Take up who was erased, and a new bundle, catalogue or policy if it is sound.

        What was refused is tried again when a file changes, and every `RETRY_SECONDS`: the fault
        may have been the machine's.
        """
        try:
            self.heed_erasures()
        except StoreError as error:
            # What was known of the erased stays in force; without any nothing is served (`state`).
            log("erasures not read", level=logging.WARNING, error=str(error))
        self._take_up_newest()
        self._note()

    def _note(self) -> None:
        """Note in the audit trail what is in force, as soon as the store can be written."""
        if self._noted or self._state is None:
            return
        try:
            note_configuration(self.store(), self._state, f"server {socket.gethostname()}")
            self._noted = True
        except StoreError as error:
            log("audit trail not written", level=logging.WARNING, error=str(error))

    def _take_up_newest(self) -> None:
        seen = self._fingerprint()
        if seen == self._seen and (not self._faults or time.monotonic() < self._retry_at):
            return
        again, self._seen = seen == self._seen, seen
        erased = self._erased or Erased()
        try:
            state = load_approved(self.project_dir, self._state, erased=erased)
        except Exception as error:
            self._refuse(error, again)
            if self._state is None:
                last = load_last_good(self.project_dir, erased=erased)
                if last is not None:
                    self._take_up(last)
            return
        self._faults = {}
        self._tell_refused()
        self._take_up(state)
        lastgood.remember(serving_dir(self.project_dir), state.identity)

    def _refuse(self, error: Exception, again: bool) -> None:
        """Say why the newest is not taken up; the same reason twice is one failure."""
        known = isinstance(error, NextbestError)
        reason = error.code if isinstance(error, NextbestError) else "internal"
        said = str(error) if known else f"{type(error).__name__}: {error}"
        part = "bundle" if isinstance(error, ArtifactError) else "configuration"
        self._retry_at = time.monotonic() + RETRY_SECONDS
        before, self._faults = self._faults, {part: said}
        self._tell_refused()
        if again and before == self._faults:
            return
        self._metrics.reload_failures.labels(part, reason).inc()
        log("reload refused", level=logging.ERROR, exc_info=not known,
            part=part, reason=reason, error=said)  # fmt: skip

    def _tell_refused(self) -> None:
        for part in PARTS:
            self._metrics.refused.labels(part).set(part in self._faults)

    def _take_up(self, state: State) -> None:
        self._noted = False
        with self._heeding:
            erased = self._erased or Erased()
            self._state = state if state.shaper.erased == erased else state.without(erased)
        self._metrics.use(state.bundle.id, state.offers.content_hash, state.rules.content_hash)
        self._metrics.score_with({n: m.scorer_kind for n, m in state.bundle.models.items()})
        log(
            "serving",
            bundle=state.bundle.id,
            catalogue=state.offers.content_hash,
            policy=state.rules.content_hash,
        )

    def parts(self) -> dict[str, tuple[bool, str]]:
        """Say of each part whether it is ready, and why not or what it is."""
        state = self._state
        found = {}
        for part in PARTS:
            fault = self._faults.get(part)
            if state is None:
                found[part] = (False, fault or "not loaded; the other part was refused")
            elif fault is not None:
                found[part] = (True, f"the last good one stays; the new one was refused: {fault}")
            elif part == "bundle":
                detail = f"{state.bundle.id}, profiles as of {state.bundle.as_of.isoformat()}"
                found[part] = (True, detail)
            else:
                detail = (
                    f"catalogue {state.offers.content_hash[:16]}, "
                    f"policy {state.rules.content_hash[:16]}"
                )
                found[part] = (True, detail)
        found["store"] = self._store_part()
        for part, (ready, _) in found.items():
            self._metrics.ready.labels(part).set(ready)
        return found

    def measure(self) -> None:
        """Bring the metrics up to date that change by themselves: ages and readiness."""
        self.parts()
        state = self._state
        if state is not None:
            now = self.clock()
            self._metrics.bundle_age.set((now - state.bundle.created_at).total_seconds())
            age = state.moment(self.clock) - state.bundle.as_of
            self._metrics.profile_age.set(age.total_seconds())
            for name, model in state.bundle.models.items():
                if "cut" in model.metadata:
                    cut = datetime.fromisoformat(model.metadata["cut"]).replace(tzinfo=UTC)
                    old = state.moment(self.clock) - cut
                    self._metrics.model_age.labels(name).set(old.total_seconds())
        if self._store is not None:
            self._metrics.waiting.set(self._store.waiting)
            self._metrics.decisions_lost.set(self._store.lost)

    def compare(self) -> None:
        """Bring the metrics up to date that hold the model's word against what came true."""
        state = self._state
        if state is None:
            return
        now = state.moment(self.clock)
        told = self.store().tallies(ANSWERS, now, since=now - COMPARED)
        self._metrics.compare(
            (name, tally.settled, tally.expected_responses, tally.settled_responses)
            for name, tally in told.items()
            if name in state.offers.offer_ids
        )

    def _store_part(self) -> tuple[bool, str]:
        try:
            self.store().ping()
        except StoreError as error:
            return False, str(error)
        return True, "reads and writes"

    def _fingerprint(self) -> object:
        """Return what changes whenever one of the files does that a state is made of."""
        files = [
            serving_dir(self.project_dir) / "current.json",
            serving_dir(self.project_dir) / PRICES_FILE,
            self.project_dir / "serving" / "offers.toml",
            self.project_dir / "serving" / "policy.toml",
            approvals.folder(self.project_dir),  # changes with every record in it
        ]
        stats = []
        for path in files:
            try:
                stat = path.stat()
                stats.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
            except OSError:
                stats.append((0, 0, 0))
        return stats
