import numpy as np
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nextbest.errors import ArtifactError
from nextbest.learn.estimators import SignedLog1p, blend, linear
from nextbest.learn.export import export, exportable


class Sneaky(LogisticRegression):
    """Looks like its parent and predicts otherwise."""


GOOD = {
    "trees": LGBMClassifier(),
    "regression trees": LGBMRegressor(),
    "logistic": LogisticRegression(),
    "pipeline": linear(),
    "all steps": make_pipeline(
        SimpleImputer(strategy="constant", add_indicator=True),
        SignedLog1p(),
        StandardScaler(with_mean=False),
        "passthrough",
        LogisticRegression(),
    ),
    "trees after steps": make_pipeline(SimpleImputer(), LGBMClassifier()),
    "blend": blend({"a": LGBMClassifier(), "b": linear()}, [1, 2]),
    "blend of blends": blend({"a": blend({"b": linear()}), "c": LGBMClassifier()}),
    "blend with a dropped member": VotingClassifier(
        [("a", LogisticRegression()), ("b", "drop")], voting="soft"
    ),
}
BAD = {
    "forest": (RandomForestClassifier(), "sklearn.RandomForestClassifier has no safe format"),
    "subclass": (Sneaky(), "Sneaky has no safe format"),
    "own calibration": (CalibratedClassifierCV(LogisticRegression()), "CalibratedClassifierCV"),
    "Python objective": (LGBMClassifier(objective=lambda y, p: (p, p)), "Python function"),
    "many classes": (LGBMClassifier(objective="multiclass"), "more than two classes"),
    "hard votes": (VotingClassifier([("a", LogisticRegression())]), 'votes "hard"'),
    "unknown step": (make_pipeline(PCA(), LogisticRegression()), 'step "pca" is a sklearn.PCA'),
    "odd missing value": (
        make_pipeline(SimpleImputer(missing_values=-1), LogisticRegression()),
        "fills -1; only NaN",
    ),
    "member of a blend": (
        blend({"good": LogisticRegression(), "bad": RandomForestClassifier()}),
        'member "bad".*RandomForestClassifier',
    ),
    "end of a pipeline": (make_pipeline(StandardScaler(), RandomForestClassifier()), "Forest"),
    "not an estimator": (object(), "builtins.object has no safe format"),
}


@pytest.mark.parametrize("name", GOOD)
def test_these_can_be_stored_and_it_is_known_before_fitting(name):
    assert exportable(GOOD[name]) is None


@pytest.mark.parametrize("name", BAD)
def test_these_are_refused_with_the_reason(name):
    estimator, words = BAD[name]
    assert exportable(estimator) is not None
    with pytest.raises(ArtifactError, match=words):
        export(estimator)


def test_an_unfitted_estimator_is_refused():
    with pytest.raises(ArtifactError, match="does not look fitted"):
        export(LogisticRegression())


@pytest.mark.parametrize("labels", [("no", "yes"), (1, 2)])
def test_other_labels_than_0_and_1_are_refused(labels):
    x, y = np.arange(6.0)[:, None], np.repeat(np.array(labels), 3)
    with pytest.raises(ArtifactError, match="not 0 and 1"):
        export(LogisticRegression().fit(x, y))


def test_the_weights_of_nested_blends_multiply():
    x, y = np.arange(20.0)[:, None], np.arange(20) % 2
    inner = blend({"a": LogisticRegression(), "b": LogisticRegression()}, [1, 3])
    parts = export(blend({"inner": inner, "c": LogisticRegression()}, [1, 1]).fit(x, y))
    assert [part.weight for part in parts] == pytest.approx([0.125, 0.375, 0.5])
