"""The small shop as a project on disk, ready to serve."""

from __future__ import annotations

from pathlib import Path

import shop

from nextbest.data.profiles import Profiles
from nextbest.serve.bundle import write_bundle


def make_artefacts(folder: Path) -> Path:
    """Train the models of the shop, and a second propensity, into a folder."""
    frames = shop.frames()
    shop.save_propensity(folder / "propensity", frames)
    shop.save_propensity(folder / "propensity-2", frames, seed=2)
    churn = shop.save_churn(folder / "churn", frames)
    shop.make_profiles(frames, churn).save(folder / "profiles")
    return folder


def make_project(folder: Path, artefacts: Path) -> Path:
    """Write catalogue, policy and bundle of the shop into a folder."""
    (folder / "serving").mkdir()
    (folder / "serving" / "offers.toml").write_text(shop.OFFERS)
    (folder / "serving" / "policy.toml").write_text(shop.POLICY)
    profiles = Profiles.open(artefacts / "profiles")
    write_bundle(folder / ".nextbest" / "serving", shop.sources(artefacts), profiles)
    return folder
