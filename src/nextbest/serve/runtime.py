"""What a server holds while it runs: the bundle, catalogue and policy in use, and the store.

Bundle, catalogue and policy are verified together and swapped together. When a new one is refused
the last good ones stay, and readiness, the log and a metric say why.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from nextbest.decide.binding import BoundPolicy, bind
from nextbest.decide.engine import Decisions
from nextbest.decide.frame import Situation
from nextbest.decide.offers import BoundCatalogue, Catalogue
from nextbest.decide.policy import Policy, load_serving
from nextbest.errors import ArtifactError, ConfigError, DataError, NextbestError, StoreError
from nextbest.serve import approvals, archive, lastgood
from nextbest.serve.audience import Shaper, known_columns
from nextbest.serve.bundle import Bundle, current_id, load_bundle
from nextbest.serve.problems import Problem
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
    "open_store",
    "serving_dir",
]

Clock = Callable[[], datetime]


def serving_dir(project_dir: Path) -> Path:
    """Return where a project keeps its bundles."""
    return project_dir / ".nextbest" / "serving"


def open_store(project_dir: Path) -> Store:
    """Open the project's store: the URL in ``NEXTBEST_STORE``, else its own SQLite file.

    Raises
    ------
    StoreError: it cannot be opened.
    """
    url = os.environ.get("NEXTBEST_STORE")
    return Store(url) if url else Store.at(project_dir / ".nextbest" / "store.db")


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

    def is_stale(self, moment: datetime) -> bool:
        """Tell whether the profiles are older than the policy's freshness limit."""
        limit = self.rules.tables.profiles.freshness_limit_days
        age = moment - self.bundle.as_of
        return limit is not None and age.total_seconds() > limit * 86_400


def load_state(
    project_dir: Path, before: State | None = None, *, policy_file: Path | None = None
) -> State:
    """Load and check the bundle, catalogue and policy of a project, and archive the latter two.

    Whether the policy may go live is `load_approved`'s question.

    Parameters
    ----------
    before : what is in use; its bundle is taken over where it is still the current one.
    policy_file : a policy to use in place of the project's own, to try it out.

    Raises
    ------
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
    state = _assembled(folder, bundle, catalogue, policy)
    archive.keep(project_dir, catalogue, policy)
    return state


def load_approved(project_dir: Path, before: State | None = None) -> State:
    """Load what a project may decide with; errors as in `load_state`, and one more.

    Raises
    ------
    GateRefusal : the policy has not passed what it has to pass before it goes live.
    """
    state = load_state(project_dir, before)
    approvals.require_approved(project_dir, state.offers, state.rules)
    return state


def load_last_good(project_dir: Path) -> State | None:
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
        return _assembled(folder, bundle, catalogue, policy)
    except NextbestError as error:
        log("last good cannot be loaded", level=logging.ERROR, error=str(error))
        return None


def _assembled(folder: Path, bundle: Bundle, catalogue: Catalogue, policy: Policy) -> State:
    """Check bundle, catalogue and policy against each other."""
    _require_contacts(bundle, policy)
    _require_fair_models(bundle, policy)
    bound_catalogue, bound_policy = bind(catalogue, policy, known_columns(bundle))
    shaper = Shaper(bundle, bound_catalogue.offer_ids)
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

    def __init__(self, project_dir: Path, metrics: Metrics, clock: Clock | None) -> None:
        self.project_dir = project_dir
        self.clock: Clock = clock or (lambda: datetime.now(UTC))
        self._metrics = metrics
        self._state: State | None = None
        self._store: Store | None = None
        self._seen: object = None
        self._lock = threading.Lock()
        self._faults: dict[str, str] = {}

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
        """
        if self._state is None:
            raise Problem("not-ready", "No verified models, profiles, catalogue and policy yet.")
        return self._state

    def store(self) -> Store:
        """Return the store, opening it where that failed before.

        Raises
        ------
        StoreError: it cannot be opened now.
        """
        with self._lock:
            if self._store is None:
                self._store = open_store(self.project_dir)
            return self._store

    def reload(self) -> None:
        """Take up a new bundle, catalogue or policy if there is one and it is sound."""
        seen = self._fingerprint()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            state = load_approved(self.project_dir, self._state)
        except NextbestError as error:
            part = "bundle" if isinstance(error, ArtifactError) else "configuration"
            self._faults = {part: str(error)}
            self._metrics.reload_failures.labels(part, error.code).inc()
            log("reload refused", level=logging.ERROR, part=part, reason=error.code,
                error=str(error))  # fmt: skip
            if self._state is None:
                last = load_last_good(self.project_dir)
                if last is not None:
                    self._take_up(last)
            return
        self._faults = {}
        self._take_up(state)
        lastgood.remember(serving_dir(self.project_dir), state.identity)

    def _take_up(self, state: State) -> None:
        self._state = state
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
        for part in ("bundle", "configuration"):
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
