"""Will a customer who is active today buy nothing in the next 60 days?"""

from lightgbm import LGBMClassifier

from nextbest import Model, NoPurchase, SingleFeature, blend, linear

model = Model(
    label=NoPurchase(horizon_days=60, active_days=90),
    estimator=blend(
        {
            "trees": LGBMClassifier(
                n_estimators=300, learning_rate=0.02, num_leaves=7, min_child_samples=50,
                colsample_bytree=0.25, subsample=0.8, subsample_freq=1, reg_lambda=5.0,
                deterministic=True, force_row_wise=True, n_jobs=1, verbose=-1,
            ),
            "linear": linear(C=0.01),
        }
    ),
    baseline=SingleFeature("days_since_last_purchase", name="recency"),
    # What grows with the length of the data says when the data begin, not who will leave.
    # Demographics exist for a third of the households, without saying since when: of those, far
    # too few leave, as if who stayed had been asked. They might know the future, so they stay out.
    exclude=("lifetime", "totals", "categories_total", "products_total", "max_gap_days",
             "contacts_total", "responses_total", "response_actions", "demographics"),
)  # fmt: skip
