"""Will the customer respond to this offer before it ends, once contacted?"""

from lightgbm import LGBMClassifier

from nextbest import Model, Response, TypeRateTimesHistory, blend, linear

model = Model(
    label=Response(),
    # Few customers respond, so both halves are kept simple: trees that cut at random places, and
    # a strong penalty. With less of either, the first campaigns teach more chance than sense.
    estimator=blend(
        {
            "trees": LGBMClassifier(
                n_estimators=300, learning_rate=0.02, num_leaves=15, min_child_samples=15,
                colsample_bytree=0.15, subsample=0.8, subsample_freq=1, reg_lambda=5.0,
                extra_trees=True, deterministic=True, force_row_wise=True, n_jobs=1, verbose=-1,
            ),
            "linear": linear(C=0.003),
        }
    ),
    baseline=TypeRateTimesHistory(),
    exclude=("lifetime",),  # the clv model's words for recency and tenure
)  # fmt: skip
