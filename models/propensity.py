"""Will the customer respond to this offer before it ends, once contacted?"""

from lightgbm import LGBMClassifier

from nextbest import Model, Response, TypeRateTimesHistory, blend, linear

model = Model(
    label=Response(),
    estimator=blend(
        {
            "trees": LGBMClassifier(
                n_estimators=400, learning_rate=0.02, num_leaves=7, min_child_samples=30,
                colsample_bytree=0.25, subsample=0.8, subsample_freq=1, reg_lambda=5.0,
                deterministic=True, force_row_wise=True, n_jobs=1, verbose=-1,
            ),
            "linear": linear(C=0.03),
        }
    ),
    baseline=TypeRateTimesHistory(),
    exclude=("lifetime",),  # the clv model's words for recency and tenure
)  # fmt: skip
