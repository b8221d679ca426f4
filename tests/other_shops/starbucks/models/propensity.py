"""Will the customer buy within 72 hours, once contacted with this offer?"""

from lightgbm import LGBMClassifier

from nextbest import Model, Response, SingleFeature

model = Model(
    label=Response(window_days=3),
    estimator=LGBMClassifier(
        n_estimators=50, learning_rate=0.1, num_leaves=7, min_child_samples=100,
        deterministic=True, force_row_wise=True, n_jobs=1, verbose=-1,
    ),
    baseline=SingleFeature("orders_28d", name="past orders"),
    features=("rfm", "windows", "demographics", "offer"),
)  # fmt: skip
