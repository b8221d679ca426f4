import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from nextbest.errors import ArtifactError
from nextbest.learn.estimators import SignedLog1p, blend, linear
from nextbest.learn.export import export, exportable

ROWS = np.zeros((4, 1))


class Sneaky(LogisticRegression):
    """Looks like its parent and predicts otherwise."""


GOOD = {
    "trees": LGBMClassifier(),
    "regression trees": LGBMRegressor(),
    "logistic": LogisticRegression(),
    "logistic with its own search": LogisticRegressionCV(),
    "logistic by gradient steps": SGDClassifier(loss="log_loss"),
    "discriminant": LinearDiscriminantAnalysis(),
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
    "search": GridSearchCV(LGBMClassifier(), {"num_leaves": [7, 15]}),
    "threshold": TunedThresholdClassifierCV(LGBMClassifier()),
}
BAD = {
    "subclass": (Sneaky(), "Sneaky has no safe format"),
    "Python objective": (LGBMClassifier(objective=lambda y, p: (p, p)), "Python function"),
    "many classes": (LGBMClassifier(objective="multiclass"), "more than two classes"),
    "hard votes": (VotingClassifier([("a", LogisticRegression())]), 'votes "hard"'),
    "a loss without probability": (SGDClassifier(), "loss 'hinge'; only \"log_loss\""),
    "subclass in a blend": (
        blend({"good": LogisticRegression(), "bad": Sneaky()}),
        'member "bad".*Sneaky has no safe format',
    ),
    "subclass at the end of a pipeline": (make_pipeline(StandardScaler(), Sneaky()), "Sneaky"),
    "subclass inside a search": (GridSearchCV(Sneaky(), {"C": [1.0]}), "Sneaky"),
    "Python function as a step": (
        make_pipeline(FunctionTransformer(lambda x: x), LogisticRegression()),
        'step "functiontransformer".* the parameter func.* is Python code',
    ),
    "trees after a step that only ONNX knows": (
        make_pipeline(PCA(), LGBMClassifier()),
        'step "pca".*LightGBM goes to its own text',
    ),
    "trees inside a calibration": (
        CalibratedClassifierCV(LGBMClassifier()),
        "CalibratedClassifierCV around lightgbm.LGBMClassifier.*calibrate with Model",
    ),
    "not an estimator": (object(), "builtins.object has no safe format"),
    "regression": (LinearRegression(), "LinearRegression is not a classifier"),
}


@pytest.mark.parametrize("name", GOOD)
def test_these_can_be_stored_and_it_is_known_before_fitting(name):
    assert exportable(GOOD[name]) is None


@pytest.mark.parametrize("name", BAD)
def test_these_are_refused_with_the_reason(name):
    estimator, words = BAD[name]
    assert exportable(estimator) is not None
    with pytest.raises(ArtifactError, match=words):
        export(estimator, ROWS)


def test_an_unfitted_estimator_is_refused():
    with pytest.raises(ArtifactError, match="does not look fitted"):
        export(LogisticRegression(), ROWS)


@pytest.mark.parametrize("labels", [("no", "yes"), (1, 2)])
def test_other_labels_than_0_and_1_are_refused(labels):
    x, y = np.arange(6.0)[:, None], np.repeat(np.array(labels), 3)
    with pytest.raises(ArtifactError, match="not 0 and 1"):
        export(LogisticRegression().fit(x, y), x)


def test_the_weights_of_nested_blends_multiply():
    x, y = np.arange(20.0)[:, None], np.arange(20) % 2
    inner = blend({"a": LogisticRegression(), "b": LogisticRegression()}, [1, 3])
    parts = export(blend({"inner": inner, "c": LogisticRegression()}, [1, 1]).fit(x, y), x)
    assert [part.weight for part in parts] == pytest.approx([0.125, 0.375, 0.5])


def test_trees_fitted_on_pandas_categories_are_refused():
    # LightGBM would keep the categories' own order beside the trees; the encoder is the one place.
    x = pd.DataFrame({"c": pd.Categorical(["a", "b"] * 20)})
    fitted = LGBMClassifier(n_estimators=2, verbose=-1).fit(x, np.arange(40) % 2)
    with pytest.raises(ArtifactError, match="let FeatureEncoder encode them"):
        export(fitted, ROWS)
